use std::path::PathBuf;

use super::proc::judge;
use super::*;

#[test]
fn this_test_is_not_in_a_sandbox_and_the_audit_says_so() {
    let report = audit(std::process::id().cast_signed()).unwrap();
    assert!(!report.is_locked());
    assert!(report.gaps().iter().any(|gap| gap == "no system call filter") || report.seccomp != Seccomp::Off);
    assert!(report.namespaces.iter().all(|namespace| namespace.visibility == Visibility::Shared), "{report}");
    assert!(matches!(report.root, Root::Open(_)), "{report}");
}

#[test]
fn only_a_read_only_root_of_ours_is_empty() {
    let root = "1 0 0:50 / / ro,nosuid,nodev,noexec - tmpfs strata-root rw,size=64k\n";
    let bind = "2 1 0:22 /strata/a /run/strata/a ro,nosuid - tmpfs tmpfs rw\n";
    assert_eq!(judge(root), Root::Empty { binds: Vec::new() });
    assert_eq!(judge(&format!("{root}{bind}")), Root::Empty { binds: vec![PathBuf::from("/run/strata/a")] });
    assert!(matches!(judge(&root.replace("/ ro,", "/ rw,")), Root::Open(_)));
    assert!(matches!(judge(&root.replace("strata-root", "tmpfs")), Root::Open(_)));
    assert!(matches!(judge(&format!("{root}{}", bind.replace("ro,", "rw,"))), Root::Open(_)));
    assert!(matches!(judge("1 0 8:1 / / ro,relatime - ext4 /dev/sda1 rw\n"), Root::Open(_)));
    assert_eq!(judge(""), Root::Unknown);
}
