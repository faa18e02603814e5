//! Commands of virtio-net's control queue.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_vhost_net::control::Command;

fuzz_target!(|data: &[u8]| {
    let _ = Command::parse(data);
});
