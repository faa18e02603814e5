//! The switch's way out: a tap, one port among the others. Owned by the switch's thread.
//!
//! Frames from guests are written straight from their memory, a batch per system call; frames from the host are read
//! into memory of ours and delivered from there. The tap takes and gives every offload a port may ask for, so it is the
//! receiving port that decides what has to be done to a frame.

use std::os::fd::{AsFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::frame::{Body, Out};
use super::stats::PortStats;
use crate::batch::{Batch, DEPTH, MAX_PIECES, Scatter};
use crate::features as feature;
use crate::header::{Allowed, HEADER, MAX_FRAME};
use crate::tap::{Tap, offload};

/// A header and the largest frame.
const LARGEST: usize = HEADER + MAX_FRAME;
/// Room for what begins a frame.
const START: usize = 320;
/// While polling, the tap is asked once in so many looks at the rings: it takes a system call.
const LOOKS: u32 = 24;

/// A tap behind a port.
#[derive(Debug)]
pub struct Uplink {
    batch: Batch,
    // Keeps the interface.
    _tap: Tap,
    scatter: Scatter,
    results: Vec<i32>,
    /// [`START`] bytes for each frame of a batch on its way out.
    starts: Vec<u8>,
    /// Bytes of each of them, header not counted.
    lengths: Vec<usize>,
    /// [`LARGEST`] bytes for each frame of a batch on its way in; only what is used is ever touched.
    frames: Vec<u8>,
    read: Vec<usize>,
    looks: u32,
}

impl Uplink {
    /// What the tap may give and take.
    pub const ALLOWED: Allowed =
        Allowed::of(feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN);

    /// Over the first queue of `tap`. Called inside the sandbox, before it closes.
    ///
    /// # Errors
    /// The tap takes no offloads, or the process has no descriptor left.
    pub fn new(tap: Tap, plain: bool) -> std::io::Result<Self> {
        tap.set_offload(offload::CSUM | offload::TSO4 | offload::TSO6 | offload::TSO_ECN)?;
        let fd = tap.queue(0).ok_or(std::io::ErrorKind::InvalidInput)?;
        let batch = if plain { Batch::plain(fd)? } else { Batch::new(fd)? };
        Ok(Self {
            batch,
            _tap: tap,
            scatter: Scatter::default(),
            results: Vec::with_capacity(DEPTH),
            starts: vec![0; DEPTH * START],
            lengths: Vec::with_capacity(DEPTH),
            frames: vec![0; DEPTH * LARGEST],
            read: Vec::with_capacity(DEPTH),
            looks: 0,
        })
    }

    /// The tap's descriptor.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.batch.as_fd()
    }

    /// Has a frame written by the next [`Uplink::flush`]; its sender's memory stays as it is until then.
    pub fn queue(&mut self, out: &Out<'_>, stats: &PortStats) {
        let at = self.lengths.len();
        let start =
            self.starts.chunks_exact_mut(START).nth(at).and_then(|room| room.get_mut(..out.start().len()));
        let Some(start) = start else { return stats.rx_drop_full.add(1) };
        start.copy_from_slice(out.start());
        let mut pieces = Vec::new();
        match out.body() {
            Body::Guest(chain, from) => {
                let len = out.len() - out.start().len();
                if chain.readable_range(from, len, &mut pieces).is_err() || pieces.len() >= MAX_PIECES {
                    return stats.rx_drop_no_room.add(1);
                }
                self.scatter.own(start);
                pieces.iter().for_each(|piece| self.scatter.guest(*piece));
            }
            // Only the uplink itself has frames in our memory, and it is not sent its own.
            Body::Own(_) => return stats.rx_drop_no_room.add(1),
        }
        self.scatter.end();
        self.lengths.push(out.len() - HEADER);
    }

    /// Writes what was queued.
    #[allow(unsafe_code)] // hands the kernel pieces of guest memory
    pub fn flush(&mut self, stats: &PortStats) {
        if self.lengths.is_empty() {
            return;
        }
        // SAFETY: the pieces lie in `starts`, or in guest memory that the requests keep mapped: those are answered,
        // and their chains used again, after this.
        unsafe { self.batch.write(&self.scatter, &mut self.results) };
        for (len, result) in self.lengths.iter().zip(&self.results) {
            match -*result {
                ..0 => {
                    stats.rx_frames.add(1);
                    stats.rx_bytes.add(*len as u64);
                }
                libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => stats.rx_drop_full.add(1),
                libc::EIO | libc::EBADFD | libc::ENODEV | libc::ENETDOWN => stats.rx_drop_link.add(1),
                _ => stats.rx_drop_uncut.add(1),
            }
        }
        self.scatter.clear();
        self.lengths.clear();
    }

    /// Reads a batch of frames; how many.
    #[allow(unsafe_code)] // has the kernel fill memory of ours
    pub fn read(&mut self) -> usize {
        self.read.clear();
        self.scatter.clear();
        for room in self.frames.chunks_exact_mut(LARGEST) {
            self.scatter.own(room);
            self.scatter.end();
        }
        // SAFETY: the pieces lie in `frames`, to which nothing refers now.
        unsafe { self.batch.read(&self.scatter, &mut self.results) };
        self.scatter.clear();
        self.read.extend(self.results.iter().map(|result| usize::try_from(*result).unwrap_or(0)));
        self.read.iter().filter(|len| **len > 0).count()
    }

    /// What was read, headers included.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let read = self.frames.chunks_exact(LARGEST).zip(&self.read);
        read.filter(|(_, len)| **len > 0).filter_map(|(room, len)| room.get(..*len))
    }

    /// Whether the host has sent something, looked at now and then.
    pub fn looks_readable(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        if !self.looks.is_multiple_of(LOOKS) {
            return false;
        }
        let mut fds = [PollFd::new(self.batch.as_fd(), PollFlags::POLLIN)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
            && fds.iter().any(|fd| fd.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)))
    }
}
