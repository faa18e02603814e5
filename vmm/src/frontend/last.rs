//! The last answers of a device that is to go: requests that nobody serves any more are answered with errors.
//!
//! A driver that lets go of its device waits for what it has asked of it; where the backend is gone, for ever. So once the
//! guest is asked to let go, and nobody is there (or is to be there), what waits is answered here: a disk's requests and a
//! NIC's commands with status 1 (VIRTIO_BLK_S_IOERR, VIRTIO_NET_ERR) in their last byte, frames to be sent as sent. What
//! the dead backend had in flight is known from the inflight region, as its successor would know it.
//!
//! Called by the link, on the monitor's thread and the owner's. Reads rings as a backend does (`strata_virtio::queue`), and
//! a copy of the inflight region: the original is a file that its maker could cut short under a mapping.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use strata_virtio::chain::Chain;
use strata_virtio::device::{QueueSetup, StartError};
use strata_virtio::inflight;
use strata_virtio::memory::Memory;
use strata_virtio::vring::Vring;

use super::session::{Inflight, RingAddresses};

/// Between two looks at the rings.
pub(super) const PAUSE: Duration = Duration::from_millis(20);
/// How long a backend that is gone may take to come back, while the guest is asked to let go of its device.
const PATIENCE: Duration = Duration::from_secs(2);
/// A copy is at most this long: 256 queues of 1024 descriptors, twice.
const LONGEST: u64 = 16 << 20;
/// VIRTIO_BLK_S_IOERR and VIRTIO_NET_ERR.
const ERROR: u8 = 1;

/// Whether the device is to go: since when, and whether without waiting for a backend.
#[derive(Debug, Default)]
pub(super) struct Leaving(Mutex<Option<(Instant, bool)>>);

impl Leaving {
    /// `None`: it stays. `Some(now)`: it goes, without waiting for a backend or with some patience.
    pub(super) fn set(&self, goes: Option<bool>) {
        let mut leaving = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *leaving = goes.map(|now| (Instant::now(), now));
    }

    /// How long a backend may be waited for, if the device is to go.
    pub(super) fn patience(&self) -> Option<Duration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).map(|_| PATIENCE)
    }

    /// Whether it is time to answer for a backend that has been gone since `lost`.
    pub(super) fn has_come(&self, lost: Instant) -> bool {
        let leaving = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        leaving.is_some_and(|(asked, now)| now || asked.max(lost).elapsed() >= PATIENCE)
    }
}

/// A ring whose requests nobody serves.
pub(super) struct Ring<'a> {
    pub(super) index: u16,
    pub(super) size: u16,
    pub(super) at: RingAddresses,
    pub(super) call: BorrowedFd<'a>,
    pub(super) features: u64,
    pub(super) memory: &'a Arc<Memory>,
}

impl Ring<'_> {
    /// Answers everything from `base` on, and what is in flight.
    pub(super) fn answer(&self, base: u16, region: Option<&inflight::Inflight>) -> Result<(), StartError> {
        let Self { index, size, at, call, features, memory } = self;
        let index = *index;
        let failed = |source| StartError::Resource { index, what: "an eventfd", source };
        let mut vring = Vring::new(QueueSetup {
            index,
            size: *size,
            desc: at.desc,
            avail: at.avail,
            used: at.used,
            features: *features,
            base,
            kick: None,
            call: Some(call.try_clone_to_owned().map_err(failed)?),
            err: None,
            memory: Arc::clone(memory),
            inflight: region.and_then(|region| region.queue(index)),
            inherited: true,
        })?;
        let mut chain = Chain::new();
        // No more than the ring holds: a guest that goes on asking is answered at the next look.
        for _ in 0..*size {
            if !vring.next(&mut chain) {
                break;
            }
            let writable = chain.writable_len();
            let written = match writable.checked_sub(1) {
                Some(last) if chain.copy_in(last, &[ERROR]).is_ok() => u32::try_from(writable).unwrap_or(0),
                _ => 0,
            };
            vring.push(chain.head(), written);
        }
        vring.flush();
        Ok(())
    }
}

/// A copy of the region in which the former backend has noted what it works on; `None` if it cannot be had.
pub(super) fn copy(region: &Inflight) -> Option<inflight::Inflight> {
    let copy = inflight::Inflight::create(region.queues, region.depth).ok()?;
    let length = copy.inflight.len();
    if length > region.size.min(LONGEST) {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    let file = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map(File::from).ok();
    file(region.fd.as_fd())?.read_exact_at(&mut bytes, region.offset).ok()?;
    file(copy.fd.as_fd())?.write_all_at(&bytes, 0).ok()?;
    Some(copy.inflight)
}
