//! What a guest boots: an initramfs with busybox, the cloud kernel's own drivers, and a case's script.
//!
//! Called by: cases. The base is built once per kernel and kept; a case's script is a second archive behind it.
//! The guest's init prints `guest: init` as its first line, as soon as there is a console to print it on.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use strata_rig::cpio::Archive;
use strata_rig::{Place, initramfs, modules, stamp};

/// What it takes to print a line.
const EARLY: &[&str] = &["virtio_pci", "virtio_console"];
/// The rest of what guests use; loaded after the first line.
const DRIVERS: &[&str] = &["virtio_blk", "virtio_net", "virtio-rng", "button", "evdev", "pvpanic-mmio"];
/// What single cases load themselves, from `/mod/more`.
const MORE: &[&str] = &["kvm_amd", "kvm_intel", "tun", "8021q"];
/// `@EARLY@` and `@DRIVERS@` are the modules above.
const INIT: &str = include_str!("init.sh");

/// Builds the base if it is missing or older than what it is made of, and gives its path.
///
/// # Errors
/// If the kernel lacks a module or busybox is missing.
pub fn base(place: &Place) -> anyhow::Result<PathBuf> {
    let kernel = place.guest_kernel();
    let of = format!(
        "{} {EARLY:?} {DRIVERS:?} {MORE:?}\n{INIT}",
        stamp::read(&kernel).context("no kernel for guests: cargo xtask setup")?
    );
    let file = place.cache().join("guest-initramfs.cpio");
    if stamp::fresh(&file, &of) {
        return Ok(file);
    }
    stamp::forget(&file);
    let mut seen = BTreeSet::new();
    let mut lists = Vec::new();
    for (list, wanted) in [("early", EARLY), ("drivers", DRIVERS), ("more", MORE)] {
        let mut modules = modules::ordered(&kernel, wanted)?;
        modules.retain(|module| seen.insert(module.file.clone()));
        lists.push((list, modules));
    }
    let mut archive = initramfs::with_busybox(&lists)?;
    // No /sbin: a kernel that finds a modprobe there starts it four times before init, for modules that are not here.
    // For modprobe, which loads all of them as one program: starting a program costs a guest some 35 exits, in which
    // its C library asks for the processor's features.
    let folder = format!("lib/modules/{}", modules::release(&kernel)?);
    let mut depends = String::new();
    let mut before: Vec<&str> = Vec::new();
    for module in lists.iter().flat_map(|(_, modules)| modules) {
        archive.symlink(&format!("{folder}/{}", module.file), &format!("/mod/{}", module.file));
        // As all that come before it: the last named is loaded first.
        depends += &format!("{}: {}\n", module.file, before.join(" "));
        before.insert(0, &module.file);
    }
    archive.file(&format!("{folder}/modules.dep"), 0o644, depends.as_bytes());
    let init = INIT.replace("@EARLY@", &EARLY.join(" ")).replace("@DRIVERS@", &DRIVERS.join(" "));
    archive.file("init", 0o755, init.as_bytes());
    fs::write(&file, archive.finish()).with_context(|| format!("cannot write {}", file.display()))?;
    stamp::write(&file, &of)?;
    Ok(file)
}

/// Writes an initramfs to `path` whose guest runs `script` (sh, with busybox's commands; `say TEXT` prints
/// `guest: TEXT`), with `files` (path in the guest, mode, content) beside it.
///
/// # Errors
/// If the base is missing or `path` cannot be written.
pub fn initrd(
    place: &Place,
    path: &Path,
    script: &str,
    files: &[(&str, u32, Vec<u8>)],
) -> anyhow::Result<()> {
    let mut archive = Archive::default();
    archive.file("case.sh", 0o644, script.as_bytes());
    for (name, mode, content) in files {
        archive.file(name, *mode, content);
    }
    let mut bytes = fs::read(base(place)?)?;
    bytes.extend(archive.finish());
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
