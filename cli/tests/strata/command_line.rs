//! Command lines and machine files: what is refused, in which words, with which status.

use std::fs;

use crate::launcher::{Place, no_kvm, stderr, stdout};

/// Runs, expects this status and these words on standard error.
fn refused(place: &Place, args: &[&str], status: i32, words: &[&str]) {
    let output = place.output(args);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(status), "{args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{args:?}: {word:?} is not in\n{text}");
    }
    assert!(output.stdout.is_empty(), "{args:?}");
    assert!(place.is_empty(), "{args:?} left something");
}

#[test]
fn wrong_flags_end_with_2_and_say_what_is_allowed() {
    let place = Place::new();
    for (args, words) in [
        (&[][..], &["Usage: strata <COMMAND>"][..]),
        (&["rum"], &["unrecognized subcommand 'rum'", "'run'"]),
        (&["run", "--kernal", "x"], &["unexpected argument '--kernal'", "'--kernel'"]),
        (&["run", "--cpus", "four"], &["invalid value 'four' for '--cpus <N>'"]),
        (&["run"], &["strata: kernel is missing: give a bzImage or vmlinux with --kernel FILE"]),
        (&["run", "--kernel", "vmlinuz", "--cpus", "0"], &["strata: cpus = 0: must be 1 to 255"]),
        (&["run", "--kernel", "vmlinuz", "--cpus", "-2"], &["strata: cpus = -2: must be 1 to 255"]),
        (
            &["run", "--kernel", "vmlinuz", "--memory", "1GB"],
            &["memory = \"1GB\": must be a whole number with K, M, G"],
        ),
        (&["run", "--kernel", "vmlinuz", "--name", "A"], &["name = \"A\": must be 1 to 64 characters"]),
        (
            &["run", "--kernel", "vmlinuz", "--disk", "pth=disk.img"],
            &["invalid value 'pth=disk.img'", "unknown key `pth`, did you mean `path`?"],
        ),
        (
            &["run", "--kernel", "vmlinuz", "--disk", "path=disk.img,queues=0"],
            &["disk[0].queues = 0: must be 1 to 64"],
        ),
        (
            &["run", "--kernel", "vmlinuz", "--net", "mac=x"],
            &["net[0]: needs `tap`, `bridge`, `macvtap`, `switch` or `socket`"],
        ),
        (
            &["run", "--kernel", "vmlinuz", "--device", "socket=s,type=rgn"],
            &["device[0].type = \"rgn\"", "did you mean rng?"],
        ),
        (
            &["run", "--kernel", "vmlinuz", "--console", "tty"],
            &["console = \"tty\": must be stdio, off, pty or file=PATH"],
        ),
        (&["run", "nowhere.toml"], &["cannot read the machine file nowhere.toml: No such file or directory"]),
        (&["stop", "../x"], &["invalid value '../x' for '<NAME>'", "must be 1 to 64 characters"]),
        (&["stop", "x", "--now", "--timeout", "3"], &["cannot be used with"]),
        (&["exits", "x", "--for", "1h"], &["invalid value '1h' for '--for <TIME>'", "must be 100ms to 60m"]),
        (&["exits", "x", "--for", "50ms"], &["must be 100ms to 60m"]),
        (&["top", "--interval", "-1"], &["unexpected argument '-1'"]),
        (&["check", "nowhere.toml"], &["cannot read the machine file nowhere.toml"]),
        (&["ps", "--output", "yaml"], &["invalid value 'yaml'", "text, json"]),
    ] {
        refused(&place, args, 2, words);
    }
}

#[test]
fn wrong_files_end_with_2() {
    let place = Place::new();
    for (text, words) in [
        ("kernel = \"vmlinuz\"\ncpu = 2", &["unknown key `cpu`, did you mean `cpus`?"][..]),
        ("kernel = vmlinuz", &["not valid TOML", "line 1"]),
        (
            "kernel = \"vmlinuz\"\n[[disk]]\npath = \"disk.img\"\nreadonly = \"yes\"",
            &["disk[0].readonly = \"yes\": must be true or false"],
        ),
    ] {
        fs::write(place.path("m.toml"), text).unwrap();
        refused(&place, &["run", "m.toml"], 2, words);
    }
}

#[test]
fn what_the_host_lacks_ends_with_1() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let kernel = place.text("vmlinuz");
    for (args, words) in [
        (&["--kernel", "nowhere"][..], "nowhere: no such file"),
        (&["--kernel", "/"], "kernel = /: is a folder, not a file"),
        (&["--kernel", &kernel, "--initrd", "no"], "no: no such file"),
        (&["--kernel", &kernel, "--disk", "path=no.img"], "no.img: no such file"),
        (&["--kernel", &kernel, "--disk", "socket=no.sock"], "no.sock: no such file"),
        (
            &["--kernel", &kernel, "--net", "bridge=strata-none"],
            "net0: bridge = strata-none: no such interface",
        ),
        (&["--kernel", &kernel, "--net", "tap=lo"], "net0: tap = lo: that interface is no tap"),
    ] {
        let mut all = vec!["run"];
        all.extend(args);
        refused(&place, &all, 1, &[words]);
    }
    let long = "n".repeat(64);
    fs::create_dir(place.path(&long)).unwrap();
    let output = place
        .strata(&["run", "--kernel", "vmlinuz", "--name", &long])
        .env("STRATA_RUN_DIR", place.path(&long))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("is longer than the 107 bytes the kernel takes"), "{}", stderr(&output));
    let output = place
        .strata(&["run", "--kernel", "vmlinuz"])
        .env("STRATA_LIBEXEC", place.path("nowhere"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot find the program vmm"), "{}", stderr(&output));
}

#[test]
fn machines_that_do_not_run_are_said_so() {
    let place = Place::new();
    for args in [
        &["stop", "web"][..],
        &["pause", "web"],
        &["resume", "web"],
        &["reboot", "web"],
        &["console", "web"],
        &["status", "web"],
    ] {
        refused(&place, args, 1, &["strata: no machine named web runs; none runs under"]);
    }
    let output = place.output(&["ps", "--output", "json"]);
    assert_eq!((output.status.code(), stdout(&output).as_str()), (Some(0), "[]\n"));
    let output = place.output(&["ps"]);
    assert_eq!(stdout(&output), "NAME  STATE  CPUS  MEMORY  BACKING  PROFILE  SANDBOX  DEVICES  PIDS\n");
}

#[test]
fn help_shows_examples_and_every_flag() {
    let place = Place::new();
    let text = stdout(&place.output(&["--help"]));
    for word in ["strata run --kernel vmlinuz", "Exit status:", "STRATA_RUN_DIR", "Ctrl-] leaves"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
    let text = stdout(&place.output(&["run", "--help"]));
    for word in ["--disk <KEY=VALUE,...>", "--no-reboot", "--stop-timeout", "[[disk]]", "Ctrl-] then q"] {
        assert!(text.contains(word), "{word}\n{text}");
    }
}

#[test]
fn completions_know_the_commands() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let output = place.output(&["completions", shell]);
        assert!(output.status.success());
        assert!(stdout(&output).contains("no-reboot"), "{shell}");
    }
}

#[test]
fn check_says_what_is_there_and_its_status_is_the_worst_line() {
    let place = Place::new();
    fs::write(place.path("web.toml"), "kernel = \"nowhere\"\ncpus = 1\nmemory = \"64M\"").unwrap();
    let output = place.output(&["check", "--json", "web.toml"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = report["lines"].as_array().unwrap();
    let line = |topic: &str| lines.iter().find(|line| line["topic"] == topic).unwrap();
    assert_eq!((output.status.code(), &report["status"]), (Some(2), &"not_ready".into()));
    // What the kernel shall be is not there; the programs of this place are.
    assert_eq!(line("machine web")["level"], "not_ready");
    assert!(line("machine web")["found"].as_str().unwrap().ends_with("nowhere: no such file"));
    assert_eq!(line("programs")["level"], "ready");
    let text = stdout(&place.output(&["check", "web.toml"]));
    assert!(text.contains("\nNOT READY  machine web"), "{text}");
    for line in lines {
        let (level, topic) = (line["level"].as_str().unwrap(), line["topic"].as_str().unwrap());
        assert!(level != "not_ready" || text.contains(&format!("NOT READY  {topic}")), "{topic}");
    }
    assert!(place.is_empty());
}
