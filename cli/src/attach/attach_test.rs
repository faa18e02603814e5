//! Against this host's kernel, in a network namespace of the test's own; skipped where there is no right to make one.
//! VLANs are tested in the guest cases: not every kernel here filters them.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};
use strata_config::NetSource;

use super::*;

/// Runs `test` on a thread in a new namespace, with `lo` up.
pub(super) fn in_namespace(test: fn()) {
    let thread = std::thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            eprintln!("skipped: a network namespace needs root: {error}");
            return;
        }
        if !Path::new("/dev/net/tun").exists() {
            eprintln!("skipped: no /dev/net/tun");
            return;
        }
        ip("link set lo up");
        test();
    });
    thread.join().unwrap();
}

pub(super) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn plug(keys: &str) -> Result<Attachment, String> {
    plug_as("02:00:00:00:00:07", keys)
}

pub(super) fn machine(mac: &str, keys: &str) -> Machine {
    format!("name = \"web\"\nkernel = \"/k\"\n[[net]]\nmac = \"{mac}\"\n{keys}").parse().unwrap()
}

fn plug_as(mac: &str, keys: &str) -> Result<Attachment, String> {
    let machine = machine(mac, keys);
    let NetSource::Own(own) = &machine.nets[0].source else { panic!() };
    attach(&machine, &machine.nets[0], own).map_err(|error| format!("{:#}", anyhow::Error::from(error)))
}

pub(super) fn there(name: &str) -> bool {
    Command::new("ip").args(["link", "show", name]).output().unwrap().status.success()
}

#[test]
fn a_tap_is_made_where_there_is_none_and_goes_with_its_descriptors() {
    in_namespace(|| {
        let made = plug("tap = \"t0\"\nmtu = 1400").unwrap();
        assert!(ip("link show t0").contains("mtu 1400"));
        assert!(ip("link show t0").contains("UP"));
        assert_eq!((made.interface.as_str(), made.mtu), ("t0", Some(1400)));
        assert_eq!(made.words()[2..], ["--mtu", "1400"]);
        assert!(
            plug("tap = \"t0\"\nmtu = 1400").unwrap_err().contains("the tap t0 is in use by another process")
        );
        drop(made);
        assert!(!there("t0"));
        let many = plug("tap = \"t1\"\nqueues = 3").unwrap();
        assert_eq!(many.descriptors().count(), 3);
    });
}

#[test]
fn a_tap_that_is_there_stays() {
    in_namespace(|| {
        ip("tuntap add dev t0 mode tap multi_queue");
        ip("link set t0 mtu 1300");
        let opened = plug("tap = \"t0\"").unwrap();
        assert_eq!(opened.mtu, Some(1300));
        drop(opened);
        assert!(there("t0"));
        let text = plug("tap = \"t0\"\nmtu = 1500").unwrap_err();
        assert!(text.contains("has an MTU of 1300, not 1500"), "{text}");
        let text = plug("tap = \"lo\"").unwrap_err();
        assert!(text.contains("lo cannot be opened as a tap with 1 queue pair(s)"), "{text}");
        ip("tuntap add dev t1 mode tap");
        assert!(plug("tap = \"t1\"\nqueues = 2").unwrap_err().contains("multi_queue"));
    });
}

#[test]
fn a_bridge_gets_a_port() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("link set br0 up mtu 1450");
        let (one, other) = (plug("bridge = \"br0\"").unwrap(), plug("bridge = \"br0\"").unwrap());
        assert_ne!(one.interface, other.interface);
        for port in [&one, &other] {
            let text = ip(&format!("-d link show {}", port.interface));
            assert!(text.contains("master br0") && text.contains("fe:00:00:00:00:07"), "{text}");
            assert!(text.contains("addrgenmode none") && text.contains("mtu 1450"), "{text}");
            assert_eq!(port.mtu, Some(1450));
        }
        let text = plug("bridge = \"br0\"\nvlan = 7").unwrap_err();
        assert!(text.contains("br0 does not filter VLANs: `ip link set br0"), "{text}");
        assert!(plug("bridge = \"br1\"").unwrap_err().contains("bridge = br1: no such interface"));
        assert!(plug("bridge = \"lo\"").unwrap_err().contains("bridge = lo: that interface is no bridge"));
        let names = [one.interface.clone(), other.interface.clone()];
        drop((one, other));
        assert!(names.iter().all(|name| !there(name)));
        assert!(there("br0"));
    });
}

#[test]
fn a_macvtap_goes_with_its_namespace() {
    in_namespace(|| {
        ip("link add v0 type veth peer name v1");
        ip("link set v0 up");
        ip("link set v1 up");
        let two = (
            plug("macvtap = \"v0\"").unwrap(),
            plug_as("02:00:00:00:00:08", "macvtap = \"v0\"\nqueues = 2\nmtu = 1400").unwrap(),
        );
        assert_eq!((two.0.mtu, two.1.mtu, two.1.descriptors().count()), (Some(1500), Some(1400), 2));
        assert!(plug("macvtap = \"v9\"").unwrap_err().contains("macvtap = v9: no such interface"));
        let queue = two.0.descriptors().next().unwrap();
        assert_eq!(tun::name_of(&queue).unwrap(), "macvtap0");
        drop(two);
        // Its interface is gone although a descriptor is still there, as a backend's may be.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while tun::name_of(&queue).is_ok() {
            assert!(std::time::Instant::now() < end, "the macvtap is still there");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    });
}
