#![allow(unsafe_code)] // the ring is told addresses of buffers
//! Requests by io_uring(7) with IOPOLL: the kernel looks for completions itself, in a queue without interrupts.
//!
//! Refused by a disk without such a queue (`virtio_blk.poll_queues=0`): reads end with EOPNOTSUPP.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::Context;
use io_uring::{IoUring, opcode, types};

use crate::disk::{BLOCK, Carrier, Read};

/// A ring.
pub(crate) struct Uring {
    ring: IoUring,
    fd: RawFd,
}

pub(crate) fn start(file: &File, depth: u32) -> anyhow::Result<Uring> {
    let ring = IoUring::builder().setup_iopoll().build(depth).context("io_uring_setup")?;
    Ok(Uring { ring, fd: file.as_raw_fd() })
}

impl Carrier for Uring {
    fn submit(&mut self, reads: &[Read]) -> anyhow::Result<()> {
        for read in reads {
            let entry = opcode::Read::new(types::Fd(self.fd), read.buffer.as_ptr(), BLOCK as u32)
                .offset(read.offset)
                .build()
                .user_data(read.slot);
            // SAFETY: the buffer is kept until the read is complete, the file as long as the ring.
            unsafe { self.ring.submission().push(&entry) }.context("the ring is full")?;
        }
        self.ring.submit().context("io_uring_enter")?;
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<(u64, i64)>) -> anyhow::Result<()> {
        self.ring.submit_and_wait(1).context("io_uring_enter")?;
        done.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result().into())));
        Ok(())
    }
}
