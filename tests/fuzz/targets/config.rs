//! The machine file, TOML and JSON, and the flags' compact form. A checked machine survives being written out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_config::Machine;

fuzz_target!(|text: &str| {
    if let Ok(machine) = text.parse::<Machine>() {
        let Ok(json) = serde_json::to_string(&machine) else {
            panic!("a checked machine cannot be written out")
        };
        assert_eq!(json.parse::<Machine>().ok(), Some(machine));
    }
});
