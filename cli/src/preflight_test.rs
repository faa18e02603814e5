//! What the host lacks, told before anything is started.

use std::fs;
use std::path::Path;

use crate::preflight::{file, kvm, tap};

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
fn a_tap_is_an_interface_with_tun_flags() {
    let interfaces = tempfile::tempdir().unwrap();
    for (name, attribute) in [("eth0", "mtu"), ("tap0", "tun_flags"), ("macvtap0", "macvtap")] {
        fs::create_dir(interfaces.path().join(name)).unwrap();
        fs::write(interfaces.path().join(name).join(attribute), "").unwrap();
    }
    tap("net0: tap", "tap0", interfaces.path()).unwrap();
    tap("net0: tap", "macvtap0", interfaces.path()).unwrap();
    let text = tap("net0: tap", "tap1", interfaces.path()).unwrap_err().to_string();
    assert_eq!(text, "net0: tap = tap1: no such interface; make it with `ip tuntap add tap1 mode tap`");
    let text = tap("net0: tap", "eth0", interfaces.path()).unwrap_err().to_string();
    assert_eq!(
        text,
        "net0: tap = eth0: that interface is no tap; make one with `ip tuntap add NAME mode tap`"
    );
}

#[test]
fn a_host_without_kvm_is_told_what_to_do() {
    let text = kvm(Path::new("/dev/no-such-kvm")).unwrap_err().to_string();
    assert!(text.starts_with("there is no /dev/kvm: load kvm_intel or kvm_amd"), "{text}");
    kvm(Path::new("/dev/null")).unwrap();
}
