//! The launcher's processes: started with the right arguments, started again when they die, ended when it ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launcher::{Launcher, Place, alive, no_kvm, profile, wait_for};

const DISK: [&str; 4] = ["--name", "m", "--disk", "path=disk.img"];

fn kill_pid(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// What the vmm says of disk0.
fn disk_state(place: &Place) -> Option<String> {
    let output = place.output(&["ps", "--output", "json"]);
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    Some(list[0]["devices"][0]["state"].as_str()?.to_owned())
}

#[test]
fn the_console_is_the_terminal_and_the_end_is_the_guests() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[]);
    launcher.wait_for_out("fake console\n");
    let (vmm, disk) = (launcher.pid_of("m", "vmm"), launcher.pid_of("m", "disk0"));
    assert!(alive(vmm) && alive(disk));
    // No terminal, so Ctrl-] is a byte like others.
    launcher.type_in("h\u{e9}llo\x03\x1dq\n");
    launcher.wait_for_out("H\u{e9}LLO\x03\x1dQ\n");
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    assert!(launcher.out().ends_with("POWEROFF\n"), "{:?}", launcher.out());
    launcher.nothing_is_left();
}

#[test]
fn the_end_of_standard_input_is_not_the_end_of_the_machine() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[]);
    drop(launcher.stdin.take());
    launcher.wait_for_out("fake console\n");
    wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
    launcher.signal(Signal::SIGTERM);
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn programs_get_their_arguments() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    // How long to look is said, or it would depend on whether this host is itself a guest.
    let disk = "path=disk.img,readonly,serial=-S 1,queues=3,id=root,poll_us=20";
    let mut launcher =
        Launcher::start(&place, &["--name", "m", "--disk", disk, "--cpus", "4", "--no-sandbox"], &[]);
    launcher.wait_for_out("fake console\n");
    let folder = place.path("run/m");
    assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(fs::metadata(folder.join("root.sock")).unwrap().permissions().mode() & 0o777, 0o600);
    let args = wait_for("vhost-blk", || place.args_of("vhost-blk").pop().filter(|args| !args.is_empty()));
    assert_eq!(fs::metadata(folder.join("root.control")).unwrap().permissions().mode() & 0o777, 0o600);
    let expected = format!(
        "--blk-file\n{}\n--num-queues\n3\n--poll\n20\n--read-only\n--serial=-S 1\n--control-fd\n",
        place.text("disk.img")
    );
    assert!(args.starts_with(&expected) && args.contains("\n--fd\n"), "{args}");
    assert!(args.ends_with("--no-sandbox"), "{args}");
    let args = place.args_of("vmm").pop().unwrap();
    let expected = format!("--run-dir\n{}\n--console-fd\n", folder.display());
    assert!(args.starts_with("--machine\n/dev/fd/") && args.contains(&expected), "{args}");
    launcher.wait_for_err("WITHOUT their sandboxes");
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success());
}

#[test]
fn a_file_runs_with_flags_over_it() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let file =
        "kernel = \"nowhere\"\ncpus = 3\nmemory = 64\nconsole = \"off\"\n[[disk]]\npath = \"disk.img\"";
    fs::write(place.path("web.toml"), file).unwrap();
    let mut launcher = Launcher::start(&place, &["web.toml", "--memory", "1G"], &[]);
    let row = wait_for("the machine", || {
        let output = place.output(&["ps"]);
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().nth(1).filter(|row| row.contains("running")).map(str::to_owned)
    });
    let expected = format!("web   running  3     1G      fake     {:<7}  OPEN(vmm,disk0)  disk0", profile());
    assert!(row.starts_with(&expected), "{row}");
    assert!(!place.args_of("vmm").pop().unwrap().contains("--console-fd"));
    launcher.signal(Signal::SIGTERM);
    assert!(launcher.wait().success(), "{}", launcher.err());
}

#[test]
fn sigterm_presses_the_power_button() {
    if no_kvm() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let place = Place::new();
        let mut launcher = Launcher::start(&place, &DISK, &[]);
        launcher.pid_of("m", "disk0");
        wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
        launcher.signal(signal);
        assert!(launcher.wait().success(), "{}", launcher.err());
        assert!(launcher.err().contains("strata: pressing the power button; the guest has 30 s"));
        launcher.nothing_is_left();
    }
}

#[test]
fn a_guest_that_does_not_power_off_is_killed_in_the_end() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut args = DISK.to_vec();
    args.extend(["--stop-timeout", "300ms"]);
    let mut launcher = Launcher::start(&place, &args, &[("FAKE_VMM", "deaf")]);
    launcher.pid_of("m", "vmm");
    wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
    launcher.signal(Signal::SIGTERM);
    assert_eq!(launcher.wait().code(), Some(1));
    assert!(
        launcher.err().ends_with("strata: the guest did not power off within 0.3 s; killed\n"),
        "{}",
        launcher.err()
    );
    launcher.nothing_is_left();
}

#[test]
fn a_second_signal_kills() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[("FAKE_VMM", "deaf")]);
    launcher.pid_of("m", "vmm");
    wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
    launcher.signal(Signal::SIGTERM);
    launcher.wait_for_err("a second signal kills");
    launcher.signal(Signal::SIGTERM);
    assert_eq!(launcher.wait().code(), Some(1));
    assert!(launcher.err().contains("killed before the guest had powered off"), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_vmm_that_cannot_be_asked_is_ended_at_once() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &["--name", "m"], &[("FAKE_VMM", "mute")]);
    launcher.pid_of("m", "vmm");
    launcher.signal(Signal::SIGTERM);
    assert_eq!(launcher.wait().code(), Some(1));
    assert!(
        launcher.err().contains("cannot press the power button: no machine answers at"),
        "{}",
        launcher.err()
    );
    launcher.nothing_is_left();
}

#[test]
fn a_backend_that_dies_is_started_again_and_finds_its_clients() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[]);
    let mut pid = launcher.pid_of("m", "disk0");
    for _ in 0..2 {
        wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
        kill_pid(pid, Signal::SIGKILL);
        let old = pid;
        pid = wait_for("the next one", || Some(launcher.pid_of("m", "disk0")).filter(|pid| *pid != old));
    }
    wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
    let event = "strata: disk0: vhost-blk died (killed by SIGKILL)";
    assert_eq!(launcher.err().matches(event).count(), 2, "{}", launcher.err());
    // At once the first time; a second death so soon has to wait a moment.
    assert!(launcher.err().contains("died (killed by SIGKILL); starting it again\n"), "{}", launcher.err());
    assert_eq!(place.args_of("vhost-blk").len(), 3);
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_backend_that_fails_at_its_start_ends_the_machine_and_is_quoted() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let words = "fail:vhost-blk: disk.img is in use by process 7";
    let mut launcher = Launcher::start(&place, &DISK, &[("FAKE_BACKEND", words)]);
    assert_eq!(launcher.wait().code(), Some(1));
    let text = launcher.err();
    assert!(text.contains("[disk0] vhost-blk: disk.img is in use by process 7\n"), "{text}");
    let last = "strata: disk0: vhost-blk failed: exit status 1: vhost-blk: disk.img is in use by process 7\n";
    assert!(text.ends_with(last), "{text}");
    launcher.nothing_is_left();
}

#[test]
fn a_backend_that_refuses_its_flags_is_quoted_without_the_advice() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let disk = ["--name", "m", "--disk", "path=disk.img,format=qcow2"];
    let mut launcher = Launcher::start(&place, &disk, &[("FAKE_BACKEND", "refuse:no qcow2 here")]);
    assert_eq!(launcher.wait().code(), Some(1));
    let text = launcher.err();
    assert!(text.ends_with("strata: disk0: vhost-blk failed: exit status 2: no qcow2 here\n"), "{text}");
    assert!(place.args_of("vhost-blk").pop().unwrap().contains("--format\nqcow2\n"));
    launcher.nothing_is_left();
}

#[test]
fn a_backend_that_keeps_dying_is_waited_for_and_the_machine_is_degraded() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[("FAKE_BACKEND", "flap")]);
    // What it said reached the terminal without its colours; the waits grow.
    launcher.wait_for_err("died (exit status 3: \u{fffd}[31mfake crash); starting it again\n");
    launcher.wait_for_err("soon after its start; starting it again in 0.1 s\n");
    launcher.wait_for_err("soon after its start; starting it again in 2 s\n");
    let listed = wait_for("a degraded machine", || {
        let output = place.output(&["ps", "--output", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        (list[0]["degraded"] == true).then(|| list[0].clone())
    });
    let because = listed["degraded_because"][0].as_str().unwrap();
    assert!(because.starts_with("disk0: its backend is gone (exit status 3"), "{because}");
    assert!(listed["devices"][0]["supervision"]["restarts"].as_u64().unwrap() >= 4, "{listed}");
    let text = String::from_utf8(place.output(&["ps"]).stdout).unwrap();
    assert!(text.contains("running (degraded)"), "{text}");
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_backend_that_is_stopped_for_good_is_killed_and_one_that_goes_on_is_not() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut args = DISK.to_vec();
    args.extend(["--backend", "hung_after=4s"]);
    let mut launcher = Launcher::start(&place, &args, &[]);
    let first = launcher.pid_of("m", "disk0");
    wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
    kill_pid(first, Signal::SIGSTOP);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    kill_pid(first, Signal::SIGCONT);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    assert_eq!(launcher.pid_of("m", "disk0"), first, "{}", launcher.err());
    kill_pid(first, Signal::SIGSTOP);
    launcher.wait_for_err(&format!("disk0: vhost-blk (process {first}) hangs: it is stopped; killing it\n"));
    wait_for("the next one", || Some(launcher.pid_of("m", "disk0")).filter(|pid| *pid != first));
    wait_for("the disk", || disk_state(&place).filter(|state| state == "connected"));
    let output = place.output(&["status", "m", "--output", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["devices"][0]["supervision"]["hangs"], 1, "{status}");
    assert_eq!(status["degraded"], false, "{status}");
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_vmm_that_fails_ends_the_machine_and_is_quoted() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[("FAKE_VMM", "fail:vmm: the guest panicked")]);
    assert_eq!(launcher.wait().code(), Some(1));
    let text = launcher.err();
    assert!(
        text.contains("strata: the machine failed: vmm: exit status 1: vmm: the guest panicked\n"),
        "{text}"
    );
    launcher.nothing_is_left();
}

#[test]
fn a_name_is_taken_while_its_launcher_lives() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut first = Launcher::start(&place, &DISK, &[]);
    first.wait_for_out("fake console");
    let mut second = Launcher::start(&place, &DISK, &[]);
    assert_eq!(second.wait().code(), Some(1));
    let words =
        format!("a machine named m runs already (process {}); stop it or give another --name", first.pid());
    assert!(second.err().contains(&words), "{}", second.err());
    let mut other = Launcher::start(&place, &["--name", "n"], &[]);
    other.wait_for_out("fake console");
    other.type_in("poweroff\n");
    assert!(other.wait().success());
    first.type_in("poweroff\n");
    assert!(first.wait().success());
    first.nothing_is_left();
}

#[test]
fn nothing_survives_a_killed_launcher_and_its_name_is_free_again() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &DISK, &[]);
    launcher.wait_for_out("fake console");
    let pids = [launcher.pid_of("m", "vmm"), launcher.pid_of("m", "disk0")];
    launcher.signal(Signal::SIGKILL);
    launcher.wait();
    wait_for("their end", || pids.iter().all(|pid| !alive(*pid)).then_some(()));
    assert!(place.path("run/m/control.sock").exists(), "the test shows nothing");
    assert_eq!(place.output(&["ps", "--output", "json"]).stdout, b"[]\n");
    let mut next = Launcher::start(&place, &DISK, &[]);
    next.wait_for_out("fake console");
    next.type_in("poweroff\n");
    assert!(next.wait().success(), "{}", next.err());
    next.nothing_is_left();
}

#[test]
fn processes_of_processes_are_ended_too() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &["--name", "m"], &[("FAKE_GRANDCHILD", "1")]);
    launcher.wait_for_out("fake console");
    let pid = launcher.pid_of("m", "grandchild");
    assert!(alive(pid));
    launcher.type_in("poweroff\n");
    assert!(launcher.wait().success(), "{}", launcher.err());
    launcher.nothing_is_left();
}

#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let script = format!(
        "trap '' HUP; exec {} run --kernel vmlinuz --name m --console off",
        env!("CARGO_BIN_EXE_strata")
    );
    let mut command = std::process::Command::new("sh");
    let strata = place.strata(&[]);
    command.args(["-c", &script]).current_dir(place.path(""));
    command.envs(strata.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut child = command.spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    wait_for("the machine", || {
        let output = place.output(&["ps"]);
        String::from_utf8(output.stdout).unwrap().contains("running").then_some(())
    });
    kill_pid(pid, Signal::SIGHUP);
    assert!(place.output(&["pause", "m"]).status.success());
    assert!(place.output(&["stop", "m"]).status.success());
    assert!(child.wait().unwrap().success());
}
