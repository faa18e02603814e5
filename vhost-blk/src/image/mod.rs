//! The image behind a disk: a raw file or a block device, opened once (or by who started us), locked, and measured.
//!
//! Owns the descriptors and what is known about them (capacity, block sizes, alignment of direct I/O).
//! Called by `main` before the sandbox is entered; afterwards only the descriptors are used, by the engines.
//! Refuses: what is not a file or block device, what is empty, what another process has open for writing
//! (or at all, if we write), and a writable file that looks like qcow2 unless its format was stated.

mod error;
mod geometry;
mod given;
mod holder;
mod lock;

#[cfg(test)]
mod given_test;
#[cfg(test)]
mod image_test;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::ImageError;
pub use geometry::Geometry;
pub use given::Given;

/// Bytes of a virtio-blk sector (virtio 1.2 section 5.2.4): what capacity and offsets are counted in, whatever
/// the block size of the device is.
pub const SECTOR: u64 = 512;

/// What the bytes of the image mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// Raw, unless the first bytes look like something else: then the opening is refused rather than guessed.
    #[default]
    Auto,
    /// Raw because the caller says so.
    Raw,
    /// See [`crate::layers`].
    Qcow2,
}

/// How the page cache of the host takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Cache {
    /// Direct I/O where the file system has it, else the page cache.
    #[default]
    Auto,
    /// Direct I/O: the page cache is bypassed. Refused where the file system cannot.
    None,
    /// Through the page cache; a flush brings data and metadata to the device.
    Writeback,
    /// Through the page cache; a flush does nothing. For disks that nobody needs after a crash.
    Unsafe,
}

/// What to open, and how.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// File or block device.
    pub path: PathBuf,
    /// Never write to it; other readers may share it.
    pub read_only: bool,
    /// What its bytes mean.
    pub format: Format,
    /// Use of the page cache.
    pub cache: Cache,
}

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
    /// Opens, locks and measures an image.
    ///
    /// # Errors
    /// Each reason names the path and what to do about it.
    pub fn open(options: &ImageOptions) -> Result<Self, ImageError> {
        let path = &options.path;
        let at = |source| ImageError::from_open(path, options.read_only, source);
        let kind = inspect(path, options.read_only)?;

        // O_NONBLOCK so that a path swapped for a FIFO after `inspect` cannot hold us; it means nothing to files.
        let mut flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        if kind == Kind::BlockDevice && !options.read_only {
            // For a block device without O_CREAT: fail if it is mounted or held by another subsystem (open(2)).
            flags |= libc::O_EXCL;
        }
        let buffered = OpenOptions::new()
            .read(true)
            .write(!options.read_only)
            .custom_flags(flags)
            .open(path)
            .map_err(at)?;
        Self::opened(buffered, kind, options, |buffered| open_again(buffered, options.read_only))
    }

    /// Locks and measures an image that is open already.
    ///
    /// # Errors
    /// As [`Image::open`], or it is not what the options say.
    pub fn given(given: Given, options: &ImageOptions) -> Result<Self, ImageError> {
        given.check(options)?;
        let Given { buffered, direct } = given;
        Self::opened(buffered, Kind::File, options, |_| given::bypass(direct))
    }

    fn opened(
        buffered: File,
        kind: Kind,
        options: &ImageOptions,
        bypassing: impl FnOnce(&File) -> std::io::Result<File>,
    ) -> Result<Self, ImageError> {
        let path = &options.path;
        let at = |source| ImageError::from_open(path, options.read_only, source);
        lock::acquire(&buffered, path, options.read_only)?;

        let kind = match kind {
            Kind::BlockDevice => Kind::BlockDevice,
            _ if geometry::lives_in_memory(buffered.as_fd()).map_err(at)? => Kind::MemoryFile,
            _ => Kind::File,
        };
        check_format(&buffered, path, options.format)?;

        let direct = direct(&buffered, kind, options, bypassing)?;
        let geometry = Geometry::measure(&buffered, direct.as_ref().map(AsFd::as_fd), kind).map_err(at)?;
        if geometry.capacity == 0 {
            return Err(ImageError::Empty { path: path.clone(), bytes: geometry.bytes });
        }
        if geometry.capacity * SECTOR != geometry.bytes && options.format != Format::Qcow2 {
            tracing::warn!(
                "{}: {} bytes is not a whole number of {}-byte blocks; the last {} bytes are left out",
                path.display(),
                geometry.bytes,
                geometry.logical_block,
                geometry.bytes - geometry.capacity * SECTOR
            );
        }
        Ok(Self {
            path: path.clone(),
            buffered,
            direct,
            kind,
            read_only: options.read_only,
            flushes: options.cache != Cache::Unsafe,
            geometry,
        })
    }

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

/// Looks before opening: opening some things (a FIFO, a tape) already does something.
fn inspect(path: &Path, read_only: bool) -> Result<Kind, ImageError> {
    let meta = std::fs::metadata(path).map_err(|source| ImageError::from_open(path, read_only, source))?;
    let what = meta.file_type();
    if what.is_file() {
        Ok(Kind::File)
    } else if what.is_block_device() {
        Ok(Kind::BlockDevice)
    } else if what.is_dir() {
        Err(ImageError::Directory { path: path.to_owned() })
    } else {
        Err(ImageError::NotAnImage { path: path.to_owned() })
    }
}

/// A guest can write any header into a raw disk of its own. Were the format guessed from it at the next start,
/// the guest would choose the files that back its disk. So a header is never a reason to take an image for
/// qcow2, and one in an image nobody called raw is more likely a mistake that would destroy it.
fn check_format(file: &File, path: &Path, format: Format) -> Result<(), ImageError> {
    const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";
    if format != Format::Auto {
        return Ok(());
    }
    let mut magic = [0; QCOW2_MAGIC.len()];
    match file.read_exact_at(&mut magic, 0) {
        Ok(()) if magic == QCOW2_MAGIC => Err(ImageError::LooksLikeQcow2 { path: path.to_owned() }),
        _ => Ok(()),
    }
}

/// The second open file, if the image is used so.
fn direct(
    buffered: &File,
    kind: Kind,
    options: &ImageOptions,
    bypassing: impl FnOnce(&File) -> std::io::Result<File>,
) -> Result<Option<File>, ImageError> {
    let path = &options.path;
    let wanted = match options.cache {
        Cache::None => true,
        // O_DIRECT on tmpfs is accepted and means nothing: the bytes are in the page cache or nowhere.
        Cache::Auto => kind != Kind::MemoryFile,
        Cache::Writeback | Cache::Unsafe => false,
    };
    if !wanted {
        return Ok(None);
    }
    match (bypassing(buffered), options.cache) {
        (Ok(file), _) => Ok(Some(file)),
        (Err(source), Cache::None) => Err(ImageError::NoDirect { path: path.to_owned(), source }),
        (Err(source), _) => {
            tracing::info!("{}: no direct I/O ({source}); using the page cache", path.display());
            Ok(None)
        }
    }
}

/// Through the open descriptor, so that both are the same inode whatever happens to the path meanwhile.
fn open_again(buffered: &File, read_only: bool) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .custom_flags(libc::O_CLOEXEC | libc::O_DIRECT)
        .open(format!("/proc/self/fd/{}", buffered.as_raw_fd()))
}
