//! The units, looked at by systemd itself: how exposed each service is, and whether it understands every line.
//!
//! Needs systemd's tools, not a running systemd; without them each test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // tests

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// Service, the highest exposure it may have (0 to 10), in tenths as `--threshold` takes it.
const SCORES: &[(&str, u32)] =
    &[("vhost-blk", 5), ("strata-vm", 8), ("vhost-net", 15), ("strata-attach", 15)];

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("systemd/units")
}

fn analyze(arguments: &[&str], folder: &Path) -> Option<Output> {
    let mut command = Command::new("systemd-analyze");
    command.current_dir(folder).args(arguments).env("SYSTEMD_UNIT_PATH", format!("{}:", folder.display()));
    match command.output() {
        Ok(output) => Some(output),
        Err(_) => {
            println!("skipped: systemd-analyze is not installed (package systemd)");
            None
        }
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

#[test]
fn every_service_is_within_its_score() {
    for (unit, tenths) in SCORES {
        let (file, threshold) = (format!("./{unit}@.service"), tenths.to_string());
        let arguments = ["security", "--offline=true", "--no-pager", "--threshold", &threshold, &file];
        let Some(output) = analyze(&arguments, &units()) else { return };
        let said = text(&output);
        let exposure = said.lines().find(|line| line.contains("Overall exposure")).unwrap_or("").to_owned();
        println!("{exposure}");
        assert!(exposure.contains(unit), "no score for {unit}: {said}");
        assert!(output.status.success(), "{unit} is above {}: {said}", f64::from(*tenths) / 10.0);
    }
}

#[test]
fn the_score_notices_a_directive_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let unit = fs::read_to_string(units().join("vhost-blk@.service")).unwrap();
    let without: Vec<&str> = unit.lines().filter(|line| !line.starts_with("RestrictNamespaces")).collect();
    fs::write(dir.path().join("vhost-blk@.service"), without.join("\n")).unwrap();
    let arguments = ["security", "--offline=true", "--no-pager", "--threshold", "5", "./vhost-blk@.service"];
    let Some(output) = analyze(&arguments, dir.path()) else { return };
    assert!(!output.status.success(), "{}", text(&output));
}

/// The units with an instance each, and programs where they say they are.
fn instances() -> (TempDir, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let programs = dir.path().join("programs");
    fs::create_dir(&programs).unwrap();
    for program in ["vmm", "vhost-blk", "vhost-net", "strata", "nsenter"] {
        let path = programs.join(program);
        fs::write(&path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let mut names = Vec::new();
    for unit in fs::read_dir(units()).unwrap() {
        let unit = unit.unwrap();
        let name = unit.file_name().into_string().unwrap();
        let text = fs::read_to_string(unit.path()).unwrap();
        let text = text.replace("/usr/libexec/strata", programs.to_str().unwrap());
        let text = text.replace("/usr/bin", programs.to_str().unwrap());
        fs::write(dir.path().join(&name), &text).unwrap();
        let instance = name.replace('@', "@web-disk0");
        fs::write(dir.path().join(&instance), text).unwrap();
        names.push(instance);
    }
    (dir, names)
}

#[test]
fn systemd_understands_every_line() {
    let (dir, names) = instances();
    let arguments: Vec<&str> =
        ["verify", "--man=no"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let Some(output) = analyze(&arguments, dir.path()) else { return };
    assert!(output.status.success() && text(&output).is_empty(), "{}", text(&output));
}

#[test]
fn it_says_so_when_it_does_not() {
    let (dir, names) = instances();
    let unit = dir.path().join("vhost-blk@web-disk0.service");
    let text_of = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text_of.replace("PrivateTmp=", "PrivateTemp=")).unwrap();
    let arguments: Vec<&str> =
        ["verify", "--man=no"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let Some(output) = analyze(&arguments, dir.path()) else { return };
    assert!(text(&output).contains("PrivateTemp"), "{}", text(&output));
}
