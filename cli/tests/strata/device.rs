//! `strata device`: devices that come and go, their processes and their files.

use std::fs;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::launcher::{Launcher, Place, alive, no_kvm, stderr, wait_for};

const DISKS: [&str; 6] = ["--name", "m", "--disk", "path=disk.img", "--disk", "path=disk.img,id=data"];

/// The devices of the machine and their states, and the ids in machine.json.
fn devices(place: &Place) -> (Vec<(String, String)>, Vec<String>) {
    let output = place.output(&["ps", "--output", "json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let seen = list[0]["devices"].as_array().unwrap().iter();
    let seen = seen.map(|device| (text(&device["id"]), text(&device["state"]))).collect();
    let machine: Value =
        serde_json::from_slice(&fs::read(place.path("run/m/machine.json")).unwrap()).unwrap();
    let ids = machine["disk"].as_array().cloned().unwrap_or_default();
    (seen, ids.iter().map(|disk| text(&disk["id"])).collect())
}

fn start<'a>(place: &'a Place, environment: &[(&str, &str)]) -> Launcher<'a> {
    let launcher = Launcher::start(place, &DISKS, environment);
    launcher.wait_for_out("fake console\n");
    wait_for("the disks", || devices(place).0.iter().all(|(_, state)| state == "connected").then_some(()));
    launcher
}

fn device(place: &Place, words: &[&str]) -> (Option<i32>, String, String) {
    let output = place.output(&[&["device"], words].concat());
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), stderr(&output))
}

fn files_of(place: &Place, id: &str) -> Vec<String> {
    let names = fs::read_dir(place.path("run/m")).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&format!("{id}."))).collect()
}

#[test]
fn a_disk_goes_and_its_name_is_the_next_ones() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = start(&place, &[]);
    let pid = launcher.pid_of("m", "disk0");
    let (code, out, err) = device(&place, &["unplug", "m", "disk0"]);
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "disk0 of m is unplugged; its name can be used again\n"),
        "{err}"
    );
    assert!(!alive(pid) && files_of(&place, "disk0").is_empty());
    assert_eq!(devices(&place), (vec![("data".into(), "connected".into())], vec!["data".into()]));
    let (code, _, err) = device(&place, &["unplug", "m", "disk0"]);
    assert_eq!((code, err.contains("there is no device disk0")), (Some(1), true), "{err}");

    let disk = "path=disk.img,readonly";
    let (code, out, err) = device(&place, &["plug", "m", "--disk", disk, "--output", "json"]);
    let report: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{err}"));
    assert_eq!((code, &report["device"], &report["slot"]), (Some(0), &"disk0".into(), &9.into()));
    let expected = vec![("data".into(), "connected".into()), ("disk0".into(), "connected".into())];
    assert_eq!(devices(&place), (expected, vec!["data".into(), "disk0".into()]));
    let args = place.args_of("vhost-blk").pop().unwrap();
    assert!(
        args.starts_with(&format!("--blk-file\n{}\n", place.text("disk.img")))
            && args.contains("--read-only")
    );
    // It is started again like any other, and goes with the machine.
    let next = wait_for("its process", || Some(launcher.pid_of("m", "disk0")).filter(|next| *next != pid));
    kill(Pid::from_raw(next), Signal::SIGKILL).unwrap();
    wait_for("the next one", || {
        Some(launcher.pid_of("m", "disk0")).filter(|now| *now != next && alive(*now))
    });
    launcher.signal(Signal::SIGTERM);
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_guest_that_does_not_let_go_keeps_its_disk_unless_by_force() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = start(&place, &[("FAKE_VMM", "deaf")]);
    let pid = launcher.pid_of("m", "data");
    let (code, _, err) = device(&place, &["unplug", "m", "data", "--timeout", "0"]);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("has not let go of data within 0 s") && err.contains("unplug m data --force"),
        "{err}"
    );
    assert!(alive(pid) && devices(&place).1 == ["disk0", "data"]);
    let (code, out, err) = device(&place, &["unplug", "m", "data", "--force", "--timeout", "0"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("was taken away without its guest's consent"), "{out}");
    assert!(!alive(pid) && files_of(&place, "data").is_empty() && devices(&place).1 == ["disk0"]);
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success());
    launcher.nothing_is_left();
}

#[test]
fn what_cannot_be_plugged_in_leaves_everything_as_it_was() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = start(&place, &[]);
    for (keys, said) in [
        ("path=nowhere.img", "disk0: path"),
        ("path=disk.img,id=data", "another device has it"),
        ("path=disk.img,queues=99", "must be 1 to 64"),
        ("socket=/nowhere.sock,id=x", "the sandbox of its vmm shows it no other socket"),
    ] {
        let (code, _, err) = device(&place, &["plug", "m", "--disk", keys]);
        let said = said.replace("disk0", "disk1");
        assert!(code == Some(1) && err.contains(&said), "{keys}: {err}");
        assert_eq!(devices(&place).1, ["disk0", "data"], "{keys}");
    }
    // One that the vmm will not have, and one that dies before it had it.
    fs::copy(fs::canonicalize(place.path("libexec/vhost-blk")).unwrap(), place.path("other")).unwrap();
    fs::write(place.path("other.smaller"), "").unwrap();
    fs::remove_file(place.path("libexec/vhost-blk")).unwrap();
    std::os::unix::fs::symlink(place.path("other"), place.path("libexec/vhost-blk")).unwrap();
    let (code, _, err) = device(&place, &["plug", "m", "--disk", "path=disk.img"]);
    assert!(code == Some(1) && err.contains("the backend that returned is smaller"), "{err}");
    fs::remove_file(place.path("libexec/vhost-blk")).unwrap();
    std::os::unix::fs::symlink("/bin/false", place.path("libexec/vhost-blk")).unwrap();
    let (code, _, err) = device(&place, &["plug", "m", "--disk", "path=disk.img"]);
    assert!(code == Some(1) && err.contains("its process ended: exit status 1"), "{err}");
    assert!(files_of(&place, "disk1").is_empty());
    assert_eq!(devices(&place).1, ["disk0", "data"]);
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_vmm_that_dies_meanwhile_ends_the_waiting_and_all_the_rest() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = start(&place, &[("FAKE_VMM", "deaf")]);
    let vmm = launcher.pid_of("m", "vmm");
    launcher.pid_of("m", "data");
    let mut waits = place.strata(&["device", "unplug", "m", "data", "--timeout", "300"]);
    let waits = waits.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for("the request", || {
        let output = place.output(&["ps", "--output", "json"]);
        let list: Value = serde_json::from_slice(&output.stdout).unwrap();
        let devices = list[0]["devices"].as_array()?.clone();
        devices.iter().any(|device| device["leaving"] == true).then_some(())
    });
    kill(Pid::from_raw(vmm), Signal::SIGKILL).unwrap();
    let output = waits.wait_with_output().unwrap();
    let said = stderr(&output);
    assert!(output.status.code() == Some(1) && said.contains("cannot unplug data from m"), "{said}");
    assert!(!launcher.wait().success());
    launcher.nothing_is_left();
}
