//! Initramfs with busybox and kernel modules: the rig's own, and what the guests' (`guest`) are built on.
//!
//! Called by: `setup`, and `guest` for its part.

use std::fs;

use anyhow::Context;

use crate::cpio::Archive;
use crate::place::Place;
use crate::{modules, stamp, tool};

const RIG_MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "bridge",
    "veth",
    "macvtap",
];
const RIG_INIT: &str = include_str!("init.sh");

/// An archive with busybox, its links, the folders an init needs, and `modules` below `/mod` in loading order.
///
/// # Errors
/// If busybox is missing.
pub fn with_busybox(modules: &[(&str, Vec<modules::Module>)]) -> anyhow::Result<Archive> {
    let busybox = tool::find("busybox").context("busybox is missing: apt-get install busybox-static")?;
    let mut archive = Archive::default();
    for dir in ["proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc", "var"] {
        archive.directory(dir);
    }
    archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
    for name in tool::text(tool::command("busybox").arg("--list"))?.lines() {
        if name != "busybox" {
            archive.symlink(&format!("bin/{name}"), "busybox");
        }
    }
    for (list, modules) in modules {
        let mut order = String::new();
        for module in modules {
            archive.file(&format!("mod/{}", module.file), 0o644, &module.content);
            order.push_str(&format!("{}\n", module.file));
        }
        archive.file(&format!("mod/{list}"), 0o644, order.as_bytes());
    }
    Ok(archive)
}

/// Builds the rig's own initramfs if it is missing or older than what it is made of.
///
/// # Errors
/// If the kernel lacks a module, or busybox is missing.
pub fn for_rig(place: &Place) -> anyhow::Result<()> {
    let kernel = place.rig_kernel();
    let of =
        format!("{} {RIG_MODULES:?}\n{RIG_INIT}", stamp::read(&kernel).context("no kernel for the rig yet")?);
    let file = place.rig_initramfs();
    if stamp::fresh(&file, &of) {
        return Ok(());
    }
    stamp::forget(&file);
    let mut archive = with_busybox(&[("order", modules::ordered(&kernel, RIG_MODULES)?)])?;
    for dir in ["host", "rw"] {
        archive.directory(dir);
    }
    archive.symlink("sbin", "bin");
    archive.file("init", 0o755, RIG_INIT.as_bytes());
    fs::write(&file, archive.finish()).with_context(|| format!("cannot write {}", file.display()))?;
    stamp::write(&file, &of)
}
