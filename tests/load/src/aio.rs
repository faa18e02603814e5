#![allow(unsafe_code)] // io_setup(2) and its kin have no wrapper
//! Requests by io_submit(2), whose completion is an interrupt.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, ensure};

use crate::disk::{BLOCK, Carrier, Read};

/// `struct iocb` (linux/aio_abi.h), for a plain read.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buf: u64,
    nbytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Event {
    data: u64,
    iocb: u64,
    result: i64,
    result2: i64,
}

const PREAD: u16 = 0;

/// A context of the kernel's.
pub(crate) struct Aio {
    context: libc::c_ulong,
    fd: RawFd,
    iocbs: Vec<Iocb>,
    events: Vec<Event>,
}

pub(crate) fn start(file: &File, depth: u32) -> anyhow::Result<Aio> {
    let mut context: libc::c_ulong = 0;
    // SAFETY: the kernel writes one word.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
    ensure!(made == 0, "io_setup: {}", io::Error::last_os_error());
    let (iocbs, events) = (vec![Iocb::default(); depth as usize], vec![Event::default(); depth as usize]);
    Ok(Aio { context, fd: file.as_raw_fd(), iocbs, events })
}

impl Carrier for Aio {
    fn submit(&mut self, reads: &[Read]) -> anyhow::Result<()> {
        for (iocb, read) in self.iocbs.iter_mut().zip(reads) {
            *iocb = Iocb {
                data: read.slot,
                opcode: PREAD,
                fd: self.fd.cast_unsigned(),
                buf: read.buffer.as_ptr() as u64,
                nbytes: BLOCK as u64,
                offset: i64::try_from(read.offset)?,
                ..Iocb::default()
            };
        }
        let pointers: Vec<*const Iocb> =
            self.iocbs.iter().take(reads.len()).map(std::ptr::from_ref).collect();
        let mut left = pointers.as_slice();
        while !left.is_empty() {
            // SAFETY: each pointer is to a live iocb, whose buffer the caller keeps until it is complete; the kernel
            // copies the iocbs before it returns.
            let done = unsafe { libc::syscall(libc::SYS_io_submit, self.context, left.len(), left.as_ptr()) };
            ensure!(done > 0, "io_submit: {}", io::Error::last_os_error());
            left = left.get(usize::try_from(done)?..).context("io_submit took more than there was")?;
        }
        Ok(())
    }

    fn wait(&mut self, done: &mut Vec<(u64, i64)>) -> anyhow::Result<()> {
        let none = std::ptr::null::<libc::timespec>();
        // SAFETY: the kernel writes at most as many events as there is room for.
        let got = unsafe {
            let (room, events) = (self.events.len(), self.events.as_mut_ptr());
            libc::syscall(libc::SYS_io_getevents, self.context, 1, room, events, none)
        };
        ensure!(got > 0, "io_getevents: {}", io::Error::last_os_error());
        done.extend(self.events.iter().take(usize::try_from(got)?).map(|event| (event.data, event.result)));
        Ok(())
    }
}
