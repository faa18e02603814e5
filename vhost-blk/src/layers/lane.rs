#![allow(unsafe_code)] // copies between guest memory and buffers of ours
//! The slow lane of a queue on layers: a thread that does through imago what a queue must not wait for.
//!
//! Asked by [`crate::server`], which goes on meanwhile and takes replies when its eventfd says so. Requests are done
//! in order, as many as there are at a time; what they changed in imago's tables is handed to the kernel before
//! the first of them is answered, so that a process that is killed loses nothing it has confirmed.
//!
//! Guest data is copied through a buffer of at most `CHUNK` bytes: imago wants slices, which memory that
//! a guest may change at any time cannot be.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use imago::io_buffers::IoBuffer;
use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use strata_virtio::limit::Throttle;
use strata_virtio::memory::{IoSlice, Memory};

use super::mapper::{Found, Place};
use super::{Layers, place};

/// Most bytes of data in a buffer at a time.
const CHUNK: usize = 1 << 20;
/// Most requests done between two hand-overs of tables.
const BATCH: usize = 64;
/// Pieces looked up ahead of the one asked for, if they lie behind it.
const AHEAD: u64 = 64;
const STACK: usize = 512 << 10;

/// What is asked.
#[derive(Debug)]
pub enum Ask {
    /// Fill `data` from `offset`, or say where that lies.
    Read {
        /// Byte offset in the disk.
        offset: u64,
        /// Where to.
        data: Vec<IoSlice>,
        /// Whether it is enough to say where it lies.
        look_up: bool,
    },
    /// Say where the byte at `offset` lies, if its piece lies in one place.
    Find {
        /// Byte offset in the disk.
        offset: u64,
    },
    /// Write `data` to `offset`.
    Write {
        /// Byte offset in the disk.
        offset: u64,
        /// Where from.
        data: Vec<IoSlice>,
    },
    /// Bring everything to the device.
    Sync,
    /// Give clusters back.
    Discard {
        /// Byte offset in the disk.
        offset: u64,
        /// In bytes.
        len: u64,
    },
    /// Make it zero.
    Zero {
        /// Byte offset in the disk.
        offset: u64,
        /// In bytes.
        len: u64,
        /// Whether clusters may be given back.
        unmap: bool,
    },
}

struct Envelope {
    token: u16,
    ask: Ask,
    /// Keeps the data's memory mapped.
    _memory: Arc<Memory>,
}

/// What came of it.
#[derive(Debug)]
pub struct Reply {
    /// The one it was asked with.
    pub token: u16,
    /// Bytes done, which may be none of a read whose place has been found; or why not.
    pub answer: Result<usize, Errno>,
    /// What has been found out on the way.
    pub found: Vec<Found>,
}

/// A queue's end of its lane.
#[derive(Debug)]
pub struct Lane {
    asks: Option<Sender<Envelope>>,
    replies: Receiver<Reply>,
    /// Replies that can be taken.
    ready: Arc<AtomicUsize>,
    wake: Arc<OwnedFd>,
    under_way: usize,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Lane {
    /// Starts the thread.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn spawn(layers: Arc<Layers>) -> io::Result<Self> {
        let (asks, asked) = channel();
        let (reply, replies) = channel();
        let ready = Arc::new(AtomicUsize::new(0));
        let wake: OwnedFd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?.into();
        let wake = Arc::new(wake);
        let worker = Worker { layers, asked, reply, ready: Arc::clone(&ready), wake: Arc::clone(&wake) };
        let thread =
            std::thread::Builder::new().name("lane".into()).stack_size(STACK).spawn(move || worker.run())?;
        Ok(Self { asks: Some(asks), replies, ready, wake, under_way: 0, thread: Some(thread) })
    }

    /// Asks for something; the reply comes with `token`.
    ///
    /// # Safety
    /// Its data lies in `memory`.
    pub unsafe fn ask(&mut self, token: u16, ask: Ask, memory: Arc<Memory>) {
        self.under_way += 1;
        if let Some(asks) = &self.asks {
            // The thread lives as long as the sender.
            let _ = asks.send(Envelope { token, ask, _memory: memory });
        }
    }

    /// Asked and not yet replied.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether a reply can be taken; looks at memory only.
    #[inline]
    #[must_use]
    pub fn has_replies(&self) -> bool {
        self.under_way > 0 && self.ready.load(Ordering::Acquire) > 0
    }

    /// Takes a reply, if there is one.
    #[inline]
    pub fn reply(&mut self) -> Option<Reply> {
        if !self.has_replies() {
            return None;
        }
        self.take(self.replies.try_recv().ok())
    }

    /// Takes a reply, waiting for it; `None` if nothing is under way.
    pub fn wait(&mut self) -> Option<Reply> {
        if self.under_way == 0 {
            return None;
        }
        self.take(self.replies.recv().ok())
    }

    fn take(&mut self, reply: Option<Reply>) -> Option<Reply> {
        if reply.is_some() {
            self.ready.fetch_sub(1, Ordering::AcqRel);
            self.under_way -= 1;
        }
        reply
    }
}

impl AsFd for Lane {
    /// Readable when there are replies.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl Drop for Lane {
    /// Lets the thread finish what it was asked; it may be writing into guest memory.
    fn drop(&mut self) {
        self.asks = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    layers: Arc<Layers>,
    asked: Receiver<Envelope>,
    reply: Sender<Reply>,
    ready: Arc<AtomicUsize>,
    wake: Arc<OwnedFd>,
}

impl Worker {
    fn run(self) {
        let mut replies = Vec::new();
        while let Ok(first) = self.asked.recv() {
            let mut changed = false;
            let mut next = Some(first);
            while let Some(Envelope { token, ask, _memory }) = next {
                let mut found = Vec::new();
                changed |= matches!(ask, Ask::Write { .. } | Ask::Discard { .. } | Ask::Zero { .. });
                let answer = self.layers.perform(&ask, &mut found).map_err(|error| errno(&error));
                replies.push(Reply { token, answer, found });
                next = if replies.len() < BATCH { self.asked.try_recv().ok() } else { None };
            }
            // Before anything is confirmed.
            let flushed =
                if changed { self.layers.hand_over().map_err(|error| errno(&error)) } else { Ok(()) };
            for mut reply in replies.drain(..) {
                if let (Ok(_), Err(errno)) = (reply.answer, flushed) {
                    reply.answer = Err(errno);
                }
                // The queue may have gone.
                let _ = self.reply.send(reply);
                self.ready.fetch_add(1, Ordering::AcqRel);
            }
            strata_virtio::vring::signal(&self.wake);
        }
    }
}

fn errno(error: &io::Error) -> Errno {
    static REFUSED: Throttle = Throttle::new(5, 60);
    if REFUSED.allow() {
        tracing::warn!("qcow2: {error}");
    }
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

impl Layers {
    fn perform(&self, ask: &Ask, found: &mut Vec<Found>) -> io::Result<usize> {
        match ask {
            Ask::Read { offset, data, look_up } => {
                if *look_up && self.look_up(*offset, found)? {
                    Ok(0)
                } else {
                    self.read(*offset, data)
                }
            }
            Ask::Find { offset } => self.look_up(*offset, found).map(|_| 0),
            Ask::Write { offset, data } => {
                let written = self.write(*offset, data);
                let len: usize = data.iter().map(IoSlice::len).sum();
                self.forget(*offset, len as u64);
                let written = written?;
                // It has a place now; more writes to it are likely.
                self.look_up(*offset, found)?;
                Ok(written)
            }
            Ask::Sync => {
                self.hand_over()?;
                self.access.sync().map(|()| 0)
            }
            Ask::Discard { offset, len } => self.give_back(*offset, *len, || {
                // SAFETY: the gate is closed: nothing is under way to a cluster of the image but through imago.
                unsafe { self.access.discard_to_any_unsafe(*offset, *len) }
            }),
            Ask::Zero { offset, len, unmap } => self.give_back(*offset, *len, || {
                if *unmap {
                    // SAFETY: as above.
                    unsafe { self.access.discard_to_zero_unsafe(*offset, *len) }
                } else {
                    self.access.write_zeroes(*offset, *len)
                }
            }),
        }
    }

    /// Does something after which clusters may belong to something else.
    fn give_back(&self, offset: u64, len: u64, action: impl FnOnce() -> io::Result<()>) -> io::Result<usize> {
        self.gate.while_closed(|| {
            let done = action();
            self.forget(offset, len);
            done.map(|()| 0)
        })
    }

    /// Finds out where a piece lies, and those behind it that lie behind it; false if not in one place.
    fn look_up(&self, offset: u64, found: &mut Vec<Found>) -> io::Result<bool> {
        let granule = offset / self.granule;
        let start = granule * self.granule;
        // Before the question: what changes meanwhile is found out again.
        let versions: Vec<u32> =
            (granule..granule + AHEAD).map(|piece| self.version(piece).load(Ordering::Acquire)).collect();
        let end = self.access.size();
        let most = (AHEAD * self.granule).min(end.saturating_sub(start));
        let (mapping, length) = self.access.get_mapping(start, most)?;
        // The last piece of a disk may be a short one.
        let whole = if start + length >= end { length.div_ceil(self.granule) } else { length / self.granule };
        let Some(first) = place(&mapping) else { return Ok(false) };
        for (step, version) in (0..whole).zip(versions) {
            let place = match first {
                Place::File { node, offset, writable } => {
                    Place::File { node, offset: offset + step * self.granule, writable }
                }
                Place::Zero => Place::Zero,
            };
            found.push(Found { granule: granule + step, place, version });
        }
        Ok(whole > 0)
    }

    fn read(&self, offset: u64, data: &[IoSlice]) -> io::Result<usize> {
        let len = data.iter().map(IoSlice::len).sum::<usize>().min(CHUNK);
        let mut buffer = self.buffer(len)?;
        self.access.read(&mut buffer, offset)?;
        scatter(buffer.as_ref().into_slice(), data);
        Ok(len)
    }

    fn write(&self, offset: u64, data: &[IoSlice]) -> io::Result<usize> {
        let len = data.iter().map(IoSlice::len).sum::<usize>().min(CHUNK);
        let mut buffer = self.buffer(len)?;
        gather(data, buffer.as_mut().into_slice());
        self.access.write(&buffer, offset)?;
        Ok(len)
    }

    fn buffer(&self, len: usize) -> io::Result<IoBuffer> {
        IoBuffer::new(len, self.access.mem_align())
    }
}

/// Copies a buffer to guest memory, as far as both go.
fn scatter(mut from: &[u8], to: &[IoSlice]) {
    for part in to {
        let (now, later) = from.split_at(part.len().min(from.len()));
        // SAFETY: the part was resolved in guest memory that the envelope keeps mapped; `now` is no longer than it.
        unsafe { std::ptr::copy_nonoverlapping(now.as_ptr(), part.as_ptr(), now.len()) };
        from = later;
    }
}

/// Copies guest memory to a buffer, as far as both go.
fn gather(from: &[IoSlice], mut to: &mut [u8]) {
    for part in from {
        let (now, later) = to.split_at_mut(part.len().min(to.len()));
        // SAFETY: as above, the other way round.
        unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), now.as_mut_ptr(), now.len()) };
        to = later;
    }
}

/// Makes guest memory zero. The caller keeps it mapped, as for any request under way.
pub(crate) fn zero(parts: &[IoSlice]) {
    for part in parts {
        // SAFETY: resolved in guest memory, which the queue keeps mapped while a request of it is open.
        unsafe { std::ptr::write_bytes(part.as_ptr(), 0, part.len()) };
    }
}
