//! As `attach_test`: against this host's kernel, in a network namespace of the test's own.

use std::os::unix::fs::MetadataExt;

use nix::unistd::getegid;
use strata_config::{NetSource, OwnNet};

use super::attach_test::{in_namespace, ip, machine, there};
use super::lasting::{self, interface, node};
use super::*;

fn own(machine: &Machine) -> (&strata_config::Net, &OwnNet) {
    let NetSource::Own(own) = &machine.nets[0].source else { panic!() };
    (&machine.nets[0], own)
}

fn plug(keys: &str) -> Result<String, String> {
    let machine = machine("02:00:00:00:00:07", keys);
    let (net, own) = own(&machine);
    lasting::attach(&machine, net, own).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

#[test]
fn what_has_no_name_gets_one_that_fits() {
    let name = |machine: &str, id: &str| {
        let text = format!("name = \"{machine}\"\nkernel = \"/k\"\n[[net]]\nid = \"{id}\"\nbridge = \"br0\"");
        let machine: Machine = text.parse().unwrap();
        let (net, own) = own(&machine);
        interface(&machine.name, net, own)
    };
    assert_eq!(name("web", "net0"), "vm-web-net0");
    assert_eq!(name("web-east", "net"), "vm-web-east-net");
    let (one, other) = (name("web-east", "net0"), name("web-east", "net1"));
    assert!(one.starts_with("vm-web-e-") && one.len() == 15, "{one}");
    assert_ne!(one, other);
    // The one a running machine has is found again by the next version.
    assert_eq!(one, "vm-web-e-3bdaff");
}

#[test]
fn a_tap_stays_until_it_is_removed_and_only_if_it_was_made() {
    in_namespace(|| {
        plug("tap = \"t0\"\nmtu = 1400").unwrap();
        let text = ip("-d link show t0");
        for word in ["mtu 1400", ",UP", "alias strata-attach@web-net0", "multi_queue", "persist on group"] {
            assert!(text.contains(word), "no {word}: {text}");
        }
        // Left by a start whose end nobody saw.
        let index = || ip("-o link show t0").split(':').next().map(str::to_owned);
        let before = index();
        plug("tap = \"t0\"").unwrap();
        assert_ne!(index(), before);
        lasting::detach("web-net1").unwrap();
        assert!(there("t0"));
        lasting::detach("web-net0").unwrap();
        assert!(!there("t0"));
        ip("tuntap add dev t0 mode tap multi_queue");
        assert!(plug("tap = \"t0\"").unwrap().contains("t0 is there already"));
        lasting::detach("web-net0").unwrap();
        assert!(there("t0"));
    });
}

#[test]
fn a_port_stays_until_it_is_removed() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("link set br0 up mtu 1450");
        plug("bridge = \"br0\"").unwrap();
        let text = ip("-d link show vm-web-net0");
        for word in ["master br0", "fe:00:00:00:00:07", "addrgenmode none", "mtu 1450", "persist on"] {
            assert!(text.contains(word), "no {word}: {text}");
        }
        lasting::detach("web-net0").unwrap();
        assert!(!there("vm-web-net0") && there("br0"));
        ip("tuntap add dev vm-web-net0 mode tap");
        let text = plug("bridge = \"br0\"").unwrap_err();
        assert!(text.contains("net0: there is an interface vm-web-net0 already"), "{text}");
        lasting::detach("web-net0").unwrap();
        assert!(there("vm-web-net0"));
    });
}

#[test]
fn what_fails_leaves_nothing() {
    in_namespace(|| {
        let text = plug("bridge = \"br0\"").unwrap_err();
        assert!(text.contains("bridge = br0: no such interface"), "{text}");
        ip("link add br0 type bridge");
        let text = plug("bridge = \"br0\"\nvlan = 7").unwrap_err();
        assert!(text.contains("br0 does not filter VLANs"), "{text}");
        // The tap is there by then.
        ip("link set br0 mtu 65535");
        let text = plug("bridge = \"br0\"").unwrap_err();
        assert!(text.contains("cannot bring up vm-web-net0"), "{text}");
        assert!(!there("vm-web-net0"));
    });
}

#[test]
fn a_macvtap_stays_until_it_is_removed() {
    in_namespace(|| {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        let keys = "macvtap = \"v0\"\nmtu = 1400";
        plug(keys).unwrap();
        let text = ip("-d link show vm-web-net0");
        for word in ["macvtap mode bridge", "02:00:00:00:00:07", "mtu 1400", ",UP", "strata-attach@web-net0"]
        {
            assert!(text.contains(word), "no {word}: {text}");
        }
        let machine = machine("02:00:00:00:00:07", keys);
        let node = node(&machine.name, &machine.nets[0]);
        let meta = std::fs::metadata(&node).unwrap();
        assert_eq!((meta.mode() & 0o777, meta.gid()), (0o660, getegid().as_raw()));
        lasting::detach("web-net0").unwrap();
        assert!(!there("vm-web-net0") && !Path::new(&node).exists());
    });
}
