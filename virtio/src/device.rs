//! The one seam between a virtio transport and what answers it.
//!
//! A transport (the vmm's virtio-pci function, or a vhost-user session) owns the guest-visible state of a
//! device: feature negotiation, status, queue addresses, vectors. A [`Device`] owns what happens to the
//! buffers. Implementers today: the vhost-blk and vhost-net backends (called by [`crate::session`]), and the
//! vmm's console and its vhost-user frontend (called by the vmm's PCI transport).
//!
//! Life of a queue: `start_queue` hands over everything it needs, `stop_queue` drains it and hands back where
//! to resume. Between the two the device alone touches the rings. Neither is called twice in a row.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::memory::Memory;

/// What a device is, fixed for as long as it lives (a transport may cache it).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Virtio device ID (virtio 1.2 section 5): 1 network, 2 block, 3 console, 4 entropy, ...
    pub device_id: u16,
    /// Features offered to the driver, VERSION_1 and ring features included.
    pub features: u64,
    /// Maximum size of each queue, in descriptors, a power of two; the length is the number of queues.
    pub queue_sizes: Vec<u16>,
    /// Size of the device-specific configuration space in bytes.
    pub config_size: u32,
}

/// Where a queue lives and how its two sides wake each other.
#[derive(Debug)]
pub struct QueueSetup {
    /// Index of the queue within its device.
    pub index: u16,
    /// Number of descriptors: a power of two, at most the identity's maximum.
    pub size: u16,
    /// Guest-physical address of the descriptor table (16 bytes per descriptor).
    pub desc: u64,
    /// Guest-physical address of the avail ring.
    pub avail: u64,
    /// Guest-physical address of the used ring.
    pub used: u64,
    /// Features the driver accepted.
    pub features: u64,
    /// The avail index to go on from: 0 on a fresh start, [`QueueState::base`] after a stop.
    pub base: u16,
    /// The driver's doorbell, an eventfd; `None` if the frontend asks for polling only.
    pub kick: Option<OwnedFd>,
    /// The interrupt, an eventfd to be written; `None` if the driver polls.
    pub call: Option<OwnedFd>,
    /// An eventfd to be written when the ring is found broken.
    pub err: Option<OwnedFd>,
    /// The memory all addresses above and in the rings point into.
    pub memory: Arc<Memory>,
    /// This queue's part of the inflight region, if the frontend keeps one (vhost-user INFLIGHT_SHMFD).
    pub inflight: Option<crate::inflight::QueueRegion>,
    /// Somebody else may have served the ring before and died between showing an answer and calling for it.
    pub inherited: bool,
}

/// What a drained queue leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// The avail index of the first request not taken. Everything before it has been put into the used ring.
    pub base: u16,
}

/// Why a queue could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ring's addresses or size are not usable.
    #[error("queue {index}: the ring cannot be used")]
    Ring {
        /// Queue index.
        index: u16,
        /// What is wrong with it.
        #[source]
        source: crate::queue::RingError,
    },
    /// The device could not get what it needs to serve the queue (thread, descriptor, remote process).
    #[error("queue {index}: {what}")]
    Resource {
        /// Queue index.
        index: u16,
        /// What was being obtained.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A virtio device behind a transport. See the module's text for who calls it and when.
pub trait Device: Send {
    /// What this device is.
    fn identity(&self) -> &Identity;

    /// Reads device-specific configuration at `offset` (bytes) into `out`. Bytes past the end read as zero.
    fn read_config(&mut self, offset: u32, out: &mut [u8]);

    /// Writes device-specific configuration at `offset`. What the device does not let a driver change, and
    /// whatever lies past the end, is ignored (virtio 1.2 section 2.5).
    fn write_config(&mut self, offset: u32, data: &[u8]);

    /// The driver's features are settled (FEATURES_OK); called before any queue is started.
    fn set_features(&mut self, features: u64);

    /// Starts serving a queue.
    ///
    /// # Errors
    /// The setup is dropped, the queue stays stopped.
    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError>;

    /// Stops a queue: takes no further request, completes all it has taken, then returns. `None` if the queue
    /// was not started.
    fn stop_queue(&mut self, index: u16) -> Option<QueueState>;

    /// Back to the state after construction; every queue is stopped (as by `stop_queue`) first.
    fn reset(&mut self);
}
