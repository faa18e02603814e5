//! Switch files: what they become, what is written back, and the words each mistake is refused with.

use std::time::Duration;

use super::*;
use crate::rate::Rate;

#[test]
fn a_switch_with_everything_survives_being_written_out() {
    let file = "name = \"lab0\"\nageing = 60\nsandbox = false\nuplink = { tap = \"tap0\", vlan = 1, trunk = [20, 10] }\n\
                [[port]]\nname = \"a\"\nvlan = 10\nisolated = true\nip = [\"192.0.2.7\"]\nguard_ra = true\ntx_rate = \"100M\"\n\
                tx_burst = \"50ms\"\nrx_packets = 1000\n[[port]]\nname = \"b\"\ntrunk = [10, 20, 10]\n[[port]]\nname = \"c\"";
    let switch = Switch::parse(file).unwrap();
    let [a, b, c] = switch.ports.as_slice() else { panic!("three ports") };
    let vlans = |untagged, tagged: &[u16]| PortVlans { untagged, tagged: tagged.to_vec() };
    assert_eq!(
        (&a.vlans, &b.vlans, &c.vlans),
        (&vlans(Some(10), &[]), &vlans(None, &[10, 20]), &vlans(Some(1), &[]))
    );
    assert_eq!(switch.uplink, Some(("tap0".to_owned(), vlans(Some(1), &[10, 20]))));
    assert!(a.isolated && a.guard.mac && a.guard.ra && !b.isolated);
    assert_eq!((a.guard.addresses.len(), &b.guard), (1, &NetGuard::default()));
    assert_eq!(
        a.tx,
        NetLimit { rate: Some(Rate(100_000_000)), packets: None, burst: Some(Duration::from_millis(50)) }
    );
    assert!(a.mac != b.mac && b.mac != c.mac, "addresses differ");
    let json = serde_json::to_string(&switch).unwrap();
    assert_eq!(Switch::parse(&json).unwrap(), switch);
}

#[test]
fn mistakes_are_told_where_and_why() {
    let port = |keys: &str| format!("[[port]]\nname = \"a\"\n{keys}");
    for (file, expected) in [
        (String::new(), "port is missing"),
        ("[[port]]\nvlan = 1".to_owned(), "port[0].name is missing"),
        (port("ip = [\"10.0.0.300\"]"), "port[0].ip = \"10.0.0.300\": must be an IP address"),
        (port("vlan = 0"), "port[0].vlan = 0: must be 1 to 4094"),
        (port("trunk = [10, 4095]"), "port[0].trunk = 4095: must be 1 to 4094"),
        (port("vlan = 10\ntrunk = [10]"), "either tagged or not"),
        (port("[[port]]\nname = \"a\""), "port[1].name = \"a\": another port has it"),
        (port("vlna = 1"), "did you mean `vlan`?"),
        (port("mac = \"01:00:00:00:00:00\""), "unicast"),
        (port("tx_rate = \"fast\""), "port[0].tx_rate = \"fast\": must be a number per second"),
        (port("rx_burst = 1"), "means nothing"),
        (port("tx_rate = 1\ntx_burst = \"1ms\""), "5ms to 10s"),
        (format!("ageing = 0\n{}", port("")), "ageing = 0"),
        (format!("name = \"a/b\"\n{}", port("")), "name = \"a/b\""),
        (format!("uplink = {{ tap = \"a,b\" }}\n{}", port("")), "uplink.tap"),
        ((0..65).map(|n| format!("[[port]]\nname = \"p{n}\"\n")).collect(), "up to 64"),
    ] {
        let error = Switch::parse(&file).expect_err(&file).to_string();
        assert!(error.contains(expected), "{file}: {error}");
    }
}
