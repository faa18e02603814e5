//! The commands that talk to a running machine.

use std::io::{Read, Write};
use std::process::Stdio;

use crate::launcher::{Launcher, Place, no_kvm, profile, stderr, stdout, wait_for};

fn running<'a>(place: &'a Place, environment: &[(&str, &str)]) -> Launcher<'a> {
    let args = ["--name", "web", "--disk", "path=disk.img", "--memory", "64M", "--stop-timeout", "1"];
    let launcher = Launcher::start(place, &args, environment);
    wait_for("the machine", || {
        let output = place.output(&["ps", "--output", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (list[0]["devices"][0]["state"] == "connected").then_some(())
    });
    launcher
}

#[test]
fn ps_and_status_show_the_machine() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = running(&place, &[]);
    let (vmm, disk) = (launcher.pid_of("web", "vmm"), launcher.pid_of("web", "disk0"));
    let mut list: serde_json::Value =
        serde_json::from_slice(&place.output(&["ps", "--output", "json"]).stdout).unwrap();
    for process in list[0]["processes"].as_array_mut().unwrap() {
        let sandbox = process.as_object_mut().unwrap().remove("sandbox").unwrap();
        assert_eq!(sandbox["locked"], false, "the stand-ins have no sandbox: {sandbox}");
        assert!(sandbox["gaps"].as_array().unwrap().contains(&"no system call filter".into()), "{sandbox}");
    }
    let profile = profile();
    let expected = serde_json::json!([{
        "name": "web",
        "state": "running",
        "pid": launcher.pid(),
        "cpus": 1,
        "memory_bytes": 64 << 20,
        "memory_backing": "fake",
        "degraded": false,
        "degraded_because": [],
        "devices": [{
            "id": "disk0", "kind": "block", "state": "connected", "queues": 1, "pid": disk,
            "trouble": null, "stalled_milliseconds": 0, "slot": null, "leaving": false,
            "supervision": {
                "restarts": 0, "hangs": 0, "upgrades": 0, "last_death": null, "waits_milliseconds": null,
            },
        }],
        "profile": profile,
        "processes": [{"id": "vmm", "pid": vmm}, {"id": "disk0", "pid": disk}],
    }]);
    assert_eq!(list, expected);
    let table = stdout(&place.output(&["ps"]));
    let pids = format!("strata={} vmm={vmm} disk0={disk}", launcher.pid());
    assert!(table.lines().nth(1).unwrap().ends_with(&pids), "{table}");
    assert!(table.contains(&format!(" fake     {profile:<7}  OPEN(vmm,disk0)  disk0 ")), "{table}");
    let status: serde_json::Value =
        serde_json::from_slice(&place.output(&["status", "web", "--output", "json"]).stdout).unwrap();
    assert_eq!(status["statistics"]["vm"]["exits"], 7);
    assert_eq!(status["name"], "web");
    assert!(
        stdout(&place.output(&["status", "web"])).contains("disk0          block, connected, 1 queues\n")
    );
}

#[test]
fn pause_and_resume_change_the_state_and_refusals_are_told() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let _launcher = running(&place, &[]);
    let state = || {
        stdout(&place.output(&["ps"])).lines().nth(1).unwrap().split_whitespace().nth(1).unwrap().to_owned()
    };
    assert!(place.output(&["pause", "web"]).status.success());
    assert_eq!(state(), "paused");
    assert!(place.output(&["resume", "web"]).status.success());
    assert_eq!(state(), "running");
    let refused = place.output(&["reboot", "web"]);
    assert_eq!(
        (refused.status.code(), stderr(&refused).as_str()),
        (Some(1), "strata: the fake does not reboot\n")
    );
    let unknown = place.output(&["pause", "wbe"]);
    assert_eq!(stderr(&unknown), "strata: no machine named wbe runs; running: web\n");
}

#[test]
fn stop_waits_until_the_machine_is_gone() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    for args in [&["stop", "web"][..], &["stop", "web", "--now"]] {
        let mut launcher = running(&place, &[]);
        let output = place.output(args);
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stderr(&output), "");
        assert!(place.is_empty());
        assert!(launcher.wait().success(), "{}", launcher.err());
    }
}

#[test]
fn stop_ends_a_guest_that_does_not_listen() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    // The first waits for the machine's own stop_timeout, the second for the flag's.
    for (args, seconds) in [(&["stop", "web"][..], "1"), (&["stop", "web", "--timeout", "0"], "0")] {
        let mut launcher = running(&place, &[("FAKE_VMM", "deaf")]);
        let output = place.output(args);
        assert!(output.status.success(), "{}", stderr(&output));
        let words = format!("strata: web did not power off within {seconds} s; ending it\n");
        assert_eq!(stderr(&output), words);
        assert!(launcher.wait().success(), "{}", launcher.err());
        assert!(place.is_empty());
    }
}

#[test]
fn stop_now_ends_a_machine_whose_vmm_does_not_answer() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &["--name", "web"], &[("FAKE_VMM", "mute")]);
    launcher.pid_of("web", "vmm");
    let list = stdout(&place.output(&["ps"]));
    let row = format!("web   unresponsive  -     -       -        {:<7}  OPEN(vmm)  -", profile());
    assert!(list.contains(&row), "{list}");
    let output = place.output(&["stop", "web"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot press the power button; --now ends it: no machine answers at"));
    assert!(place.output(&["stop", "web", "--now"]).status.success());
    assert_eq!(launcher.wait().code(), Some(1));
    launcher.nothing_is_left();
}

#[test]
fn a_console_can_be_attached_to() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = running(&place, &[]);
    let mut command = place.strata(&["console", "web"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut console = command.spawn().unwrap();
    let mut stdin = console.stdin.take().unwrap();
    let mut stdout = console.stdout.take().unwrap();
    stdin.write_all(b"hello\n").unwrap();
    let mut text = [0; 19];
    stdout.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"fake console\nHELLO\n");
    // Through the other console, the machine's end is seen.
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success());
    let output = console.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(stderr(&output).ends_with("strata: the machine's console ended\n"), "{}", stderr(&output));
}

#[test]
fn exits_and_top_show_what_there_is_and_say_what_is_not() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let _launcher = running(&place, &[]);
    let json = |args: &[&str]| -> serde_json::Value {
        let output = place.output(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    // The fake has no vCPUs and counts nothing.
    let window = json(&["exits", "web", "--for", "100ms", "--output", "json"]);
    assert_eq!(window["name"], "web");
    assert!(window["seconds"].as_f64().unwrap() >= 0.1, "{window}");
    assert!(window["exits"].is_null() && window["io"].is_null(), "{window}");
    let text = stdout(&place.output(&["exits", "web", "--for", "100ms"]));
    assert!(text.contains("per I/O: not available: no disk's backend counts\n"), "{text}");
    let snapshot = json(&["top", "--interval", "200ms", "--output", "json"]);
    let machine = &snapshot["machines"][0];
    assert_eq!((&machine["name"], &machine["state"]), (&"web".into(), &"running".into()));
    let ids: Vec<_> =
        machine["processes"].as_array().unwrap().iter().map(|it| it["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["strata", "vmm", "disk0"]);
    assert!(machine["processes"][1]["own_bytes"].as_u64().unwrap() > 0, "{machine}");
    assert_eq!(machine["devices"][0]["state"], "connected");
    // No terminal: one snapshot, as text.
    let table = stdout(&place.output(&["top", "--interval", "200ms"]));
    assert!(table.starts_with("1 machines, ") && table.contains("\nweb      disk0   block"), "{table}");
    let unknown = place.output(&["exits", "wbe"]);
    assert_eq!(stderr(&unknown), "strata: no machine named wbe runs; running: web\n");
}

#[test]
fn reload_wants_a_file_and_refuses_a_wrong_one() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let _launcher = running(&place, &[]);
    let unnamed = place.output(&["reload", "web"]);
    let words = "strata: web runs under `strata run`; name its file: strata reload web FILE\n";
    assert_eq!((unnamed.status.code(), stderr(&unnamed).as_str()), (Some(1), words));
    let reload = |text: &str| {
        std::fs::write(place.path("web.toml"), text).unwrap();
        place.output(&["reload", "web", "web.toml"])
    };
    let wrong = reload("kernel = 'vmlinuz'\ncpus = 'many'\n");
    assert_eq!(wrong.status.code(), Some(2));
    assert!(stderr(&wrong).contains("cpus"), "{}", stderr(&wrong));
    // The disk came by a flag: for the file, it is gone.
    let done = reload("kernel = 'vmlinuz'\nmemory = '64M'\ncpus = 2\nstop_timeout = 1\n");
    let expected = "other than when web started, and not in force before `strata stop web, then strata run`: cpus, disk \
        (disk0 before, none now)";
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert!(stdout(&done).starts_with(expected), "{}", stdout(&done));
}
