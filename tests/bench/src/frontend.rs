#![allow(unsafe_code)] // maps the memory that is shared with the backend
//! A frontend with memory and one block queue, on the `vhost` crate's half of the protocol.

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::ring::{Layout, Ring};

const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;
const FLUSH: u64 = 1 << 9;
/// Descriptors of the queue: what frontends commonly make.
const QUEUE: u16 = 128;

/// A connection to a block backend, its queue running.
pub(crate) struct Client {
    frontend: Frontend,
    pub(crate) ring: Ring,
    pub(crate) kick: EventFd,
    pub(crate) calls: EventFd,
    /// Size of the disk in bytes.
    pub(crate) capacity: u64,
}

impl Client {
    /// Connects to `socket` as soon as the backend listens there.
    pub(crate) fn connect(socket: &Path, slots: u16) -> anyhow::Result<Self> {
        ensure!(slots * 3 <= QUEUE, "a depth of {slots} does not fit a queue of {QUEUE}");
        let mut frontend = patiently(socket)?;
        frontend.set_owner().context("SET_OWNER")?;
        let offered = frontend.get_features().context("GET_FEATURES")?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        ensure!(offered & protocol != 0, "the backend has no protocol features");
        let mut wanted = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ;
        wanted &= frontend.get_protocol_features().context("GET_PROTOCOL_FEATURES")?;
        frontend.set_protocol_features(wanted).context("SET_PROTOCOL_FEATURES")?;
        frontend
            .set_features(offered & (VERSION_1 | EVENT_IDX | FLUSH | protocol))
            .context("SET_FEATURES")?;
        ensure!(offered & EVENT_IDX != 0, "the backend has no EVENT_IDX");
        let (_, config) =
            frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).context("GET_CONFIG")?;
        let capacity = config.first_chunk().map_or(0, |sectors| u64::from_le_bytes(*sectors)) * 512;

        let layout = Layout::new(0, usize::from(QUEUE), usize::from(slots));
        // Whole 2 MiB, as guests have.
        let size = layout.end.next_multiple_of(2 << 20).max(64 << 20);
        let fd = nix::sys::memfd::memfd_create(c"bench", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&fd, size as i64)?;
        let base = map(&fd, size)?;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: size as u64,
            userspace_addr: base as u64,
            mmap_offset: 0,
            mmap_handle: fd.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).context("SET_MEM_TABLE")?;
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let call = EventFd::new(0)?;
        frontend.set_vring_num(0, QUEUE).context("SET_VRING_NUM")?;
        frontend.set_vring_base(0, 0).context("SET_VRING_BASE")?;
        let address = |offset: usize| base as u64 + offset as u64;
        let data = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: address(layout.desc),
            used_ring_addr: address(layout.used),
            avail_ring_addr: address(layout.avail),
            log_addr: None,
        };
        frontend.set_vring_addr(0, &data).context("SET_VRING_ADDR")?;
        frontend.set_vring_call(0, &call).context("SET_VRING_CALL")?;
        frontend.set_vring_kick(0, &kick).context("SET_VRING_KICK")?;
        frontend.set_vring_enable(0, true).context("SET_VRING_ENABLE")?;
        Ok(Self { frontend, ring: Ring::new(base, layout, QUEUE, slots), kick, calls: call, capacity })
    }

    /// The descriptor the backend writes to call.
    pub(crate) fn call(&self) -> BorrowedFd<'_> {
        // SAFETY: owned by `self.calls`, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.calls.as_raw_fd()) }
    }

    /// Stops the queue.
    pub(crate) fn disconnect(self) -> anyhow::Result<()> {
        self.frontend.get_vring_base(0).context("GET_VRING_BASE")?;
        Ok(())
    }
}

fn patiently(socket: &Path) -> anyhow::Result<Frontend> {
    let start = Instant::now();
    loop {
        match Frontend::connect(socket, 1) {
            Ok(frontend) => return Ok(frontend),
            Err(error) if start.elapsed() > Duration::from_secs(5) => {
                return Err(error).with_context(|| format!("no backend listens on {}", socket.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Mapped until the process ends: a bench connects a handful of times.
fn map(fd: &OwnedFd, size: usize) -> anyhow::Result<*mut u8> {
    let length = std::num::NonZeroUsize::new(size).context("no memory")?;
    let file = File::from(fd.try_clone()?);
    // SAFETY: a new mapping of a file of that size, which nobody truncates.
    let base = unsafe {
        mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &file, 0)?
    };
    Ok(base.as_ptr().cast())
}
