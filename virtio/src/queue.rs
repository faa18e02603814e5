//! The device side of a split ring (virtio 1.2 section 2.7).
//!
//! Owns the free-running indices, the resolved addresses, the set of requests taken and not answered, and the
//! queue's inflight region. Called by the one thread that serves the queue. Each request goes
//!
//! ```text
//!   avail ring --pop--> taken (marked in flight) --push--> used element --publish--> visible, unmarked
//!                  \--unpop--> avail ring
//! ```
//!
//! Refuses, as a [`RingError`], a ring that makes no sense: it is broken from then on and `pop` says so again.
//! A chain that makes no sense is the request's own fault: [`Popped::Malformed`] gives its head, to be pushed
//! with length 0.

use std::sync::Arc;

use crate::chain::{Chain, ChainError};
use crate::device::QueueSetup;
use crate::inflight::{InflightError, Tracker};
use crate::memory::{Memory, MemoryError};
use crate::ring::Ring;
use crate::spec::{AVAIL_NO_INTERRUPT, F_INDIRECT_DESC, USED_NO_NOTIFY};

/// Why a ring cannot be used, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// Not a power of two, or beyond 32768.
    #[error("queue size {size}; a power of two up to 32768 is allowed")]
    Size {
        /// The size given.
        size: u16,
    },
    /// A part is not aligned as section 2.7 asks.
    #[error("the {part} at {gpa:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// Which part.
        part: &'static str,
        /// Guest-physical address.
        gpa: u64,
        /// What it must be a multiple of.
        align: usize,
    },
    /// A part is not inside one region of guest memory.
    #[error("the {part} is outside guest memory")]
    Outside {
        /// Which part.
        part: &'static str,
        /// Where it was said to be.
        #[source]
        source: MemoryError,
    },
    /// The inflight region does not fit.
    #[error("the queue's inflight region cannot be used")]
    Inflight(#[source] InflightError),
    /// The avail index moved further than there are descriptors.
    #[error("the avail index jumped from {from} to {to} in a queue of {size}")]
    AvailJump {
        /// Next index to be taken.
        from: u16,
        /// What the driver wrote.
        to: u16,
        /// Queue size.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("the avail ring offers descriptor {head} in a queue of {size}")]
    HeadOutOfRange {
        /// The head.
        head: u16,
        /// Queue size.
        size: u16,
    },
    /// It was found broken before.
    #[error("the ring was found broken earlier; it takes a stop and a start to use it again")]
    Broken,
    /// A head offered again before it was answered.
    #[error("the avail ring offers descriptor {head}, which is still being worked on")]
    HeadTwice {
        /// The head.
        head: u16,
    },
}

/// What [`Queue::pop`] found.
#[derive(Debug)]
pub enum Popped {
    /// Nothing to do.
    Empty,
    /// The chain passed in has been filled.
    Chain,
    /// A request that cannot be understood; push `head` with length 0.
    Malformed {
        /// Its head.
        head: u16,
        /// What is wrong.
        why: ChainError,
    },
}

/// One queue being served.
#[derive(Debug)]
pub struct Queue {
    ring: Ring,
    indirect: bool,
    /// Next avail index to take.
    next_avail: u16,
    /// The driver's avail index when last looked at.
    seen_avail: u16,
    /// Next used index to write.
    next_used: u16,
    /// Used index the driver can see.
    shown_used: u16,
    /// Whether a call was decided on before; the first publish always calls (the driver may wait already).
    called: bool,
    kicks_suppressed: bool,
    broken: bool,
    /// One bit per head: taken and not pushed.
    taken: Box<[u64]>,
    in_flight: u16,
    /// Requests an earlier backend left, the oldest last.
    resubmit: Vec<u16>,
    tracker: Option<Tracker>,
    memory: Arc<Memory>,
}

impl Queue {
    /// Takes over a ring. With an inflight region the requests an earlier backend left unanswered come out of
    /// [`Queue::pop`] first, and the base follows from the ring itself (used index plus those requests: what
    /// was taken is answered or in flight), since the frontend of a crashed backend cannot know it.
    ///
    /// # Errors
    /// Size, alignment, place or inflight region are not usable.
    pub fn new(setup: &QueueSetup) -> Result<Self, RingError> {
        let ring = Ring::new(setup)?;
        let used = ring.used_idx();
        let mut queue = Self {
            indirect: setup.features & F_INDIRECT_DESC != 0,
            next_avail: setup.base,
            seen_avail: setup.base,
            next_used: used,
            shown_used: used,
            called: false,
            kicks_suppressed: false,
            broken: false,
            taken: vec![0; usize::from(setup.size).div_ceil(64)].into_boxed_slice(),
            in_flight: 0,
            resubmit: Vec::new(),
            tracker: None,
            memory: Arc::clone(&setup.memory),
            ring,
        };
        if let Some(region) = &setup.inflight {
            let (tracker, mut pending) =
                Tracker::attach(region.clone(), setup.size, used).map_err(RingError::Inflight)?;
            queue.next_avail = used.wrapping_add(pending.len() as u16);
            queue.seen_avail = queue.next_avail;
            pending.reverse();
            queue.resubmit = pending;
            queue.tracker = Some(tracker);
        }
        Ok(queue)
    }

    /// Takes the next request and fills `chain` with it. Reads the avail index once per batch.
    ///
    /// # Errors
    /// The ring is broken: stop serving it.
    #[inline]
    pub fn pop(&mut self, chain: &mut Chain) -> Result<Popped, RingError> {
        if self.broken {
            return Err(RingError::Broken);
        }
        let resubmitted = !self.resubmit.is_empty();
        let head = match self.resubmit.pop() {
            Some(head) => head,
            None => {
                if self.next_avail == self.seen_avail && !self.look()? {
                    return Ok(Popped::Empty);
                }
                self.ring.avail_head(self.next_avail)
            }
        };
        self.take(head)?;
        if !resubmitted {
            self.next_avail = self.next_avail.wrapping_add(1);
            if let Some(tracker) = &mut self.tracker {
                tracker.mark(head);
            }
        }
        chain.resubmitted = resubmitted;
        Ok(match chain.fill(&self.ring, &self.memory, head, self.indirect) {
            Ok(()) => Popped::Chain,
            Err(why) => Popped::Malformed { head, why },
        })
    }

    /// Looks at the driver's index again; whether there is something to take.
    #[inline]
    fn look(&mut self) -> Result<bool, RingError> {
        let (from, to, size) = (self.next_avail, self.ring.avail_idx(), self.ring.size());
        if to.wrapping_sub(from) > size {
            self.broken = true;
            return Err(RingError::AvailJump { from, to, size });
        }
        self.seen_avail = to;
        Ok(to != from)
    }

    #[inline]
    fn take(&mut self, head: u16) -> Result<(), RingError> {
        let size = self.ring.size();
        let bit = 1u64 << (head % 64);
        let why = match self.taken.get_mut(usize::from(head / 64)) {
            Some(word) if head < size && *word & bit == 0 => {
                *word |= bit;
                self.in_flight += 1;
                return Ok(());
            }
            Some(_) if head < size => RingError::HeadTwice { head },
            _ => RingError::HeadOutOfRange { head, size },
        };
        self.broken = true;
        Err(why)
    }

    /// Frees the head's bit; whether it was set.
    #[inline]
    fn give(&mut self, head: u16) -> bool {
        let bit = 1u64 << (head % 64);
        match self.taken.get_mut(usize::from(head / 64)) {
            Some(word) if *word & bit != 0 => {
                *word &= !bit;
                self.in_flight -= 1;
                true
            }
            _ => false,
        }
    }

    /// Puts back the request last popped, as if it had not been. Several are put back last one first.
    #[inline]
    pub fn unpop(&mut self, chain: &Chain) {
        let head = chain.head();
        if !self.give(head) {
            return;
        }
        if chain.resubmitted {
            self.resubmit.push(head);
            return;
        }
        self.next_avail = self.next_avail.wrapping_sub(1);
        if let Some(tracker) = &mut self.tracker {
            tracker.unmark(head);
        }
    }

    /// Writes a used element: the device wrote `written` bytes into the request's buffers. Not visible before
    /// [`Queue::publish`]. A head that is not taken is ignored; returns whether it was.
    #[inline]
    pub fn push(&mut self, head: u16, written: u32) -> bool {
        if !self.give(head) {
            return false;
        }
        self.ring.set_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(tracker) = &mut self.tracker {
            tracker.answer(head);
        }
        true
    }

    /// Shows all pushed elements to the driver. True if it wants a call.
    #[inline]
    pub fn publish(&mut self) -> bool {
        let (old, new) = (self.shown_used, self.next_used);
        if old == new {
            return false;
        }
        self.ring.set_used_idx(new);
        self.shown_used = new;
        if let Some(tracker) = &mut self.tracker {
            tracker.published(new);
        }
        // The index must be out before the driver's wish is read (2.7.7.2), or both sides could wait.
        Ring::full_fence();
        let first = !std::mem::replace(&mut self.called, true);
        match self.ring.used_event() {
            Some(event) => first || passed(event, new, old),
            None => self.ring.avail_flags() & AVAIL_NO_INTERRUPT == 0,
        }
    }

    /// Whether the driver, who wanted a call for what was published from used index `from` on, wants it still: it may
    /// have seen the answers meanwhile, and asks for later ones now. No fence is needed: a driver that changes its wish
    /// looks at the index afterwards, and that one is out since [`Queue::publish`].
    #[inline]
    #[must_use]
    pub fn still_wants_call(&self, from: u16) -> bool {
        match self.ring.used_event() {
            Some(event) => passed(event, self.shown_used, from),
            None => self.ring.avail_flags() & AVAIL_NO_INTERRUPT == 0,
        }
    }

    /// The used index the driver can see.
    #[inline]
    #[must_use]
    pub fn shown(&self) -> u16 {
        self.shown_used
    }

    /// Asks the driver not to kick, while the ring is polled. With EVENT_IDX the event index is left behind,
    /// which says the same and dirties no cache line of the driver's.
    #[inline]
    pub fn suppress_kicks(&mut self) {
        if !self.kicks_suppressed {
            self.kicks_suppressed = true;
            if !self.ring.event_idx() {
                self.ring.set_used_flags(USED_NO_NOTIFY);
            }
        }
    }

    /// The same before the driver has posted anything: a ring begins as zeros, and an event index of 0 asks for a kick at
    /// the first request.
    pub fn suppress_first_kick(&mut self) {
        self.suppress_kicks();
        if self.ring.event_idx() {
            self.ring.set_avail_event(self.next_avail.wrapping_sub(1));
        }
    }

    /// Asks for a kick at the next request, then looks again: true if there is one already, and the caller
    /// must not sleep (2.7.10.1).
    #[inline]
    pub fn arm_kicks(&mut self) -> bool {
        self.kicks_suppressed = false;
        if self.ring.event_idx() {
            self.ring.set_avail_event(self.next_avail);
        } else {
            self.ring.set_used_flags(0);
        }
        // The wish must be out before the index is read again: the driver writes them in the other order.
        Ring::full_fence();
        self.has_work()
    }

    /// Whether a `pop` would find something (a broken ring has nothing).
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        !self.broken
            && (!self.resubmit.is_empty()
                || self.next_avail != self.seen_avail
                || self.next_avail != self.ring.avail_idx())
    }

    /// The avail index of the first request not taken: where the next owner goes on once all taken ones are
    /// published.
    #[inline]
    #[must_use]
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Number of descriptors.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Elements pushed and not published.
    #[inline]
    #[must_use]
    pub fn unpublished(&self) -> u16 {
        self.next_used.wrapping_sub(self.shown_used)
    }

    /// Requests taken and not pushed.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Whether the ring was found broken.
    #[inline]
    #[must_use]
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The memory the chains lie in.
    #[inline]
    #[must_use]
    pub fn memory(&self) -> &Arc<Memory> {
        &self.memory
    }
}

/// vring_need_event (2.7.7.2, 2.7.10.2): whether going from `old` to `new` passes `event`.
#[inline]
pub(crate) fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod queue_test;

#[cfg(test)]
#[path = "lost_wake_test.rs"]
mod lost_wake_test;

#[cfg(test)]
#[path = "differential_test.rs"]
mod differential_test;
