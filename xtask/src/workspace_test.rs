//! The workspace keeps its shape: arrows between crates point one way, and dependencies stay few.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Deserialize;
use strata_rig::{Place, tool};

/// Crates that build a program of Strata's. None may depend on another.
const PROGRAMS: &[&str] = &["strata-cli", "strata-vmm", "strata-vhost-blk", "strata-vhost-net"];
/// Crates the programs stand on. None may depend on a program.
const LOWER: &[&str] = &["strata-virtio", "strata-sandbox", "strata-ipc", "strata-config"];
const MOST_LOCKED_PACKAGES: usize = 210;
/// The style's wall: a longer file wants to be two.
const LONGEST_FILE: usize = 500;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
}

/// Workspace crate -> workspace crates it depends on, development dependencies left out.
fn arrows() -> BTreeMap<String, BTreeSet<String>> {
    let mut cargo = tool::command("cargo");
    cargo.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let text = tool::text(cargo.current_dir(Place::of_this_clone().root())).unwrap();
    let metadata: Metadata = serde_json::from_str(&text).unwrap();
    let ours: BTreeSet<String> = metadata.packages.iter().map(|package| package.name.clone()).collect();
    let depends = |package: &Package| {
        let real = package.dependencies.iter().filter(|it| it.kind.as_deref() != Some("dev"));
        real.map(|it| it.name.clone()).filter(|name| ours.contains(name)).collect()
    };
    metadata.packages.iter().map(|package| (package.name.clone(), depends(package))).collect()
}

#[test]
fn the_crates_we_speak_of_are_there() {
    let arrows = arrows();
    for name in PROGRAMS.iter().chain(LOWER) {
        assert!(arrows.contains_key(*name), "{name} is no crate of the workspace: {:?}", arrows.keys());
    }
}

#[test]
fn no_program_depends_on_another() {
    for (name, depends) in arrows().iter().filter(|(name, _)| PROGRAMS.contains(&name.as_str())) {
        for on in depends {
            assert!(LOWER.contains(&on.as_str()), "{name} depends on {on}; it may only on {LOWER:?}");
        }
    }
}

#[test]
fn lower_crates_do_not_know_the_upper_ones() {
    for (name, depends) in arrows().iter().filter(|(name, _)| LOWER.contains(&name.as_str())) {
        for on in depends {
            assert!(LOWER.contains(&on.as_str()), "{name} depends on {on}, which stands above it");
        }
    }
}

#[test]
fn there_are_few_locked_packages() {
    let lock = fs::read_to_string(Place::of_this_clone().root().join("Cargo.lock")).unwrap();
    let packages = lock.lines().filter(|line| *line == "[[package]]").count();
    assert!(packages > 20, "that is no lock file of ours");
    assert!(
        packages <= MOST_LOCKED_PACKAGES,
        "{packages} locked packages, {MOST_LOCKED_PACKAGES} are the most"
    );
}

#[test]
fn no_source_file_is_longer_than_the_wall() {
    let root = Place::of_this_clone().root().to_owned();
    let files = tool::text(tool::command("git").args(["ls-files", "*.rs"]).current_dir(&root)).unwrap();
    let long: Vec<String> = files
        .lines()
        .filter_map(|name| Some((name, fs::read_to_string(root.join(name)).ok()?.lines().count())))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .map(|(name, lines)| format!("{name}: {lines}"))
        .collect();
    assert!(long.is_empty(), "longer than {LONGEST_FILE} lines: {long:?}");
}
