//! What happens to frames that were read: those in place are answered as they lie, the others are copied out and
//! passed on in order. Part of [`super::Rx`].

use std::collections::VecDeque;

use strata_virtio::chain::Chain;

use super::place::Place;
use super::{LARGEST, Rx, SMALL_AGAIN};
use crate::header::HEADER;

impl Rx {
    /// Passes on what a batch read; the number of frames.
    pub(super) fn deliver(&mut self) -> usize {
        let (places, results) = (std::mem::take(&mut self.places), std::mem::take(&mut self.results));
        let mut got = 0;
        // Where the place's buffers begin in `held`: at its front, as long as everything before was committed.
        let mut at = 0;
        let mut in_place = true;
        for (index, (place, &result)) in places.iter().zip(&results).enumerate() {
            let len = usize::try_from(result).unwrap_or(0);
            if len < HEADER {
                // Nothing was read, and perhaps a frame came right after.
                in_place = false;
                at += place.chains;
                continue;
            }
            got += 1;
            self.note_size(place, len);
            if !self.vlan.passes(|offset, out| peek(&self.held, at, HEADER + offset, out)) {
                self.stats.vlan.add(1);
                in_place = false;
            } else if !self.mergeable && len > place.capacity {
                self.stats.no_room.add(1);
                in_place = false;
            } else if in_place && len <= place.capacity {
                let used = self.commit(len);
                // Buffers left over would be used after those of the next frame.
                in_place = used == place.chains;
                at = place.chains - used;
                continue;
            } else {
                self.spill_from(at, index, *place, len);
                in_place = false;
            }
            at += place.chains;
        }
        self.places = places;
        self.results = results;
        if !self.spill.is_empty() {
            self.flush_spill();
        }
        got
    }

    /// Follows the size of frames: whether reads get one buffer or many.
    #[inline]
    fn note_size(&mut self, place: &Place, len: usize) {
        if place.chains == 1 {
            if len > place.capacity {
                self.large = SMALL_AGAIN;
            }
        } else if self.held.front().is_some_and(|first| len <= first.writable_len()) {
            self.large = self.large.saturating_sub(1);
        } else {
            self.large = SMALL_AGAIN;
        }
    }

    /// Answers the first buffers held, which have a frame of `len` bytes in them; how many it took.
    #[inline]
    fn commit(&mut self, len: usize) -> usize {
        let (mut count, mut room) = (0, 0);
        for chain in &self.held {
            if room >= len {
                break;
            }
            room += chain.writable_len();
            count += 1;
        }
        if let Some(first) = self.held.front() {
            // Section 5.1.6.4.1: the number of buffers is always set, the flags only if negotiated. The
            // buffer has room for a header, so these cannot fail.
            let buffers = u16::try_from(count).unwrap_or(u16::MAX);
            let _ = first.copy_in(HEADER - 2, &buffers.to_le_bytes());
            if !self.checksums {
                let _ = first.copy_in(0, &[0]);
            }
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
        count
    }

    /// Copies a frame out of the buffers it was read into, and out of the overflow behind them.
    #[cold]
    fn spill_from(&mut self, at: usize, read: usize, place: Place, len: usize) {
        let mut frame = vec![0; len];
        let (inside, behind) = frame.split_at_mut(len.min(place.capacity));
        let mut rest = inside;
        for chain in self.held.iter().skip(at).take(place.chains) {
            let part = rest.len().min(chain.writable_len());
            let (now, later) = rest.split_at_mut(part);
            if chain.copy_back(0, now).is_err() {
                return;
            }
            rest = later;
        }
        if let Some(overflow) = self.overflow.chunks_exact(LARGEST).nth(read)
            && let Some(source) = overflow.get(..behind.len())
        {
            behind.copy_from_slice(source);
        }
        self.spill.push_back(frame);
    }

    /// Passes on frames that were copied out; false if buffers for one are missing.
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
            let Some(frame) = self.spill.pop_front() else { break };
            let mut rest = frame.as_slice();
            for chain in &self.held {
                let (now, later) = rest.split_at(rest.len().min(chain.writable_len()));
                // Cannot fail: cut to the buffer.
                let _ = chain.copy_in(0, now);
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
            self.commit(len);
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

/// Whether buffers for a frame are there.
enum Room {
    Here,
    Later,
    Never,
}

/// Reads bytes of a frame that lies in buffers from `at` on; false if the first buffer is too short for that.
fn peek(held: &VecDeque<Chain>, at: usize, offset: usize, out: &mut [u8]) -> bool {
    held.get(at).is_some_and(|chain| chain.copy_back(offset, out).is_ok())
}
