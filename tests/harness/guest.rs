//! What a guest boots: the base of its kernel (`strata_rig::guest`) and a case's script behind it.
//!
//! Called by: cases.

use std::fs;
use std::path::Path;

use anyhow::Context;
use strata_rig::Place;
use strata_rig::cpio::Archive;

pub use strata_rig::guest::Kernel;

/// Writes an initramfs to `path` whose guest runs `script` (sh, with busybox's commands; `say TEXT` prints
/// `guest: TEXT`, `pressed` waits for the power button, which is heard from `button` on), with `files` (path in the guest, mode, content) beside it. For the cloud kernel.
///
/// # Errors
/// If the base is missing or `path` cannot be written.
pub fn initrd(
    place: &Place,
    path: &Path,
    script: &str,
    files: &[(&str, u32, Vec<u8>)],
) -> anyhow::Result<()> {
    initrd_of(Kernel::Cloud, place, path, script, files)
}

/// The same for any kernel.
///
/// # Errors
/// As [`initrd`].
pub fn initrd_of(
    kernel: Kernel,
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
    let mut bytes = fs::read(kernel.base(place)?)?;
    bytes.extend(archive.finish());
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
