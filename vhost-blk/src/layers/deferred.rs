//! Writes to a qcow2 image's L1 table, put off until what they lead to is on disk.
//!
//! When imago gives the image a new L2 table, it enters it in the L1 table at once, while the reference count of
//! its cluster is still in a cache. A process that is killed between the two leaves a table in a cluster that
//! counts as free, and the next one writes guest data over it. So writes to the L1 table are kept here, and
//! reads of it see them, until imago has written its caches ([`Deferred::behind`]). What is lost with a process that
//! is killed before is a cluster nobody refers to.
//!
//! Counts, then L2 tables, then the L1 table; and answers to the guest after that.
//!
//! Not covered: a new block of counts is entered in the table of counts at once. It mostly counts itself; only where a
//! cluster before it was free (after a discard) is its own count in another block that may still be in the cache.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::image::Image;

/// The part of the header that says where the table is.
pub(super) const POINTER: std::ops::Range<u64> = 36..48;

/// Writes are kept by blocks of this size, which every write of imago's is made of, or a part of.
const BLOCK: usize = 512;

/// The writes of one image.
#[derive(Debug)]
pub(super) struct Deferred {
    image: Arc<Image>,
    state: Mutex<State>,
    /// One hand-over at a time.
    handing_over: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the table is, in whole blocks.
    table: Range<u64>,
    /// Blocks not written out, by offset.
    blocks: Blocks,
    /// Those of them that are about to be.
    leaving: Blocks,
}

type Blocks = BTreeMap<u64, [u8; BLOCK]>;

impl Deferred {
    /// Watches over the table of an image that is to be written to.
    pub(super) fn new(image: Arc<Image>) -> std::io::Result<Self> {
        let deferred = Self { image, state: Mutex::default(), handing_over: Mutex::default() };
        deferred.find_table()?;
        Ok(deferred)
    }

    /// Reads from the header where the table is. Called again whenever that part of the header is written: the table
    /// has moved, with all that was kept of the old one in it, and before the old one's place is given away.
    pub(super) fn find_table(&self) -> std::io::Result<()> {
        let (mut entries, mut offset) = ([0; 4], [0; 8]);
        self.image.read_at(&mut entries, POINTER.start)?;
        self.image.read_at(&mut offset, POINTER.start + 4)?;
        let (entries, offset) = (u64::from(u32::from_be_bytes(entries)), u64::from_be_bytes(offset));
        let end = offset.saturating_add(entries * 8);
        let table = offset..end.checked_next_multiple_of(BLOCK as u64).unwrap_or(end);
        let mut state = self.state();
        if state.table.start != table.start {
            state.blocks.clear();
            state.leaving.clear();
        }
        state.table = table;
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether bytes belong to the table, so that [`Deferred::read`] and [`Deferred::write`] are for them.
    pub(super) fn covers(&self, offset: u64, len: u64) -> bool {
        let table = self.state().table.clone();
        offset < table.end && offset.saturating_add(len) > table.start
    }

    /// Reads what the image holds, or will hold.
    pub(super) fn read(&self, out: &mut [u8], offset: u64) -> std::io::Result<()> {
        let state = self.state();
        self.image.read_or_zero(out, offset)?;
        let range = offset.saturating_sub(BLOCK as u64)..offset + out.len() as u64;
        for (at, block) in state.leaving.range(range.clone()).chain(state.blocks.range(range)) {
            for (index, byte) in block.iter().enumerate() {
                let place =
                    (at + index as u64).checked_sub(offset).and_then(|place| usize::try_from(place).ok());
                if let Some(place) = place.and_then(|place| out.get_mut(place)) {
                    *place = *byte;
                }
            }
        }
        Ok(())
    }

    /// Keeps a write.
    pub(super) fn write(&self, data: &[u8], offset: u64) -> std::io::Result<()> {
        let mut state = self.state();
        let mut at = offset / BLOCK as u64 * BLOCK as u64;
        while at < offset + data.len() as u64 {
            let mut block = match state.blocks.get(&at).or_else(|| state.leaving.get(&at)) {
                Some(block) => *block,
                None => {
                    let mut block = [0; BLOCK];
                    self.image.read_or_zero(&mut block, at)?;
                    block
                }
            };
            for (index, byte) in block.iter_mut().enumerate() {
                let place =
                    (at + index as u64).checked_sub(offset).and_then(|place| usize::try_from(place).ok());
                if let Some(new) = place.and_then(|place| data.get(place)) {
                    *byte = *new;
                }
            }
            state.blocks.insert(at, block);
            at += BLOCK as u64;
        }
        Ok(())
    }

    /// Writes out what is kept now, behind what `first` writes: imago's caches, with the counts of all that these
    /// writes lead to. What comes meanwhile stays for the next time.
    pub(super) fn behind(&self, first: impl FnOnce() -> std::io::Result<()>) -> std::io::Result<()> {
        let _alone = self.handing_over.lock().unwrap_or_else(PoisonError::into_inner);
        let leaving = {
            let mut state = self.state();
            let newer = std::mem::take(&mut state.blocks);
            // What an earlier failure has left is older.
            state.leaving.extend(newer);
            state.leaving.clone()
        };
        first()?;
        for (offset, block) in leaving {
            // Locked while it is written, so that the table does not move meanwhile.
            let mut state = self.state();
            if state.leaving.contains_key(&offset) {
                self.image.write_at(&block, offset)?;
                state.leaving.remove(&offset);
            }
        }
        Ok(())
    }
}

impl Drop for Deferred {
    /// imago has written its caches by then, as it does when it is dropped.
    fn drop(&mut self) {
        if let Err(error) = self.behind(|| Ok(())) {
            tracing::error!("{}: its L1 table cannot be written: {error}", self.image.path().display());
        }
    }
}
