//! `strata upgrade`: another version takes a backend's place, or the old one stays.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::launcher::{Launcher, Place, no_kvm, stderr, wait_for};

const DISK: [&str; 4] = ["--name", "m", "--disk", "path=disk.img"];

/// Another version of vhost-blk is installed, with files beside it that say how it differs.
fn install(place: &Place, name: &str, beside: &[(&str, &str)]) {
    let copy = place.path(name);
    fs::copy(fs::canonicalize(place.path("libexec/vhost-blk")).unwrap(), &copy).unwrap();
    for (suffix, content) in beside {
        fs::write(place.path(&format!("{name}.{suffix}")), content).unwrap();
    }
    fs::remove_file(place.path("libexec/vhost-blk")).unwrap();
    symlink(copy, place.path("libexec/vhost-blk")).unwrap();
}

fn start(place: &Place) -> (Launcher<'_>, i32) {
    let mut launcher = Launcher::start(place, &DISK, &[]);
    let pid = launcher.pid_of("m", "disk0");
    connected(place);
    (launcher, pid)
}

fn connected(place: &Place) {
    wait_for("the disk", || {
        let output = place.output(&["ps", "--output", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        (list[0]["devices"][0]["state"] == "connected").then_some(())
    });
}

fn upgrade(place: &Place, more: &[&str]) -> (Option<i32>, Value, String) {
    let mut args = vec!["upgrade", "m", "--output", "json"];
    args.extend(more);
    let output = place.output(&args);
    let reports = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code(), reports, stderr(&output))
}

/// The file a process executes.
fn program(pid: i32) -> String {
    fs::read_link(format!("/proc/{pid}/exe")).unwrap().display().to_string()
}

#[test]
fn the_installed_version_takes_the_place_and_a_death_does_not() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let (mut launcher, first) = start(&place);
    let socket = fs::metadata(place.path("run/.m.launcher")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    let (code, reports, said) = upgrade(&place, &[]);
    assert_eq!((code, &reports[0]["outcome"]), (Some(0), &Value::from("current")), "{said}");
    assert_eq!(launcher.pid_of("m", "disk0"), first);

    install(&place, "other", &[("version", "2")]);
    // A death brings the old version back, whatever is installed by now.
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let second = wait_for("the next", || Some(launcher.pid_of("m", "disk0")).filter(|pid| *pid != first));
    assert!(!program(second).ends_with("/other"), "{}", program(second));
    connected(&place);

    let (code, reports, said) = upgrade(&place, &["disk0"]);
    assert_eq!((code, &reports[0]["outcome"]), (Some(0), &Value::from("replaced")), "{said}{reports}");
    assert_eq!((&reports[0]["from"], &reports[0]["to"]), (&"vhost-blk 1".into(), &"vhost-blk 2".into()));
    assert!(reports[0]["stall_milliseconds"].as_f64() >= reports[0]["drain_milliseconds"].as_f64());
    let third = launcher.pid_of("m", "disk0");
    assert!(program(third).ends_with("/other"));
    connected(&place);
    let (code, reports, _) = upgrade(&place, &["--again"]);
    assert_eq!((code, &reports[0]["outcome"]), (Some(0), &Value::from("replaced")));
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    assert!(
        launcher.err().contains("strata: disk0: vhost-blk 1 replaced by vhost-blk 2\n"),
        "{}",
        launcher.err()
    );
    launcher.nothing_is_left();
}

#[test]
fn a_version_that_says_it_can_do_less_is_refused_before_anything_is_touched() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let (mut launcher, first) = start(&place);
    install(&place, "less", &[("capabilities", r#"{"type":"block","features":["blk-file"]}"#)]);
    let (code, reports, said) = upgrade(&place, &[]);
    assert_eq!((code, &reports[0]["outcome"]), (Some(1), &Value::from("kept")));
    let reason = reports[0]["reason"].as_str().unwrap();
    assert_eq!(reason, "the installed vhost-blk (vhost-blk 1) offers less: it lacks read-only");
    assert!(said.ends_with("strata: not replaced: disk0\n"), "{said}");
    assert_eq!(launcher.pid_of("m", "disk0"), first);
    install(&place, "nonsense", &[("capabilities", "{")]);
    let (_, reports, _) = upgrade(&place, &[]);
    assert!(reports[0]["reason"].as_str().unwrap().contains("--print-capabilities prints cannot be read"));
    assert_eq!(launcher.pid_of("m", "disk0"), first);
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
}

#[test]
fn a_version_that_the_vmm_refuses_gives_way_to_the_old_one() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let (mut launcher, first) = start(&place);
    install(&place, "smaller", &[("smaller", "")]);
    let (code, reports, said) = upgrade(&place, &[]);
    assert_eq!((code, &reports[0]["outcome"]), (Some(1), &Value::from("kept")), "{said}");
    let reason = reports[0]["reason"].as_str().unwrap();
    assert!(reason.ends_with("refused: the backend that returned is smaller"), "{reason}");
    let now = launcher.pid_of("m", "disk0");
    assert!(now != first && !program(now).ends_with("/smaller"), "{}", program(now));
    connected(&place);
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn what_cannot_be_upgraded_is_said() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let (mut launcher, _) = start(&place);
    let (code, _, said) = upgrade(&place, &["disk7"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("the launcher runs no backend for disk7; it runs those of: disk0"), "{said}");
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    let (code, _, said) = upgrade(&place, &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no machine named m runs"), "{said}");
}
