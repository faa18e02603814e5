//! Disk images with content that can be checked.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use strata_rig::tool;

/// Makes an empty (sparse) image of `size` bytes.
///
/// # Errors
/// If the file cannot be made.
pub fn empty(path: &Path, size: u64) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(file.set_len(size)?)
}

/// Makes a file of `size` random bytes.
///
/// # Errors
/// If the file cannot be made.
pub fn random(path: &Path, size: u64) -> anyhow::Result<()> {
    let mut file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    std::io::copy(&mut File::open("/dev/urandom")?.take(size), &mut file)?;
    Ok(())
}

/// SHA-256 of `size` bytes at the start of a file, in hexadecimal.
///
/// # Errors
/// If the file cannot be read.
pub fn sha256(path: &Path, size: u64) -> anyhow::Result<String> {
    let mut head = tool::command("head");
    head.arg("-c").arg(size.to_string()).arg(path).stdout(std::process::Stdio::piped());
    let mut head = head.spawn()?;
    let stdout = head.stdout.take().context("head has no output")?;
    let text = tool::text(tool::command("sha256sum").stdin(stdout))?;
    head.wait()?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

/// Bytes that the file system has allocated for a (sparse) image.
///
/// # Errors
/// If the file cannot be looked at.
pub fn allocated(path: &Path) -> anyhow::Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}
