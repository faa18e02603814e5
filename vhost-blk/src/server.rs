#![allow(unsafe_code)] // promises to io_uring that the data of what it is given stays in place
//! Serves the requests of one queue: takes them from the ring, brings them to the image, answers them.
//!
//! Owns the requests under way, one slot per descriptor of the ring, and lives on the queue's thread alone;
//! nothing here is shared with another queue. Called by the worker of [`strata_virtio`] whenever there may be
//! something to do: a kick, a completion, or while polling.
//!
//! Refuses (answers with an error status) what [`crate::request`] refuses; never blocks while io_uring is there,
//! except in a discard on a block device, for which io_uring has no operation everywhere.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::errno::Errno;
use strata_virtio::chain::Chain;
use strata_virtio::limit::Throttle;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Progress, Service, Source};

use crate::disk::Disk;
use crate::engine::inline::{Reads, Writes};
use crate::engine::syscalls::{self, Wait};
use crate::engine::uring::Uring;
use crate::engine::{Job, Path};
use crate::image::Kind;
use crate::request::{Answer, Fault, ID_BYTES, Op, Status};
use crate::slot::{Next, Outcome, Slot};

static BAD_REQUEST: Throttle = Throttle::new(5, 60);
static FAILED_IO: Throttle = Throttle::new(5, 60);

/// Answers shown to the driver at once while more requests wait: a polling driver goes on meanwhile.
const SHOW: usize = 8;
/// Answers after which a call that the driver wants is not put off any longer.
const CALL: usize = 64;

/// One queue's requests.
#[derive(Debug)]
pub struct Server {
    disk: Arc<Disk>,
    vring: Vring,
    uring: Option<Uring>,
    chain: Chain,
    slots: Vec<Slot>,
    free: Vec<u16>,
    reads: Reads,
    writes: Writes,
    /// The file system cannot promise not to wait (RWF_NOWAIT).
    no_promise: bool,
    /// Answers not shown yet, and answers since the last call.
    unshown: usize,
    uncalled: usize,
}

impl Server {
    /// Takes over the requests of a queue, with a ring from the disk's pool if there is one.
    #[must_use]
    pub fn new(disk: Arc<Disk>, vring: Vring) -> Self {
        let uring = disk.rings.take();
        Self {
            disk,
            vring,
            uring,
            chain: Chain::new(),
            slots: Vec::new(),
            free: Vec::new(),
            reads: Reads::default(),
            writes: Writes::default(),
            no_promise: false,
            unshown: 0,
            uncalled: 0,
        }
    }

    /// The queue, once the worker has given the service back.
    #[must_use]
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// Takes in the request in `self.chain`.
    #[inline]
    fn accept(&mut self) {
        let index = self.free.pop().unwrap_or_else(|| {
            // At most one slot per descriptor: a head is not popped again before it is answered.
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u16
        });
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        slot.begin();
        match slot.request.parse(&self.chain, &self.disk.limits) {
            Ok(()) => {
                if slot.request.op == Op::GetId {
                    self.disk.copy_serial(&self.chain, slot.request.len.min(ID_BYTES as u64) as usize);
                }
                if let Some(status) = self.advance(index) {
                    self.finish(index, status);
                }
            }
            Err(fault) => {
                self.free.push(index);
                self.refuse(fault);
            }
        }
    }

    /// Moves a request on until it ends (how) or waits for the ring (`None`).
    #[inline]
    fn advance(&mut self, index: u16) -> Option<Status> {
        let Self { disk, uring, slots, reads, writes, no_promise, .. } = self;
        let slot = slots.get_mut(usize::from(index))?;
        let image = &disk.image;
        let durable = disk.write_through.load(Ordering::Relaxed) && image.flushes();
        let mut wait = false;
        loop {
            let job = match slot.next(image, durable) {
                Next::End(status) => return Some(status),
                Next::Job(job) => job,
            };
            let answer = match (&mut *uring, wait) {
                (None, _) | (_, true) => syscalls::run(image, &job, Wait::Allowed),
                (Some(uring), false) => {
                    match attempt(image.kind(), &job, reads, writes, *no_promise)
                        .and_then(|attempt| attempt.run(image, &job, reads, writes, no_promise))
                    {
                        Some(answer) => answer,
                        // SAFETY: the data is guest memory, which the queue keeps mapped until it is drained; the
                        // list belongs to the slot, which is not touched before the completion is reported.
                        // `Drop` waits for what is under way.
                        None => match unsafe { uring.push(u64::from(index), &job) } {
                            Ok(()) => return None,
                            Err(_) => syscalls::run(image, &job, Wait::Allowed),
                        },
                    }
                }
            };
            match slot.apply(answer, durable) {
                Outcome::Continue => wait = false,
                Outcome::Retry => wait = true,
                Outcome::Failed(status, errno) => {
                    report(disk, slot.request.op, errno);
                    return Some(status);
                }
            }
        }
    }

    /// Goes on with every request whose job has completed.
    #[inline]
    fn reap(&mut self) -> bool {
        let mut any = false;
        while let Some((token, answer)) = self.uring.as_mut().and_then(Uring::reaped) {
            any = true;
            let index = token as u16;
            let durable = self.disk.write_through.load(Ordering::Relaxed) && self.disk.image.flushes();
            let Some(slot) = self.slots.get_mut(usize::from(index)) else { continue };
            let status = match slot.apply(answer, durable) {
                Outcome::Continue => self.advance(index),
                Outcome::Retry => self.advance_waiting(index),
                Outcome::Failed(status, errno) => {
                    report(&self.disk, slot.request.op, errno);
                    Some(status)
                }
            };
            if let Some(status) = status {
                self.finish(index, status);
                self.show_some();
            }
        }
        any
    }

    /// After the ring has said EAGAIN: once more, waiting; then on as usual.
    #[cold]
    fn advance_waiting(&mut self, index: u16) -> Option<Status> {
        let lent = self.uring.take();
        let status = self.advance(index);
        self.uring = lent;
        status
    }

    #[inline]
    fn finish(&mut self, index: u16, status: Status) {
        self.free.push(index);
        let answer = self.slots.get_mut(usize::from(index)).and_then(|slot| slot.request.answer.take());
        if let Some(answer) = answer {
            self.answer(answer, status);
        }
    }

    #[cold]
    fn refuse(&mut self, fault: Fault) {
        match fault {
            Fault::Unanswerable { head } => {
                if BAD_REQUEST.allow() {
                    tracing::warn!("{}: a request without room for a status", self.disk.name());
                }
                self.answered(head, 0);
            }
            Fault::Refused { answer, status, why } => {
                if BAD_REQUEST.allow() {
                    tracing::warn!("{}: request refused: {why}", self.disk.name());
                }
                self.answer(answer, status);
            }
        }
    }

    #[inline]
    fn answer(&mut self, answer: Answer, status: Status) {
        let (head, written) = answer.write(self.vring.queue().memory(), status);
        self.answered(head, written);
    }

    #[inline]
    fn answered(&mut self, head: u16, written: u32) {
        self.vring.push(head, written);
        self.unshown += 1;
    }

    #[inline]
    fn show_some(&mut self) {
        if self.unshown >= SHOW {
            self.uncalled += self.unshown;
            self.unshown = 0;
            if self.uncalled >= CALL {
                self.flush();
            } else {
                self.vring.show();
            }
        }
    }

    #[inline]
    fn flush(&mut self) {
        self.unshown = 0;
        self.uncalled = 0;
        self.vring.flush();
    }
}

impl Service for Server {
    #[inline]
    fn process(&mut self) -> Progress {
        let mut worked = self.reap();
        for _ in 0..self.vring.queue().size() {
            if !self.vring.next(&mut self.chain) {
                break;
            }
            worked = true;
            self.accept();
            self.show_some();
        }
        if let Some(uring) = &mut self.uring {
            uring.submit();
            worked |= self.reap();
        }
        self.flush();
        if worked { Progress::Worked } else { Progress::Idle }
    }

    #[inline]
    fn has_work(&mut self) -> bool {
        self.vring.queue().has_work() || self.uring.as_mut().is_some_and(Uring::has_completions)
    }

    fn suppress_kicks(&mut self) {
        self.vring.queue_mut().suppress_kicks();
    }

    fn prepare_sleep(&mut self) -> bool {
        self.vring.queue_mut().arm_kicks() || self.uring.as_mut().is_some_and(Uring::has_completions)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let mut sources = vec![Source::kick(&self.vring)];
        sources.extend(self.uring.as_ref().map(|uring| Source::readable(uring.as_fd())));
        sources
    }

    fn is_under_way(&self) -> bool {
        self.uring.as_ref().is_some_and(|uring| uring.under_way() > 0)
    }

    fn drain(&mut self) {
        while self.uring.as_ref().is_some_and(|uring| uring.under_way() > 0) {
            if !self.reap()
                && let Some(uring) = &mut self.uring
            {
                uring.wait();
            }
        }
        self.flush();
    }
}

impl Drop for Server {
    /// The kernel may still be writing into guest memory; it goes on existing only while the queue does.
    fn drop(&mut self) {
        let Some(mut uring) = self.uring.take() else { return };
        while uring.under_way() > 0 {
            if uring.reaped().is_none() {
                uring.wait();
            }
        }
        self.disk.rings.give_back(uring);
    }
}

/// A way to do a job here and now that is worth trying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// It never waits (memory is its only home).
    Plain,
    /// If it can be done without waiting.
    Promise,
    /// It rarely waits; the time it takes decides about the next.
    Timed,
}

/// Which attempt, if any, is worth it.
#[inline]
fn attempt(
    kind: Kind,
    job: &Job<'_>,
    reads: &mut Reads,
    writes: &mut Writes,
    no_promise: bool,
) -> Option<Attempt> {
    match job {
        // Its operation in a ring is missing (BLKDISCARD), or cannot be waited for better than here.
        Job::Discard { .. } if kind == Kind::BlockDevice => Some(Attempt::Plain),
        _ if kind == Kind::MemoryFile => Some(Attempt::Plain),
        Job::Read { path: Path::Buffered, .. } if !no_promise && reads.worth_trying() => {
            Some(Attempt::Promise)
        }
        Job::Write { path: Path::Buffered, durable: false, .. } if writes.worth_trying() => {
            Some(Attempt::Timed)
        }
        _ => None,
    }
}

impl Attempt {
    /// Tries; `None` if the job would have waited.
    #[inline]
    fn run(
        self,
        image: &crate::image::Image,
        job: &Job<'_>,
        reads: &mut Reads,
        writes: &mut Writes,
        no_promise: &mut bool,
    ) -> Option<Result<usize, Errno>> {
        match self {
            Self::Plain => Some(syscalls::run(image, job, Wait::Allowed)),
            Self::Promise => {
                let answer = syscalls::run(image, job, Wait::Forbidden);
                reads.tried(answer.is_ok());
                match answer {
                    Err(Errno::EAGAIN) => None,
                    Err(Errno::EOPNOTSUPP) => {
                        *no_promise = true;
                        None
                    }
                    answer => Some(answer),
                }
            }
            Self::Timed => {
                let start = Instant::now();
                let answer = syscalls::run(image, job, Wait::Allowed);
                writes.took(start.elapsed());
                Some(answer)
            }
        }
    }
}

#[cold]
fn report(disk: &Disk, op: Op, errno: Errno) {
    if !FAILED_IO.allow() {
        return;
    }
    let what = match op {
        Op::Read { offset } => format!("reading at byte {offset}"),
        Op::Write { offset } => format!("writing at byte {offset}"),
        Op::Flush => "flushing".into(),
        Op::Discard => "discarding".into(),
        Op::WriteZeroes => "writing zeroes".into(),
        Op::GetId => "identifying".into(),
    };
    if errno == Errno::ENODATA {
        tracing::error!("{}: {what}: the image is shorter than when it was opened", disk.name());
    } else {
        tracing::error!("{}: {what} failed: {}", disk.name(), std::io::Error::from(errno));
    }
}
