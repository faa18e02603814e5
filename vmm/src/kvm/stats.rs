#![allow(unsafe_code)] // one ioctl the crate lacks: KVM_GET_STATS_FD
//! KVM's own counters, read without privilege from a descriptor per VM and per vCPU (KVM api.rst 4.131).
//!
//! Opened when the VM is made; read by the control thread at any time. The kernel describes the file itself;
//! every offset and count in that description is checked against bounds before use.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

/// KVM_GET_STATS_FD: `_IO(KVMIO, 0xce)`.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;

const HEADER: usize = 24;
/// `struct kvm_stats_desc` without the name.
const DESCRIPTOR: usize = 16;
const MAX_DESCRIPTORS: u32 = 1024;
const MAX_NAME: u32 = 256;
const MAX_VALUES: u16 = 64;
/// Flag bits 3:0 are the type; histograms (3 and 4) are left out.
const TYPE_MASK: u32 = 0xf;
const TYPE_PEAK: u32 = 2;

/// Why counters cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The kernel has none (before 5.14) or gives none.
    #[error("KVM gives no statistics descriptor")]
    Open(#[source] io::Error),
    /// The file cannot be read.
    #[error("KVM statistics cannot be read")]
    Read(#[source] io::Error),
    /// The description makes no sense.
    #[error("KVM statistics describe themselves wrongly: {0}")]
    Format(&'static str),
}

#[derive(Debug, PartialEq, Eq)]
struct Counter {
    name: String,
    offset: u64,
    values: u16,
}

/// An open statistics file.
#[derive(Debug)]
pub struct Stats {
    file: File,
    counters: Vec<Counter>,
}

impl Stats {
    /// Opens the statistics of a VM or vCPU descriptor.
    ///
    /// # Errors
    /// There are none, or they cannot be understood.
    pub fn open(of: &impl AsRawFd) -> Result<Self, StatsError> {
        // SAFETY: takes no argument, makes a new descriptor.
        let fd = unsafe { libc::ioctl(of.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return Err(StatsError::Open(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor was made for us just now.
        Self::describe(unsafe { File::from_raw_fd(fd) })
    }

    fn describe(file: File) -> Result<Self, StatsError> {
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0).map_err(StatsError::Read)?;
        let word = |at| word(&header, at).unwrap_or(0);
        let (name_size, count, descriptors, data) = (word(4), word(8), word(16), word(20));
        if count > MAX_DESCRIPTORS || name_size == 0 || name_size > MAX_NAME {
            return Err(StatsError::Format("more or longer counters than there can be"));
        }
        let size = DESCRIPTOR + name_size as usize;
        let mut bytes = vec![0; size * count as usize];
        file.read_exact_at(&mut bytes, descriptors.into()).map_err(StatsError::Read)?;
        let counters = bytes.chunks_exact(size).filter_map(|bytes| counter(bytes, data)).collect();
        Ok(Self { file, counters })
    }

    /// Name and value of every plain counter now. One of several values is their sum.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self) -> Result<Vec<(&str, u64)>, StatsError> {
        let mut out = Vec::with_capacity(self.counters.len());
        for counter in &self.counters {
            let mut bytes = vec![0; usize::from(counter.values) * 8];
            self.file.read_exact_at(&mut bytes, counter.offset).map_err(StatsError::Read)?;
            let sum = bytes.chunks_exact(8).fold(0_u64, |sum, value| {
                sum.wrapping_add(value.first_chunk().map_or(0, |value| u64::from_le_bytes(*value)))
            });
            out.push((counter.name.as_str(), sum));
        }
        Ok(out)
    }
}

fn counter(bytes: &[u8], data: u32) -> Option<Counter> {
    let (flags, offset) = (word(bytes, 0)?, word(bytes, 8)?);
    let values = u16::from_le_bytes(*bytes.get(6..)?.first_chunk()?);
    let name = bytes.get(DESCRIPTOR..)?.split(|byte| *byte == 0).next()?;
    let plain = flags & TYPE_MASK <= TYPE_PEAK && (1..=MAX_VALUES).contains(&values);
    let name = std::str::from_utf8(name).ok().filter(|name| plain && !name.is_empty())?;
    Some(Counter { name: name.to_owned(), offset: u64::from(data) + u64::from(offset), values })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
#[path = "stats_test.rs"]
mod stats_test;
