//! Frames against the guard: what it lets pass is from the NIC's address, and tags in front of it change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_vhost_net::guard::{Guard, address};
use strata_vhost_net::mac::Mac;

const OWN: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

fuzz_target!(|frame: &[u8]| {
    let addresses = ["192.0.2.0/24", "2001:db8::/64"].map(address).into_iter().flatten().collect();
    let guard = Guard { mac: Some(Mac::new(OWN)), addresses, dhcp: true, router: true };
    let verdict = guard.check(frame);
    if verdict.is_ok() {
        assert_eq!(frame.get(6..12), Some(&OWN[..]));
    }
    // The guard sees the beginning of a frame; what it lets pass by that it lets pass by the whole.
    if let Some((head, rest)) = frame.split_at_checked(12)
        && !matches!(rest, [0x81 | 0x88 | 0x91, ..] | [])
    {
        let tagged = [head, &[0x81, 0, 0, 1], rest].concat();
        assert_eq!(guard.check(&tagged).is_ok(), verdict.is_ok(), "{verdict:?}");
    }
});
