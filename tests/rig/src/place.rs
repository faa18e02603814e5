//! Where things are kept: everything under `target/strata` of this clone, so that deleting the clone deletes it all.
//!
//! Owns: the names of the cache's files. Called by: all of this crate, the harness and `xtask`.

use std::path::{Path, PathBuf};

/// The clone and its cache.
#[derive(Clone, Debug)]
pub struct Place {
    root: PathBuf,
}

impl Place {
    /// The clone this crate was built from.
    pub fn of_this_clone() -> Self {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.ancestors().nth(2).unwrap_or(here).to_path_buf();
        Self { root }
    }

    /// Another root, for tests.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The top folder of the clone.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Everything that is downloaded or made from downloads.
    pub fn cache(&self) -> PathBuf {
        self.root.join("target").join("strata")
    }

    /// The unpacked kernel package the rig itself runs on (has `kvm_amd`).
    pub fn rig_kernel(&self) -> PathBuf {
        self.cache().join("rig-kernel")
    }

    /// The unpacked cloud kernel package that guests run on: `vmlinuz`, `vmlinux` and `lib/modules`.
    pub fn guest_kernel(&self) -> PathBuf {
        self.cache().join("guest-kernel")
    }

    /// The guest kernel as a bzImage.
    pub fn guest_vmlinuz(&self) -> PathBuf {
        self.guest_kernel().join("vmlinuz")
    }

    /// The same guest kernel as an ELF file with a PVH entry.
    pub fn guest_vmlinux(&self) -> PathBuf {
        self.guest_kernel().join("vmlinux")
    }

    /// The rig's own initramfs.
    pub fn rig_initramfs(&self) -> PathBuf {
        self.cache().join("rig-initramfs.cpio")
    }

    /// The package of what is built, for the node to install.
    pub fn package(&self) -> PathBuf {
        self.cache().join("deb")
    }

    /// The same as a later version, for the node to be upgraded to.
    pub fn later_package(&self) -> PathBuf {
        self.cache().join("deb-later")
    }

    /// Programs built from crates.io for the tests (`bin/` below).
    pub fn crates(&self) -> PathBuf {
        self.cache().join("crates")
    }
}
