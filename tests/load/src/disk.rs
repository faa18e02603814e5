#![allow(unsafe_code)] // buffers that the kernel writes while a request is in flight
//! 4 KiB random reads with a number of them in flight, whoever carries them to the kernel.
//!
//! Owns the buffers, for as long as the requests. A request that fails ends the load.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;

use anyhow::{Context, ensure};

/// Bytes of a request.
pub(crate) const BLOCK: usize = 4096;

/// One read to be: its buffer's number, and where it reads.
#[derive(Clone, Copy)]
pub(crate) struct Read {
    pub(crate) slot: u64,
    pub(crate) offset: u64,
    pub(crate) buffer: NonNull<u8>,
}

/// What carries requests to the kernel: two ways there are, io_submit and io_uring.
pub(crate) trait Carrier {
    /// Submits all of `reads` with one call.
    fn submit(&mut self, reads: &[Read]) -> anyhow::Result<()>;
    /// Waits for at least one to complete; gives the slots and results of all that have.
    fn wait(&mut self, done: &mut Vec<(u64, i64)>) -> anyhow::Result<()>;
}

/// `depth` page-aligned blocks in one piece.
struct Buffers {
    base: NonNull<u8>,
    layout: Layout,
}

impl Buffers {
    fn new(depth: usize) -> anyhow::Result<Self> {
        let layout = Layout::from_size_align(depth * BLOCK, BLOCK)?;
        // SAFETY: the layout's size is not zero: a depth of zero is refused before.
        let base =
            NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap_or_else(|| handle_alloc_error(layout));
        Ok(Self { base, layout })
    }

    fn block(&self, slot: u64) -> NonNull<u8> {
        // SAFETY: slots are below the depth the buffers were made for.
        unsafe { self.base.add(slot as usize * BLOCK) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: allocated by us with this layout; no request is in flight any more, or the process ends.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Reads `count` random blocks, `depth` at a time: each time some are complete, as many are submitted together.
pub(crate) fn random_reads<C: Carrier>(
    device: &str,
    depth: u64,
    count: u64,
    start: impl FnOnce(&File, u32) -> anyhow::Result<C>,
    go: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    ensure!((1..=1024).contains(&depth), "a depth of {depth}; 1 to 1024 are possible");
    let mut file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(device);
    let file = file.as_mut().map_err(|error| anyhow::anyhow!("cannot open {device}: {error}"))?;
    let blocks = file.seek(SeekFrom::End(0)).context("cannot tell its size")? / BLOCK as u64;
    ensure!(blocks > 0, "{device} is smaller than a block");
    let buffers = Buffers::new(usize::try_from(depth)?)?;
    let mut carrier = start(file, u32::try_from(depth)?)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut read =
        |slot| Read { slot, offset: random.next() % blocks * BLOCK as u64, buffer: buffers.block(slot) };

    go()?;
    let first: Vec<Read> = (0..depth.min(count)).map(&mut read).collect();
    carrier.submit(&first)?;
    let (mut submitted, mut completed) = (first.len() as u64, 0);
    let (mut done, mut next) = (Vec::new(), Vec::new());
    while completed < count {
        done.clear();
        carrier.wait(&mut done)?;
        next.clear();
        for (slot, result) in &done {
            ensure!(*result == BLOCK as i64, "a read gave {result}");
            completed += 1;
            if submitted < count {
                submitted += 1;
                next.push(read(*slot));
            }
        }
        if !next.is_empty() {
            carrier.submit(&next)?;
        }
    }
    Ok(completed)
}

/// xorshift64*: where to read next; the same sequence in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}
