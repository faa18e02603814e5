//! The files of machine and switch, TOML and JSON. A checked one survives being written out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_config::{Machine, Switch};

fuzz_target!(|text: &str| {
    if let Ok(machine) = text.parse::<Machine>() {
        let Ok(json) = serde_json::to_string(&machine) else {
            panic!("a checked machine cannot be written out")
        };
        assert_eq!(json.parse::<Machine>().ok(), Some(machine));
    }
    if let Ok(switch) = Switch::parse(text) {
        let Ok(json) = serde_json::to_string(&switch) else {
            panic!("a checked switch cannot be written out")
        };
        assert_eq!(Switch::parse(&json).ok(), Some(switch));
    }
});
