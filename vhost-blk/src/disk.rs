//! What all queues of a disk share: the image, the rings lent to them, and the little that can change.
//!
//! Made by `main`, held in an `Arc` by the device and each queue. On the hot path only read.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use strata_virtio::chain::Chain;

use crate::engine::EngineKind;
use crate::engine::uring::UringPool;
use crate::image::{Image, SECTOR};
use crate::request::{ID_BYTES, Limits};

/// A disk as its queues see it.
#[derive(Debug)]
pub struct Disk {
    /// What holds the bytes.
    pub image: Image,
    /// What may be asked of it.
    pub limits: Limits,
    /// A write counts as done only when it is on the device: the driver has no flush, or has switched the
    /// write cache off (virtio 1.2 section 5.2.5.2).
    pub write_through: AtomicBool,
    /// Rings not in use by a queue; empty with the sync engine.
    pub rings: UringPool,
    serial: [u8; ID_BYTES],
}

/// Why no disk can be made of an image.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
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
        image: Image,
        engine: EngineKind,
        queues: usize,
        serial: &str,
    ) -> Result<Arc<Self>, DiskError> {
        let mut padded = [0; ID_BYTES];
        padded
            .get_mut(..serial.len())
            .ok_or_else(|| DiskError::Serial { serial: serial.to_owned() })?
            .copy_from_slice(serial.as_bytes());
        let rings = match engine {
            EngineKind::Sync => UringPool::default(),
            EngineKind::Uring => UringPool::new(&image, queues).map_err(DiskError::NoUring)?,
            EngineKind::Auto => UringPool::new(&image, queues).unwrap_or_else(|error| {
                tracing::warn!(
                    "{}: no io_uring ({error}); requests wait for one another",
                    image.path().display()
                );
                UringPool::default()
            }),
        };
        let geometry = image.geometry();
        let limits = Limits {
            capacity: geometry.capacity,
            read_only: image.read_only(),
            block_sectors: u64::from(geometry.logical_block) / SECTOR,
        };
        Ok(Arc::new(Self { image, limits, write_through: AtomicBool::new(false), rings, serial: padded }))
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
