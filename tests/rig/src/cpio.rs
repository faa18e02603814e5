//! Writer of cpio archives in the "newc" format, the one Linux unpacks as an initramfs
//! (Documentation/driver-api/early-userspace/buffer-format.rst).
//!
//! Owns: one archive in memory. Called by: `initramfs`. Archives may be joined: the kernel unpacks one after another,
//! so a guest's initramfs is a cached base plus a small archive with the test's own files.

use std::collections::BTreeSet;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive being written. Parent directories of an entry are added on their own.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: BTreeSet<String>,
    inode: u32,
}

impl Archive {
    /// Adds a directory and its parents; twice is once. `path` is without a leading slash.
    pub fn directory(&mut self, path: &str) {
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        self.parent(path);
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY, &[]);
    }

    /// Adds a file with the permission bits of `mode`.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.parent(path);
        self.entry(path, FILE | (mode & 0o7777), content);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parent(path);
        self.entry(path, SYMLINK, target.as_bytes());
    }

    /// Ends the archive, padded so that another may follow.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[]);
        self.pad(512);
        self.bytes
    }

    fn parent(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.inode = self.inode.wrapping_add(1);
        let (links, size, name_size) = (1u32, content.len(), path.len() + 1);
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, dev major/minor, rdev major/minor, namesize, check
        let header = format!(
            "070701{:08x}{mode:08x}{:08x}{:08x}{links:08x}{:08x}{size:08x}{:08x}{:08x}{:08x}{:08x}{name_size:08x}{:08x}",
            self.inode, 0, 0, 0, 0, 0, 0, 0, 0
        );
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
    }

    fn pad(&mut self, to: usize) {
        let len = self.bytes.len().next_multiple_of(to);
        self.bytes.resize(len, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    #[test]
    fn what_is_written_unpacks_with_an_independent_cpio() {
        let mut archive = Archive::default();
        archive.file("etc/deep/hello", 0o644, b"hello\n");
        archive.file("init", 0o755, b"#!/bin/sh\n");
        archive.symlink("bin", "usr/bin");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let Some(busybox) = crate::tool::find("busybox") else { return };
        let mut child = Command::new(busybox)
            .args(["cpio", "-t"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&bytes).unwrap();
        let listing = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(listing, "etc\netc/deep\netc/deep/hello\ninit\nbin\n");
    }
}
