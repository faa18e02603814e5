//! Stamps: a file beside a made thing that says what it was made of, so that the second set-up takes no time.
//!
//! Owns: `*.stamp` files. Called by: each step of the set-up. A stamp is written after the thing is whole, so an
//! interrupted step is done again.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

fn path(thing: &Path) -> PathBuf {
    let mut name = thing.as_os_str().to_owned();
    name.push(".stamp");
    PathBuf::from(name)
}

/// What `thing` was made of, if it is there and whole.
pub fn read(thing: &Path) -> Option<String> {
    if !thing.exists() {
        return None;
    }
    fs::read_to_string(path(thing)).ok()
}

/// True if `thing` is there and was made of exactly `of`.
pub fn fresh(thing: &Path, of: &str) -> bool {
    read(thing).is_some_and(|made_of| made_of == of)
}

/// Notes that `thing` is whole and was made of `of`.
///
/// # Errors
/// If the stamp cannot be written.
pub fn write(thing: &Path, of: &str) -> anyhow::Result<()> {
    let stamp = path(thing);
    fs::write(&stamp, of).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Forgets `thing`'s stamp, before it is made anew.
pub fn forget(thing: &Path) {
    let _ = fs::remove_file(path(thing));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_counts_only_beside_its_thing_and_for_what_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let thing = dir.path().join("thing");
        assert!(!fresh(&thing, "a"));
        write(&thing, "a").unwrap();
        assert!(!fresh(&thing, "a"), "the thing itself is missing");
        fs::write(&thing, "x").unwrap();
        assert!(fresh(&thing, "a"));
        assert!(!fresh(&thing, "b"));
        forget(&thing);
        assert!(!fresh(&thing, "a"));
    }
}
