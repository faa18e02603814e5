//! Programs of this host made fit for a guest's file system: without symbols, and with the libraries they need.
//!
//! Called by: cases that run our programs inside a guest.

use std::path::{Path, PathBuf};

use anyhow::Context;
use strata_rig::tool;

/// Shared libraries of a program, the loader among them.
///
/// # Errors
/// If `ldd` does not know it.
pub fn needed(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = tool::text(tool::command("ldd").arg(program))?;
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

/// A program's bytes without its symbols: what is read by a guest should be small.
///
/// # Errors
/// If it cannot be read.
pub fn stripped(program: &Path) -> anyhow::Result<Vec<u8>> {
    let copy = tempfile::NamedTempFile::new()?;
    // A host without binutils gets all of it.
    let file = match tool::output(tool::command("strip").arg("-o").arg(copy.path()).arg(program)) {
        Ok(_) => copy.path(),
        Err(_) => program,
    };
    std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
