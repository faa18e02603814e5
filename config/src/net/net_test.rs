//! Every rule for NICs and the words it is refused with; flags, files and what is written back agree.

use super::*;
use crate::{ConfigError, Machine};

fn machine(net: &str) -> Result<Machine, ConfigError> {
    format!("kernel = \"/k\"\n[[net]]\n{net}").parse()
}

fn own(net: &str) -> OwnNet {
    let machine = machine(net).unwrap_or_else(|error| panic!("{net}: {error}"));
    machine.nets[0].source.own().unwrap().clone()
}

fn refused(net: &str) -> String {
    machine(net).expect_err(net).to_string()
}

#[test]
fn cables() {
    assert_eq!(own("tap = \"t0\"").cable, Cable::Tap("t0".into()));
    assert_eq!(own("macvtap = \"eth0\"").cable, Cable::Macvtap("eth0".into()));
    let bridge = |more: &str| own(&format!("bridge = \"br0\"\n{more}")).cable;
    let port = |untagged, tagged: &[u16]| Cable::Bridge {
        name: "br0".into(),
        vlans: Vlans { untagged, tagged: tagged.to_vec() },
    };
    assert_eq!(bridge(""), port(None, &[]));
    assert_eq!(bridge("vlan = 42"), port(Some(42), &[]));
    for trunk in ["[20, 10]", "[\"10\", 20]", "\"10,20\"", "\"20, 10, 20\""] {
        assert_eq!(bridge(&format!("trunk = {trunk}")), port(None, &[10, 20]), "{trunk}");
    }
    assert_eq!(bridge("vlan = 1\ntrunk = 4094"), port(Some(1), &[4094]));
}

#[test]
fn guards_and_limits() {
    let plain = own("tap = \"t\"");
    assert_eq!((plain.guard, plain.tx, plain.rx, plain.mtu), Default::default());
    let net = own(
        "tap = \"t\"\nguard_dhcp = true\nguard_ra = true\nip = [\"192.0.2.7\", \"2001:db8::/64\"]\nmtu = 9000\n\
                   tx_rate = \"2.5G\"\ntx_packets = \"20k\"\ntx_burst = \"50ms\"\nrx_packets = 1000",
    );
    assert!(
        net.guard.mac && net.guard.dhcp && net.guard.ra,
        "addresses are of the NIC's own Ethernet address"
    );
    let addresses: Vec<String> = net.guard.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.7/32", "2001:db8::/64"]);
    assert_eq!(net.mtu, Some(9000));
    let burst = Some(Duration::from_millis(50));
    assert_eq!(net.tx, NetLimit { rate: Some(Rate(2_500_000_000)), packets: Some(Rate(20_000)), burst });
    assert_eq!(net.rx, NetLimit { rate: None, packets: Some(Rate(1000)), burst: None });
}

#[test]
fn refusals() {
    for (net, words) in [
        ("tap = \"t\"\nbridge = \"b\"", "net[0]: `tap` and `bridge` exclude one another; keep one"),
        ("macvtap = \"e\"\nsocket = \"/s\"", "net[0]: `macvtap` and `socket` exclude one another"),
        ("socket = \"/s\"\nvlan = 3", "net[0]: `vlan` does not go with `socket`"),
        ("socket = \"/s\"\nrx_rate = 3", "net[0]: `rx_rate` does not go with `socket`"),
        ("tap = \"t\"\nvlan = 3", "net[0]: `vlan` and `trunk` go with `bridge` only"),
        ("bridge = \"b\"\nvlan = 4095", "net[0].vlan = 4095: must be 1 to 4094"),
        ("bridge = \"b\"\ntrunk = [0]", r#"net[0].trunk = "0": must be VLANs from 1 to 4094"#),
        ("bridge = \"b\"\ntrunk = \"\"", "net[0].trunk"),
        ("bridge = \"b\"\ntrunk = true", "net[0].trunk = true: must be a list of texts or whole numbers"),
        ("bridge = \"b\"\nvlan = 2\ntrunk = [2]", "net[0]: `vlan` is in `trunk` too"),
        ("bridge = \"a/b\"", r#"net[0].bridge = "a/b": must be an interface name"#),
        ("tap = \"t%d\"", "must be an interface name"),
        ("macvtap = \"\"", "must be an interface name"),
        ("tap = \"t\"\nmtu = 67", "net[0].mtu = 67: must be 68 to 65521"),
        ("tap = \"t\"\nip = \"300.1.1.1\"", r#"net[0].ip = "300.1.1.1": must be an IP address"#),
        ("tap = \"t\"\ntx_rate = \"fast\"", r#"net[0].tx_rate = "fast": must be a number per second"#),
        ("tap = \"t\"\ntx_rate = 0", "net[0].tx_rate = 0: must be"),
        (
            "tap = \"t\"\nrx_rate = \"1G\"\nrx_burst = \"1ms\"",
            r#"net[0].rx_burst = "1ms": must be 5ms to 10s"#,
        ),
        ("tap = \"t\"\nrx_burst = \"9ms\"", "`rx_burst` means nothing without `rx_rate` or `rx_packets`"),
    ] {
        let text = refused(net);
        assert!(text.contains(words), "{net}: {text}");
    }
}

#[test]
fn each_key_of_an_own_backend_is_the_one_that_is_named() {
    for key in GUARD_KEYS.into_iter().chain(LIMIT_KEYS).chain(["vlan", "trunk", "mac", "mtu"]) {
        let value = match key {
            "guard_mac" | "guard_dhcp" | "guard_ra" => "true",
            "vlan" | "mtu" => "1000",
            _ => "\"1\"",
        };
        let said = refused(&format!("socket = \"/s\"\n{key} = {value}"));
        assert!(said.contains(&format!("`{key}` does not go with `socket`")), "{said}");
    }
}

#[test]
fn flags_say_the_same_as_files() {
    let flag = |text: &str| NetEntry::from_flag(text).unwrap();
    let entry = flag("bridge=br0,trunk=10,20,guard_mac,ip=192.0.2.7,2001:db8::/64,tx_rate=10M,id=wan");
    assert_eq!(entry.trunk, Some(List(vec!["10".into(), "20".into()])));
    assert_eq!(entry.ip, Some(List(vec!["192.0.2.7".into(), "2001:db8::/64".into()])));
    assert_eq!((entry.guard_mac, entry.id.as_deref()), (Some(true), Some("wan")));
    assert!(NetEntry::from_flag("10,20").is_err());
    assert!(
        NetEntry::from_flag("bridge=b,truk=1").unwrap_err().to_string().contains("did you mean `trunk`?")
    );
}

#[test]
fn what_is_written_is_read_again() {
    for net in [
        "tap = \"t\"\nmac = \"02:00:00:00:00:01\"",
        "bridge = \"b\"\nvlan = 7\ntrunk = [8, 9]\nmtu = 1400",
        "macvtap = \"e\"\nip = \"10.0.0.0/8\"\nguard_mac = false\nguard_ra = true\nguard_dhcp = true",
        "tap = \"t\"\ntx_rate = \"1.5M\"\ntx_burst = \"2\"\nrx_rate = 7\nrx_packets = \"3k\"\nrx_burst = \"1500ms\"",
    ] {
        let machine = machine(net).unwrap();
        let text = serde_json::to_string(&machine).unwrap();
        assert_eq!(text.parse::<Machine>().unwrap(), machine, "{text}");
    }
}
