//! How an image is opened: looked at, opened, locked, measured, and what is refused on the way. Called by `main` before the
//! sandbox is entered; what comes of it is [`Image`].

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::given::{self, Given};
use super::{Geometry, Image, ImageError, Kind, SECTOR, geometry, lock};

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
