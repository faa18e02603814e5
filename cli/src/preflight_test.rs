//! What the host lacks, told before anything is started.

use std::fs;
use std::path::Path;

use strata_config::{Cable, Vlans};

use crate::preflight::{cable, file, kvm};

#[test]
fn files_and_folders_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("vmlinuz");
    let text = file("kernel", &path).unwrap_err().to_string();
    assert_eq!(text, format!("kernel = {}: no such file", path.display()));
    fs::write(&path, "").unwrap();
    file("kernel", &path).unwrap();
    let text = file("kernel", folder.path()).unwrap_err().to_string();
    assert!(text.ends_with("is a folder, not a file"), "{text}");
}

#[test]
fn cables_are_interfaces_of_their_kind() {
    let interfaces = tempfile::tempdir().unwrap();
    for (name, attribute) in
        [("eth0", "mtu"), ("tap0", "tun_flags"), ("macvtap0", "macvtap"), ("br0", "bridge")]
    {
        fs::create_dir(interfaces.path().join(name)).unwrap();
        fs::write(interfaces.path().join(name).join(attribute), "").unwrap();
    }
    let look = |plug: Cable| cable("net0", &plug, interfaces.path()).map_err(|error| error.to_string());
    let bridge = |name: &str| Cable::Bridge { name: name.into(), vlans: Vlans::default() };
    for good in ["tap0", "macvtap0", "tap-to-be"] {
        look(Cable::Tap(good.into())).unwrap();
    }
    look(bridge("br0")).unwrap();
    look(Cable::Macvtap("eth0".into())).unwrap();
    let refused = |plug: Cable, words: &str| {
        let text = look(plug).unwrap_err();
        assert!(text.starts_with(words), "{text}");
    };
    refused(Cable::Tap("eth0".into()), "net0: tap = eth0: that interface is no tap");
    refused(bridge("eth0"), "net0: bridge = eth0: that interface is no bridge; make one");
    refused(bridge("br1"), "net0: bridge = br1: no such interface");
    refused(Cable::Macvtap("eth1".into()), "net0: macvtap = eth1: no such interface");
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    let text = kvm(Path::new("/dev/no-such-kvm")).unwrap_err().to_string();
    assert!(text.starts_with("there is no /dev/kvm: load kvm_intel or kvm_amd"), "{text}");
    kvm(Path::new("/dev/null")).unwrap();
}
