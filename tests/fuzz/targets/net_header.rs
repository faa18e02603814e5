//! virtio-net headers: what is let through must be what a tap accepts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_vhost_net::header::{Allowed, HEADER};

fuzz_target!(|input: ([u8; HEADER], u64, u32)| {
    let (header, features, frame) = input;
    if let Ok(checked) = Allowed::new(features).check(&header, frame as usize) {
        // Offsets that passed lie inside the frame, whatever the features.
        let csum_start = u16::from_le_bytes([checked[6], checked[7]]);
        if checked[0] & 1 != 0 {
            assert!(usize::from(csum_start) < frame as usize);
        }
    }
});
