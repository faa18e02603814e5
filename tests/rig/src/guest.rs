//! What guests boot: a kernel, and an initramfs with busybox and the kernel's own drivers. A case's script is a second
//! archive behind it.
//!
//! Owns: the guests' initramfs bases in the cache, one for each kernel. Called by: `setup`, and the harness, which makes
//! one anew if its kernel or what is put into it has changed since. The guest's init prints `guest: init` as its first
//! line, as soon as there is a console to print it on.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use crate::cpio::Archive;
use crate::place::Place;
use crate::{initramfs, kernel, modules, stamp};

/// What it takes to print a line.
const EARLY: &[&str] = &["virtio_pci", "virtio_console"];
/// The rest of what guests use; loaded after the first line.
const DRIVERS: &[&str] = &["virtio_blk", "virtio_net", "virtio-rng", "button", "evdev", "pvpanic-mmio"];
/// What single cases load themselves, from `/mod/more`.
const MORE: &[&str] = &["kvm_amd", "kvm_intel", "tun", "8021q"];
/// `@EARLY@` and `@DRIVERS@` are the modules above.
const INIT: &str = include_str!("guest.sh");

/// A kernel for guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's cloud kernel, as it is.
    Cloud,
    /// The big one, which the rig runs on too: the one of Debian's that has the haltpoll governor
    /// (`CONFIG_CPU_IDLE_GOV_HALTPOLL`).
    Big,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Cloud, Self::Big];

    fn tree(self, place: &Place) -> PathBuf {
        match self {
            Self::Cloud => place.guest_kernel(),
            Self::Big => place.rig_kernel(),
        }
    }

    /// Its bzImage.
    ///
    /// # Errors
    /// If it is not set up.
    pub fn image(self, place: &Place) -> anyhow::Result<PathBuf> {
        match self {
            Self::Cloud => Ok(place.guest_vmlinuz()),
            Self::Big => kernel::boot_image(&place.rig_kernel()),
        }
    }

    /// Builds its initramfs base if it is missing or older than what it is made of, and gives its path.
    ///
    /// # Errors
    /// If the kernel lacks a module or busybox is missing.
    pub fn base(self, place: &Place) -> anyhow::Result<PathBuf> {
        let tree = self.tree(place);
        let of = format!(
            "{} {EARLY:?} {DRIVERS:?} {MORE:?}\n{INIT}",
            stamp::read(&tree).context("no kernel for guests: cargo xtask setup")?
        );
        let file = match self {
            Self::Cloud => place.cache().join("guest-initramfs.cpio"),
            Self::Big => place.cache().join("guest-big-initramfs.cpio"),
        };
        if stamp::fresh(&file, &of) {
            return Ok(file);
        }
        stamp::forget(&file);
        let mut seen = BTreeSet::new();
        let mut lists = Vec::new();
        for (list, wanted) in [("early", EARLY), ("drivers", DRIVERS), ("more", MORE)] {
            let mut modules = modules::ordered(&tree, wanted)?;
            modules.retain(|module| seen.insert(module.file.clone()));
            lists.push((list, modules));
        }
        let mut archive = initramfs::with_busybox(&lists)?;
        dependencies(&mut archive, &modules::release(&tree)?, &lists);
        let init = INIT.replace("@EARLY@", &EARLY.join(" ")).replace("@DRIVERS@", &DRIVERS.join(" "));
        archive.file("init", 0o755, init.as_bytes());
        fs::write(&file, archive.finish()).with_context(|| format!("cannot write {}", file.display()))?;
        stamp::write(&file, &of)?;
        Ok(file)
    }
}

/// For modprobe, which loads all of them as one program: starting a program costs a guest some 35 exits, in which its C
/// library asks for the processor's features. There is no /sbin: a kernel that finds a modprobe there starts it four
/// times before init, for modules that are not here.
fn dependencies(archive: &mut Archive, release: &str, lists: &[(&str, Vec<modules::Module>)]) {
    let folder = format!("lib/modules/{release}");
    let mut depends = String::new();
    let mut before: Vec<&str> = Vec::new();
    for module in lists.iter().flat_map(|(_, modules)| modules) {
        archive.symlink(&format!("{folder}/{}", module.file), &format!("/mod/{}", module.file));
        // As all that come before it: the last named is loaded first.
        depends += &format!("{}: {}\n", module.file, before.join(" "));
        before.insert(0, &module.file);
    }
    archive.file(&format!("{folder}/modules.dep"), 0o644, depends.as_bytes());
}
