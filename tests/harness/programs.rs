//! The binaries under test: beside the running one, where cargo built them all.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// `strata`, `vmm`, `vhost-blk`, `vhost-net`, in one folder.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Those beside the running executable.
    ///
    /// # Errors
    /// If they have not been built.
    pub fn beside_us() -> anyhow::Result<Self> {
        let us = std::env::current_exe().context("our own path is unknown")?;
        Self::in_dir(us.parent().context("our own path has no folder")?)
    }

    /// Those in `dir`.
    ///
    /// # Errors
    /// If one is missing.
    pub fn in_dir(dir: &Path) -> anyhow::Result<Self> {
        for name in ["strata", "vmm", "vhost-blk", "vhost-net"] {
            if !dir.join(name).is_file() {
                bail!("{} is not in {}: cargo build --workspace", name, dir.display());
            }
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Their folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of `name`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
