//! The image behind a disk: a raw file or a block device, opened once (or by who started us), locked, and measured.
//!
//! Owns the descriptors and what is known about them (capacity, block sizes, alignment of direct I/O).
//! Opened by `main` before the sandbox is entered (`open.rs`); afterwards only the descriptors are used, by the engines.
//! Refuses: what is not a file or block device, what is empty, what another process has open for writing
//! (or at all, if we write), and a writable file that looks like qcow2 unless its format was stated.

mod error;
mod geometry;
mod given;
mod holder;
mod lock;
mod open;

#[cfg(test)]
mod given_test;
#[cfg(test)]
mod image_test;

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::ImageError;
pub use geometry::Geometry;
pub use given::Given;
pub use open::{Cache, Format, ImageOptions};

/// Bytes of a virtio-blk sector (virtio 1.2 section 5.2.4): what capacity and offsets are counted in, whatever
/// the block size of the device is.
pub const SECTOR: u64 = 512;

/// What kind of thing holds the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file on a file system with a device (or a network) below it.
    File,
    /// A file whose page cache is its only home (tmpfs, ramfs, hugetlbfs): reads and writes never wait for a device.
    MemoryFile,
    /// A block device.
    BlockDevice,
}

/// An open, locked image.
#[derive(Debug)]
pub struct Image {
    path: PathBuf,
    /// Holds the lock; the descriptor through the page cache.
    buffered: File,
    /// The same inode with O_DIRECT.
    direct: Option<File>,
    kind: Kind,
    read_only: bool,
    flushes: bool,
    geometry: Geometry,
}

impl Image {
    /// Where it was opened, for messages.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sizes and alignments.
    #[must_use]
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What holds the bytes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Makes a file at least `bytes` long; what it, or a block device, has then.
    ///
    /// # Errors
    /// The file system's.
    pub fn grow(&self, bytes: u64) -> std::io::Result<u64> {
        if self.kind != Kind::BlockDevice && self.buffered.metadata()?.len() < bytes {
            self.buffered.set_len(bytes)?;
        }
        (&mut &self.buffered).seek(SeekFrom::End(0))
    }

    /// Fills `out` from the page cache's view of the image.
    ///
    /// # Errors
    /// The file system's, or the end of the image.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.buffered.read_exact_at(out, offset)
    }

    /// As [`Image::read_at`], with zeroes behind the end.
    ///
    /// # Errors
    /// The file system's.
    pub fn read_or_zero(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.buffered.read_at(rest, offset + done as u64) {
                Ok(0) => {
                    rest.fill(0);
                    return Ok(());
                }
                Ok(read) => done += read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes through the page cache.
    ///
    /// # Errors
    /// The file system's.
    pub fn write_at(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        self.buffered.write_all_at(data, offset)
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a flush has to reach the device (false for `Cache::Unsafe`).
    #[must_use]
    pub fn flushes(&self) -> bool {
        self.flushes
    }

    /// The descriptor that goes through the page cache.
    #[must_use]
    pub fn buffered(&self) -> BorrowedFd<'_> {
        self.buffered.as_fd()
    }

    /// The descriptor that bypasses it, if the image is used so.
    #[must_use]
    pub fn direct(&self) -> Option<BorrowedFd<'_>> {
        self.direct.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Image {
    /// Whoever used it has drained what was under way, or would still hold it.
    fn drop(&mut self) {
        lock::release(&self.buffered);
    }
}

/// The files of a disk, that of the disk itself first.
#[derive(Debug)]
pub struct Files(Vec<Arc<Image>>);

impl Files {
    /// At least one.
    #[must_use]
    pub fn new(files: Vec<Arc<Image>>) -> Self {
        Self(files)
    }

    /// A disk of one file.
    #[must_use]
    pub fn one(image: Image) -> Self {
        Self(vec![Arc::new(image)])
    }

    /// One of them.
    #[inline]
    #[must_use]
    pub fn get(&self, node: usize) -> Option<&Image> {
        self.0.get(node).map(Arc::as_ref)
    }

    /// The disk's own.
    #[must_use]
    pub fn own(&self) -> Option<Arc<Image>> {
        self.0.first().cloned()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Image> {
        self.0.iter().map(Arc::as_ref)
    }
}
