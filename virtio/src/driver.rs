//! The driver's side of a ring, and a frontend to go with it, for tests and benches of backends (feature
//! `driver`). A real driver lives in a guest; this one lives in the test's process, over the same kind of
//! memory, and keeps to the same rules (virtio 1.2 sections 2.7.13, 2.7.14).
//!
//! ```no_run
//! # use std::{path::Path, sync::Arc, time::Duration};
//! # use strata_virtio::driver::{Buf, DriverQueue, Frontend};
//! # use strata_virtio::spec::RING_FEATURES;
//! # use strata_virtio::memory::Memory;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let memory = Arc::new(Memory::anonymous(64 << 20)?);
//! let mut queue = DriverQueue::new(&memory, 0x1000, 256, RING_FEATURES)?;
//! let mut frontend = Frontend::connect(Path::new("disk.sock"), RING_FEATURES)?;
//! frontend.set_memory(&memory)?;
//! frontend.start(0, &queue, 0)?;
//! queue.add(&[Buf::readable(0x10_0000, 16), Buf::writable(0x20_0000, 4096)]);
//! queue.kick();
//! let (head, written) = queue.wait(Duration::from_secs(10)).ok_or("no answer")?;
//! # Ok(())
//! # }
//! ```

mod frontend;
mod ring;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

pub use frontend::Frontend;
use ring::DriverRing;

use crate::device::QueueSetup;
use crate::memory::{Memory, MemoryError};
use crate::queue::passed;
use crate::spec::{AVAIL_NO_INTERRUPT, DESC_INDIRECT, DESC_NEXT, DESC_WRITE, F_EVENT_IDX, USED_NO_NOTIFY};
use crate::vring::signal;

/// One buffer of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buf {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buf {
    /// A buffer the device reads.
    #[must_use]
    pub fn readable(gpa: u64, len: u32) -> Self {
        Self { gpa, len, writable: false }
    }

    /// A buffer the device writes.
    #[must_use]
    pub fn writable(gpa: u64, len: u32) -> Self {
        Self { gpa, len, writable: true }
    }
}

/// Why the driver side could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The ring does not fit where it was asked for.
    #[error("the ring does not fit into the memory given")]
    Memory(#[from] MemoryError),
    /// The system's answer.
    #[error("no eventfd")]
    System(#[from] std::io::Error),
    /// The backend's or the connection's answer.
    #[error("{what}: {source}")]
    Frontend {
        /// The request.
        what: &'static str,
        /// What came back.
        source: vhost::Error,
    },
}

/// Bytes a ring of `size` descriptors takes, the three parts together.
#[must_use]
pub fn footprint(size: u16) -> u64 {
    let n = u64::from(size);
    (n * 16 + (6 + n * 2)).next_multiple_of(4) + 6 + n * 8
}

/// A ring as its driver sees it.
#[derive(Debug)]
pub struct DriverQueue {
    ring: DriverRing,
    memory: Arc<Memory>,
    features: u64,
    size: u16,
    addresses: [u64; 3],
    /// Descriptors not in use, linked through `next`; a chain in use is linked the same way.
    free_head: u16,
    free: u16,
    next: Vec<u16>,
    /// How many descriptors the chain of a head has.
    lengths: Vec<u16>,
    next_avail: u16,
    kicked: u16,
    next_used: u16,
    kick: Arc<OwnedFd>,
    call: Arc<OwnedFd>,
    err: Arc<OwnedFd>,
}

fn eventfd() -> Result<Arc<OwnedFd>, DriverError> {
    let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
    Ok(Arc::new(fd.map_err(std::io::Error::from)?.into()))
}

impl DriverQueue {
    /// A ring of `size` descriptors (a power of two) at `gpa`, a multiple of 16; it takes [`footprint`] bytes,
    /// which are zeroed.
    ///
    /// # Errors
    /// It does not fit into one region, or no eventfd is left.
    pub fn new(memory: &Arc<Memory>, gpa: u64, size: u16, features: u64) -> Result<Self, DriverError> {
        let n = u64::from(size);
        memory.slice(gpa, footprint(size) as usize)?.fill(0);
        let avail = gpa + n * 16;
        let used = (avail + 6 + n * 2).next_multiple_of(4);
        Ok(Self {
            ring: DriverRing::new(memory, [gpa, avail, used], size)?,
            memory: Arc::clone(memory),
            features,
            size,
            addresses: [gpa, avail, used],
            free_head: 0,
            free: size,
            next: (1..=size).collect(),
            lengths: vec![0; usize::from(size)],
            next_avail: 0,
            kicked: 0,
            next_used: 0,
            kick: eventfd()?,
            call: eventfd()?,
            err: eventfd()?,
        })
    }

    /// What a device is started with, for tests that call one without a session.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn setup(&self, index: u16, base: u16) -> Result<QueueSetup, DriverError> {
        let [desc, avail, used] = self.addresses;
        Ok(QueueSetup {
            index,
            size: self.size,
            desc,
            avail,
            used,
            features: self.features,
            base,
            kick: Some(self.kick.try_clone()?),
            call: Some(self.call.try_clone()?),
            err: Some(self.err.try_clone()?),
            memory: Arc::clone(&self.memory),
            inflight: None,
            inherited: false,
        })
    }

    /// Posts a request as a chain of descriptors; `None` if there are too few left. Not visible before
    /// [`DriverQueue::publish`].
    #[inline]
    pub fn add(&mut self, bufs: &[Buf]) -> Option<u16> {
        if bufs.is_empty() || bufs.len() > usize::from(self.free) {
            return None;
        }
        let head = self.free_head;
        let mut index = head;
        for (i, buf) in bufs.iter().enumerate() {
            let next = self.after(index);
            let more = if i + 1 < bufs.len() { DESC_NEXT } else { 0 };
            let flags = if buf.writable { DESC_WRITE } else { 0 } | more;
            self.ring.set_desc(index, buf.gpa, buf.len, flags, if more == 0 { 0 } else { next });
            index = next;
        }
        self.offer(head, index, bufs.len() as u16);
        Some(head)
    }

    #[inline]
    fn after(&self, index: u16) -> u16 {
        self.next.get(usize::from(index)).copied().unwrap_or(0)
    }

    /// Posts a request as one descriptor that refers to a table at `table`, written there (16 bytes per buffer).
    ///
    /// # Errors
    /// The table is outside memory; nothing is posted. `Ok(None)` if no descriptor is left.
    pub fn add_indirect(&mut self, table: u64, bufs: &[Buf]) -> Result<Option<u16>, MemoryError> {
        for (i, buf) in bufs.iter().enumerate() {
            let last = i + 1 == bufs.len();
            let flags = if buf.writable { DESC_WRITE } else { 0 } | if last { 0 } else { DESC_NEXT };
            let next = if last { 0 } else { i as u16 + 1 };
            let at = table + 16 * i as u64;
            self.memory.write_obj(at, buf.gpa.to_le())?;
            self.memory.write_obj(at + 8, buf.len.to_le())?;
            self.memory.write_obj(at + 12, flags.to_le())?;
            self.memory.write_obj(at + 14, next.to_le())?;
        }
        if self.free == 0 {
            return Ok(None);
        }
        let head = self.free_head;
        self.ring.set_desc(head, table, bufs.len() as u32 * 16, DESC_INDIRECT, 0);
        self.offer(head, self.after(head), 1);
        Ok(Some(head))
    }

    /// Puts a chain of `count` descriptors into the avail ring; `rest` is what follows it in the free list.
    #[inline]
    fn offer(&mut self, head: u16, rest: u16, count: u16) {
        self.free_head = rest;
        self.free -= count;
        if let Some(slot) = self.lengths.get_mut(usize::from(head)) {
            *slot = count;
        }
        self.ring.set_avail(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Gives the descriptors of an answered chain back.
    #[inline]
    fn release(&mut self, head: u16) {
        let Some(count) = self.lengths.get_mut(usize::from(head)).map(std::mem::take) else { return };
        let last = (1..count).fold(head, |at, _| self.after(at));
        if count > 0
            && let Some(next) = self.next.get_mut(usize::from(last))
        {
            *next = std::mem::replace(&mut self.free_head, head);
            self.free += count;
        }
    }

    /// Shows what has been posted to the device, without a kick.
    #[inline]
    pub fn publish(&mut self) {
        self.ring.set_avail_idx(self.next_avail);
    }

    /// Shows what has been posted and kicks if the device asks for that; says whether it did.
    #[inline]
    pub fn kick(&mut self) -> bool {
        let wanted = self.publish_and_ask();
        if wanted {
            signal(&self.kick);
        }
        wanted
    }

    /// As [`DriverQueue::kick`], without the kick itself.
    #[inline]
    pub fn publish_and_ask(&mut self) -> bool {
        self.publish();
        let (old, new) = (std::mem::replace(&mut self.kicked, self.next_avail), self.next_avail);
        DriverRing::full_fence();
        if self.features & F_EVENT_IDX != 0 {
            old != new && passed(self.ring.avail_event(), new, old)
        } else {
            old != new && self.ring.used_flags() & USED_NO_NOTIFY == 0
        }
    }

    /// Takes the next answer, if there is one: head and bytes written.
    #[inline]
    pub fn poll(&mut self) -> Option<(u16, u32)> {
        if self.ring.used_idx() == self.next_used {
            return None;
        }
        let (id, len) = self.ring.used(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        let head = id as u16;
        self.release(head);
        Some((head, len))
    }

    /// Asks for a call at the next answer; true if there is one already.
    #[inline]
    pub fn arm_calls(&mut self) -> bool {
        if self.features & F_EVENT_IDX != 0 {
            self.ring.set_used_event(self.next_used);
        } else {
            self.ring.set_avail_flags(0);
        }
        DriverRing::full_fence();
        self.ring.used_idx() != self.next_used
    }

    /// Asks for a call after `n` more answers, as a driver does that only wants room again (EVENT_IDX; without
    /// it, at the next answer); true if they are there already.
    #[inline]
    pub fn arm_calls_after(&mut self, n: u16) -> bool {
        if self.features & F_EVENT_IDX == 0 {
            return self.arm_calls();
        }
        self.ring.set_used_event(self.next_used.wrapping_add(n));
        DriverRing::full_fence();
        self.ring.used_idx().wrapping_sub(self.next_used) > n
    }

    /// Asks for no calls, while polling.
    #[inline]
    pub fn suppress_calls(&mut self) {
        if self.features & F_EVENT_IDX == 0 {
            self.ring.set_avail_flags(AVAIL_NO_INTERRUPT);
        } else {
            // An index just passed comes round again after 65535 more.
            self.ring.set_used_event(self.next_used.wrapping_sub(1));
        }
    }

    /// Takes the next answer, asleep until the call if need be; `None` after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Option<(u16, u32)> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(answer) = self.poll() {
                return Some(answer);
            }
            if self.arm_calls() {
                continue;
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            if poll(&mut [PollFd::new(self.call.as_fd(), PollFlags::POLLIN)], timeout) == Ok(1) {
                take(&self.call);
            }
        }
    }

    /// Whether the device has written the err descriptor since this was last asked.
    pub fn take_error(&self) -> bool {
        take(&self.err)
    }

    /// Whether the device has called since this was last asked.
    pub fn take_call(&self) -> bool {
        take(&self.call)
    }

    /// The doorbell.
    #[must_use]
    pub fn kick_fd(&self) -> &Arc<OwnedFd> {
        &self.kick
    }

    /// The interrupt.
    #[must_use]
    pub fn call_fd(&self) -> &Arc<OwnedFd> {
        &self.call
    }

    /// The error descriptor.
    #[must_use]
    pub fn err_fd(&self) -> &Arc<OwnedFd> {
        &self.err
    }

    /// Guest-physical addresses of descriptor table, avail ring and used ring.
    #[must_use]
    pub fn addresses(&self) -> [u64; 3] {
        self.addresses
    }

    /// Number of descriptors.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Descriptors not in use.
    #[must_use]
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The ring's fields, for tests that write nonsense into them.
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

/// Reads an eventfd; whether it was signalled.
fn take(fd: &OwnedFd) -> bool {
    nix::unistd::read(fd, &mut [0; 8]) == Ok(8)
}

#[cfg(test)]
#[path = "driver_test.rs"]
mod driver_test;
