//! What all queues of a disk share: the image, the rings lent to them, and the little that can change.
//!
//! Made by `main`, held in an `Arc` by the device and each queue. On the hot path only read.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use strata_virtio::chain::Chain;

use crate::engine::EngineKind;
use crate::engine::uring::UringPool;
use crate::image::{Files, Geometry, Image, SECTOR};
use crate::layers::Layers;
use crate::rate::Limiter;
use crate::request::{ID_BYTES, Limits};
use crate::tally::Tally;

/// Why a disk does not grow.
#[derive(Debug, thiserror::Error)]
pub enum GrowError {
    /// It is read-only.
    #[error("the disk is read-only")]
    ReadOnly,
    /// Guests lose data so.
    #[error("{bytes} bytes are less than the {now} it has; a disk in use only grows")]
    Smaller {
        /// Asked for.
        bytes: u64,
        /// There now.
        now: u64,
    },
    /// Not a whole number of blocks.
    #[error("{bytes} bytes are not a whole number of blocks of {block}")]
    PartialBlock {
        /// Asked for.
        bytes: u64,
        /// Of the disk.
        block: u64,
    },
    /// A device has the size it has.
    #[error("the device has {has} bytes, not {bytes}; make it larger first")]
    Device {
        /// Asked for.
        bytes: u64,
        /// There now.
        has: u64,
    },
    /// The file system's answer.
    #[error("the image cannot be made larger")]
    Image(#[source] std::io::Error),
}

/// A disk as its queues see it.
#[derive(Debug)]
pub struct Disk {
    /// The disk's own file.
    pub image: Arc<Image>,
    /// All its files.
    pub files: Files,
    /// What the files mean, unless it is one raw image.
    pub layers: Option<Arc<Layers>>,
    /// Sizes and blocks as the guest sees them.
    pub geometry: Geometry,
    /// What may be asked of it; its capacity is that of the beginning, see [`Disk::limits`].
    limits: Limits,
    /// In sectors, now.
    capacity: AtomicU64,
    /// How fast.
    pub limiter: Limiter,
    /// What a failure below means.
    pub on_error: OnError,
    /// How often it was told to go on after a failure.
    pub resumes: AtomicU64,
    /// Queues that have stopped for a failure.
    pub halted: AtomicUsize,
    /// A write counts as done only when it is on the device: the driver has no flush, or has switched the
    /// write cache off (virtio 1.2 section 5.2.5.2).
    pub write_through: AtomicBool,
    /// Rings not in use by a queue; empty with the sync engine.
    pub rings: UringPool,
    /// What happened, by queue.
    pub tallies: Vec<Arc<Tally>>,
    serial: [u8; ID_BYTES],
}

/// What happens when the image fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// The guest is told.
    #[default]
    Report,
    /// The request waits, and those behind it, until somebody has put things right and says so.
    Stop,
}

/// Why no disk can be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// No file at all.
    #[error("a disk of no files")]
    NoFile,
    /// The engine asked for is not to be had.
    #[error(
        "io_uring cannot be used here (kernel.io_uring_disabled, or a seccomp filter around us); use --engine sync or auto"
    )]
    NoUring(#[source] std::io::Error),
    /// More than the specification has room for.
    #[error("serial number {serial:?} is longer than {ID_BYTES} bytes")]
    Serial {
        /// The one given.
        serial: String,
    },
}

impl Disk {
    /// Makes the rings too, so it is called while the sandbox still allows that.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn new(
        files: Files,
        layers: Option<Layers>,
        engine: EngineKind,
        queues: usize,
        serial: &str,
        on_error: OnError,
    ) -> Result<Arc<Self>, DiskError> {
        let image = files.own().ok_or(DiskError::NoFile)?;
        let mut padded = [0; ID_BYTES];
        padded
            .get_mut(..serial.len())
            .ok_or_else(|| DiskError::Serial { serial: serial.to_owned() })?
            .copy_from_slice(serial.as_bytes());
        let rings = match engine {
            EngineKind::Sync => UringPool::default(),
            EngineKind::Uring => UringPool::new(&files, queues).map_err(DiskError::NoUring)?,
            EngineKind::Auto => UringPool::new(&files, queues).unwrap_or_else(|error| {
                tracing::warn!(
                    "{}: no io_uring ({error}); requests wait for one another",
                    image.path().display()
                );
                UringPool::default()
            }),
        };
        let mut geometry = *image.geometry();
        if let Some(layers) = &layers {
            // Whatever its files demand is seen to below.
            let (bytes, capacity) = (layers.size(), layers.size() / SECTOR);
            geometry = Geometry { bytes, capacity, logical_block: 512, physical_block: 4096, ..geometry };
        }
        let limits = Limits {
            capacity: geometry.capacity,
            read_only: image.read_only(),
            block_sectors: u64::from(geometry.logical_block) / SECTOR,
        };
        let tallies = (0..queues).map(|_| Arc::default()).collect();
        Ok(Arc::new(Self {
            image,
            files,
            layers: layers.map(Arc::new),
            geometry,
            capacity: AtomicU64::new(limits.capacity),
            limits,
            limiter: Limiter::default(),
            on_error,
            resumes: AtomicU64::new(0),
            halted: AtomicUsize::new(0),
            write_through: AtomicBool::new(false),
            rings,
            tallies,
            serial: padded,
        }))
    }

    /// What may be asked of it now.
    #[inline]
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { capacity: self.capacity.load(Ordering::Relaxed), ..self.limits }
    }

    /// Makes the image, and with it the disk, larger; a block device is asked for its size instead, since others
    /// change that. The new size in bytes. The driver has yet to be told.
    ///
    /// # Errors
    /// The size is smaller than now, or is not to be had.
    pub fn grow(&self, bytes: u64) -> Result<u64, GrowError> {
        let now = self.capacity.load(Ordering::Relaxed) * SECTOR;
        if self.limits.read_only {
            return Err(GrowError::ReadOnly);
        }
        if bytes < now {
            return Err(GrowError::Smaller { bytes, now });
        }
        let block = u64::from(self.geometry.logical_block);
        if !bytes.is_multiple_of(block) {
            return Err(GrowError::PartialBlock { bytes, block });
        }
        let grown = match &self.layers {
            Some(layers) => layers.grow(bytes),
            None => self.image.grow(bytes),
        };
        let has = grown.map_err(GrowError::Image)?;
        if has < bytes {
            return Err(GrowError::Device { bytes, has });
        }
        self.capacity.store(bytes / SECTOR, Ordering::Relaxed);
        Ok(bytes)
    }

    /// For messages.
    pub fn name(&self) -> impl std::fmt::Display + '_ {
        self.image.path().display()
    }

    /// Answers GET_ID: the first `len` bytes of the padded serial number, at most all.
    pub(crate) fn copy_serial(&self, chain: &Chain, len: usize) {
        if let Some(serial) = self.serial.get(..len)
            && let Err(short) = chain.copy_in(0, serial)
        {
            // Not reached: the request was found to have room for them.
            tracing::error!("{}: {short}", self.name());
        }
    }
}
