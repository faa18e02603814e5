#![allow(unsafe_code)] // promises to io_uring that the data of what it is given stays in place
//! Serves the requests of one queue: takes them from the ring, brings them to the image, answers them.
//!
//! Owns the requests under way, one slot per descriptor of the ring, and lives on the queue's thread alone;
//! nothing here is shared with another queue unless a rate limit is set. Called by the worker of
//! [`strata_virtio`] whenever there may be something to do: a kick, a completion, or while polling.
//!
//! Refuses (answers with an error status) what [`crate::request`] refuses; never blocks while io_uring is there,
//! except in a discard on a block device, for which io_uring has no operation everywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;

use crate::disk::{Disk, OnError};
use crate::engine::inline::Inline;
use crate::engine::syscalls::{self, Wait};
use crate::engine::uring::Uring;
use crate::layers::Mapper;
use crate::layers::lane::{Lane, Reply};
use crate::request::{ID_BYTES, Op, Status};
use crate::slot::{Next, Outcome, Slot};
use crate::tally::Tally;

mod answer;
mod service;

/// How often a queue that has stopped for a failure looks whether it may go on.
const HALTED: Duration = Duration::from_millis(50);

/// One queue's requests.
#[derive(Debug)]
pub struct Server {
    disk: Arc<Disk>,
    vring: Vring,
    uring: Option<Uring>,
    /// On layers: what is known of where pieces lie, and who finds out more.
    mapper: Option<Mapper>,
    lane: Option<Lane>,
    chain: Chain,
    slots: Vec<Slot>,
    free: Vec<u16>,
    inline: Inline,
    /// Answers not shown yet, and answers since the last call.
    unshown: usize,
    uncalled: usize,
    tally: Arc<Tally>,
    /// When the requests now being taken were found.
    found: Instant,
    /// Requests found then that are answered and not counted in the latencies.
    untimed: u64,
    /// No request is taken before, for the rate limit.
    not_before: Option<Instant>,
    /// Requests that failed and are to be tried again, and the count of resumes when they did.
    parked: Vec<u16>,
    resumes: u64,
}

impl Server {
    /// Takes over the requests of a queue, with a ring from the disk's pool if there is one.
    ///
    /// # Errors
    /// On layers: no thread is left for the lane.
    pub fn new(disk: Arc<Disk>, vring: Vring, tally: Arc<Tally>) -> std::io::Result<Self> {
        let lane = disk.layers.clone().map(Lane::spawn).transpose()?;
        let mapper = disk.layers.clone().map(Mapper::new);
        let uring = disk.rings.take();
        Ok(Self {
            disk,
            vring,
            uring,
            mapper,
            lane,
            chain: Chain::new(),
            slots: Vec::new(),
            free: Vec::new(),
            inline: Inline::default(),
            unshown: 0,
            uncalled: 0,
            tally,
            found: Instant::now(),
            untimed: 0,
            not_before: None,
            parked: Vec::new(),
            resumes: 0,
        })
    }

    /// The queue, once the worker has given the service back.
    #[must_use]
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// Whether [`Server::reap`] would find something.
    #[inline]
    fn has_answers(&mut self) -> bool {
        self.uring.as_mut().is_some_and(Uring::has_completions)
            || self.lane.as_ref().is_some_and(Lane::has_replies)
    }

    /// Whether requests may be taken now.
    #[inline]
    fn may_take(&self) -> bool {
        self.parked.is_empty() && self.not_before.is_none_or(|time| time <= Instant::now())
    }

    /// Takes in the request in `self.chain`; false if it has been put back, since the rate limit is reached.
    #[inline]
    fn accept(&mut self) -> bool {
        let index = self.free.pop().unwrap_or_else(|| {
            // At most one slot per descriptor: a head is not popped again before it is answered.
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u16
        });
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return false };
        slot.begin();
        if let Err(fault) = slot.request.parse(&self.chain, &self.disk.limits()) {
            self.free.push(index);
            self.refuse(fault);
            return true;
        }
        // What an earlier backend has taken is not put back.
        if !self.chain.is_resubmitted()
            && let Err(time) = self.disk.limiter.admit(slot.request.len)
        {
            self.free.push(index);
            self.vring.unpop(&self.chain);
            self.not_before = Some(time);
            self.tally.throttled.add(1);
            return false;
        }
        if slot.request.op == Op::GetId {
            self.disk.copy_serial(&self.chain, slot.request.len.min(ID_BYTES as u64) as usize);
        }
        match self.advance(index) {
            Some(status) => {
                self.tally.inline.add(1);
                self.finish(index, status);
            }
            None => {
                let found = self.found;
                if let Some(slot) = self.slots.get_mut(usize::from(index)) {
                    slot.found = Some(found);
                }
            }
        }
        true
    }

    /// Moves a request on until it ends (how) or waits for the ring, the lane or better times (`None`).
    #[inline]
    fn advance(&mut self, index: u16) -> Option<Status> {
        let queue = self.vring.index();
        let Self { disk, uring, slots, inline, mapper, lane, vring, .. } = self;
        let slot = slots.get_mut(usize::from(index))?;
        let durable = disk.write_through.load(Ordering::Relaxed) && disk.image.flushes();
        let gate = mapper.as_ref().map(|mapper| mapper.layers().gate());
        let mut wait = false;
        let (status, errno) = loop {
            let job = match slot.next(disk, mapper.as_ref(), durable) {
                Next::Job(job) => job,
                Next::End(status) => return Some(status),
                Next::Ask(ask) => match lane {
                    Some(lane) => {
                        // SAFETY: the data was resolved in this memory.
                        unsafe { lane.ask(index, ask, Arc::clone(vring.queue().memory())) };
                        return None;
                    }
                    None => break (Status::IoError, Errno::EIO),
                },
            };
            if gate.is_some_and(|gate| !gate.enter(queue)) {
                slot.take_the_lane();
                continue;
            }
            let Some(image) = disk.files.get(job.node()) else { break (Status::IoError, Errno::EIO) };
            let answer = match (&mut *uring, wait) {
                (None, _) | (_, true) => syscalls::run(image, &job, Wait::Allowed),
                (Some(uring), false) => match inline.attempt(image, &job) {
                    Some(answer) => answer,
                    // SAFETY: the data is guest memory, which the queue keeps mapped until it is drained; the
                    // list belongs to the slot, which is not touched before the completion is reported.
                    // `Drop` waits for what is under way.
                    None => match unsafe { uring.push(u64::from(index), &job) } {
                        Ok(()) => return None,
                        Err(_) => syscalls::run(image, &job, Wait::Allowed),
                    },
                },
            };
            if let Some(gate) = gate {
                gate.leave(queue);
            }
            match slot.apply_job(answer, durable, mapper.is_some()) {
                Outcome::Continue => wait = false,
                Outcome::Retry => wait = true,
                Outcome::Failed(status, errno) => break (status, errno),
            }
        };
        self.failed(index, status, errno)
    }

    /// Goes on with every request whose job has completed, or that the lane has replied to.
    #[inline]
    fn reap(&mut self) -> bool {
        let mut any = false;
        let durable = self.disk.write_through.load(Ordering::Relaxed) && self.disk.image.flushes();
        while let Some((token, answer)) = self.uring.as_mut().and_then(Uring::reaped) {
            any = true;
            let index = token as u16;
            if let Some(mapper) = &self.mapper {
                mapper.layers().gate().leave(self.vring.index());
            }
            let mapped = self.mapper.is_some();
            let Some(slot) = self.slots.get_mut(usize::from(index)) else { continue };
            let outcome = slot.apply_job(answer, durable, mapped);
            self.go_on(index, outcome);
        }
        while let Some(reply) = self.lane.as_mut().and_then(Lane::reply) {
            any = true;
            self.replied(reply, durable);
        }
        any
    }

    #[cold]
    fn replied(&mut self, reply: Reply, durable: bool) {
        if let Some(mapper) = &mut self.mapper {
            reply.found.iter().for_each(|found| mapper.learn(found));
        }
        if let Some(slot) = self.slots.get_mut(usize::from(reply.token)) {
            let outcome = slot.apply_reply(reply.answer, !reply.found.is_empty(), durable);
            self.go_on(reply.token, outcome);
        }
    }

    #[inline]
    fn go_on(&mut self, index: u16, outcome: Outcome) {
        let status = match outcome {
            Outcome::Continue => self.advance(index),
            Outcome::Retry => self.advance_waiting(index),
            Outcome::Failed(status, errno) => self.failed(index, status, errno),
        };
        if let Some(status) = status {
            self.finish(index, status);
            // The device is slower than the driver: one that sleeps is called for the first answer of a burst and
            // goes on while the rest is taken in. It asks for one call each time it falls asleep, so there are no more.
            self.flush();
        }
    }

    /// After the ring has said EAGAIN: once more, waiting; then on as usual.
    #[cold]
    fn advance_waiting(&mut self, index: u16) -> Option<Status> {
        let lent = self.uring.take();
        let status = self.advance(index);
        self.uring = lent;
        status
    }

    /// The image has failed a request: what the guest is told, or `None` if it is kept for better times.
    #[cold]
    fn failed(&mut self, index: u16, status: Status, errno: Errno) -> Option<Status> {
        let stop = self.disk.on_error == OnError::Stop && status == Status::IoError;
        if let Some(slot) = self.slots.get(usize::from(index)) {
            answer::report(&self.disk, slot.request.op, errno, stop);
        }
        if !stop {
            return Some(status);
        }
        if self.parked.is_empty() {
            self.resumes = self.disk.resumes.load(Ordering::Acquire);
            self.disk.halted.fetch_add(1, Ordering::Relaxed);
        }
        self.parked.push(index);
        None
    }

    /// Tries again what has failed, if somebody has said so since.
    #[cold]
    fn resume(&mut self) {
        if self.disk.resumes.load(Ordering::Acquire) == self.resumes {
            return;
        }
        self.disk.halted.fetch_sub(1, Ordering::Relaxed);
        for index in std::mem::take(&mut self.parked) {
            if let Some(slot) = self.slots.get_mut(usize::from(index)) {
                slot.try_again();
            }
            if let Some(status) = self.advance(index) {
                self.finish(index, status);
            }
        }
    }
}

impl Drop for Server {
    /// The kernel may still be writing into guest memory; it goes on existing only while the queue does.
    fn drop(&mut self) {
        if let Some(mut uring) = self.uring.take() {
            while uring.under_way() > 0 {
                if uring.reaped().is_none() {
                    uring.wait();
                }
            }
            self.disk.rings.give_back(uring);
        }
        if let Some(mapper) = &self.mapper {
            // The lane ends next, and may be waiting for that.
            mapper.layers().gate().reset(self.vring.index());
        }
    }
}
