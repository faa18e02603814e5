//! What happens to frames that were read: they get the guest's next buffers, in order, or wait for some. Part of
//! [`super::Rx`].

use strata_virtio::chain::Chain;

use super::{Plan, Rx, SMALL_AGAIN, STRIDE};
use crate::capture::Direction;
use crate::header::{HEADER, segments};

/// Frames above this size go straight to the guest's buffers: copying a few of them costs more than a list.
const COPY: usize = 4096;

/// Whether buffers for a frame are there.
enum Room {
    Here,
    Later,
    Never,
}

impl Rx {
    /// Passes on what a batch read; the number of frames.
    pub(super) fn deliver(&mut self, plan: Plan) -> usize {
        let results = std::mem::take(&mut self.results);
        let mut own = std::mem::take(&mut self.own);
        let mut got = 0;
        for (slot, result) in own.chunks_exact_mut(STRIDE).zip(&results) {
            let len = usize::try_from(*result).unwrap_or(0);
            // Less than a header: there was no frame, and perhaps one came right after.
            if len < HEADER {
                continue;
            }
            got += 1;
            match plan {
                Plan::Own => {
                    if let Some(frame) = slot.get_mut(..len) {
                        self.pass(frame);
                    }
                }
                Plan::Direct { buffers, capacity } => self.pass_in_place(buffers, capacity, len, slot),
            }
        }
        self.results = results;
        self.own = own;
        got
    }

    /// Passes on a frame with its header.
    #[inline]
    fn pass(&mut self, frame: &mut [u8]) {
        let wanted = self.vlan.passes(|offset, out| {
            let part = frame.get(HEADER + offset..HEADER + offset + out.len());
            part.map(|part| out.copy_from_slice(part)).is_some()
        });
        if !wanted {
            self.stats.vlan.add(1);
            return;
        }
        let room = self.held.front().map(Chain::writable_len);
        if frame.len() > room.map_or(COPY, |room| room.min(COPY)) {
            self.large = SMALL_AGAIN;
        }
        if self.spill.is_empty() && room.is_some_and(|room| frame.len() <= room) {
            return self.put(frame, 1);
        }
        self.spill.push_back(frame.to_vec());
        self.flush_spill();
    }

    /// Passes on a frame of `len` bytes that lies in the first `buffers` held, which take `capacity`; the rest of it in
    /// `behind`.
    fn pass_in_place(&mut self, buffers: usize, capacity: usize, len: usize, behind: &[u8]) {
        let first = self.held.front().map_or(0, Chain::writable_len);
        if len > first || len > COPY {
            self.large = SMALL_AGAIN;
        } else {
            self.large = self.large.saturating_sub(1);
        }
        let peek = |offset: usize, out: &mut [u8]| gather(self.held.iter().take(1), HEADER + offset, out);
        if !self.vlan.passes(peek) {
            self.stats.vlan.add(1);
            return;
        }
        if len > capacity {
            return self.spill_from(buffers, capacity, len, behind);
        }
        let count = self.buffers_for(len);
        if let Some(first) = self.held.front() {
            let mut header = [0; HEADER];
            // The buffer has room for a header, so these cannot fail.
            let _ = first.copy_back(0, &mut header);
            self.finish(&mut header, count);
            let _ = first.copy_in(0, &header);
        }
        self.retire(count, len);
    }

    /// How many of the buffers held `len` bytes take.
    fn buffers_for(&self, len: usize) -> usize {
        let mut room = 0;
        let full = self.held.iter().take_while(|chain| {
            room += chain.writable_len();
            room < len
        });
        full.count() + 1
    }

    /// Fills in what of a header the tap leaves to us. Section 5.1.6.4.1: the number of buffers is always set, the
    /// flags only if negotiated.
    #[inline]
    fn finish(&self, header: &mut [u8], buffers: usize) {
        let [low, high] = u16::try_from(buffers).unwrap_or(u16::MAX).to_le_bytes();
        if let [flags, _, _, _, _, _, _, _, _, _, b0, b1, ..] = header {
            (*b0, *b1) = (low, high);
            if !self.checksums {
                *flags = 0;
            }
        }
    }

    /// Copies a frame to the first `count` buffers held, which have room for it.
    #[inline]
    fn put(&mut self, frame: &mut [u8], count: usize) {
        self.finish(frame, count);
        let mut rest: &[u8] = frame;
        for chain in self.held.iter().take(count) {
            let (now, later) = rest.split_at(rest.len().min(chain.writable_len()));
            // Cannot fail: cut to the buffer.
            let _ = chain.copy_in(0, now);
            rest = later;
        }
        self.retire(count, frame.len());
    }

    /// Answers the first `count` buffers held, which have a frame of `len` bytes in them.
    #[inline]
    fn retire(&mut self, count: usize, len: usize) {
        if self.captured || self.allowance.is_some() {
            self.account(count, len);
        }
        let mut left = len;
        for _ in 0..count {
            let Some(chain) = self.held.pop_front() else { break };
            let part = left.min(chain.writable_len());
            self.vring.push(chain.head(), part as u32);
            left -= part;
            self.spare.push(chain);
        }
        self.stats.frames.add(1);
        self.stats.bytes.add((len - HEADER) as u64);
    }

    /// Shows a frame in the first `count` buffers to whoever captures, and pays for it where there is a limit.
    #[cold]
    fn account(&mut self, count: usize, len: usize) {
        if self.captured {
            let held = &self.held;
            let copy = |out: &mut [u8]| gather(held.iter().take(count), HEADER, out);
            self.view.offer(Direction::Inbound, len - HEADER, copy);
        }
        if let Some(allowance) = &mut self.allowance {
            let mut header = [0; HEADER];
            // The guest could have changed it already, and would only deceive itself.
            let known = self.held.front().is_some_and(|first| first.copy_back(0, &mut header).is_ok());
            let frames = if known { segments(&header, len - HEADER) } else { 1 };
            allowance.take(len - HEADER, frames);
        }
    }

    /// Copies a frame out of the buffers it was read into, and out of the memory behind them, until there are enough.
    #[cold]
    fn spill_from(&mut self, buffers: usize, capacity: usize, len: usize, behind: &[u8]) {
        let mut frame = vec![0; len];
        let (inside, rest) = frame.split_at_mut(capacity.min(len));
        if gather(self.held.iter().take(buffers), 0, inside)
            && let Some(behind) = behind.get(..rest.len())
        {
            rest.copy_from_slice(behind);
            self.spill.push_back(frame);
            self.flush_spill();
        }
    }

    /// Passes on frames that wait; false if buffers for one are missing.
    pub(super) fn flush_spill(&mut self) -> bool {
        while let Some(len) = self.spill.front().map(Vec::len) {
            match self.room_for(len) {
                Room::Here => {}
                Room::Later => return false,
                Room::Never => {
                    self.stats.no_room.add(1);
                    self.spill.pop_front();
                    continue;
                }
            }
            let Some(mut frame) = self.spill.pop_front() else { break };
            let count = self.buffers_for(len);
            self.put(&mut frame, count);
            self.stats.copied.add(1);
        }
        true
    }

    /// Holds buffers for `len` bytes.
    fn room_for(&mut self, len: usize) -> Room {
        if !self.mergeable {
            if self.held.is_empty() && !self.hold() {
                return Room::Later;
            }
            let fits = self.held.front().is_some_and(|chain| chain.writable_len() >= len);
            return if fits { Room::Here } else { Room::Never };
        }
        let mut room: usize = self.held.iter().map(Chain::writable_len).sum();
        while room < len {
            if !self.hold() {
                // With every descriptor of the queue in our hands, no more will come.
                let all = self.vring.queue().in_flight() == self.vring.queue().size();
                return if all { Room::Never } else { Room::Later };
            }
            room += self.held.back().map_or(0, Chain::writable_len);
        }
        Room::Here
    }
}

/// Copies what lies in `chains`, `skip` bytes into the first, one behind the other; whether all was there.
fn gather<'a>(chains: impl Iterator<Item = &'a Chain>, mut skip: usize, out: &mut [u8]) -> bool {
    let mut rest = out;
    for chain in chains {
        let part = rest.len().min(chain.writable_len().saturating_sub(skip));
        let (now, later) = rest.split_at_mut(part);
        if chain.copy_back(skip, now).is_err() {
            return false;
        }
        (rest, skip) = (later, 0);
    }
    rest.is_empty()
}
