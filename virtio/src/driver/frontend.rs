//! A small vhost-user frontend over the `vhost` crate's, which is thus an independent check of our session.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend as Inner, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::{DriverError, DriverQueue};
use crate::memory::Memory;
use crate::spec::F_PROTOCOL_FEATURES;

/// A connection to a backend. Every request asks for an acknowledgement, so an error is an error at once.
pub struct Frontend {
    inner: Inner,
    /// Features both sides have.
    pub features: u64,
    /// Protocol features both sides have.
    pub protocol: VhostUserProtocolFeatures,
    /// Queues the backend has.
    pub queues: usize,
    needs_enable: bool,
}

impl std::fmt::Debug for Frontend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frontend").field("features", &self.features).finish_non_exhaustive()
    }
}

/// Names the request in an error.
fn at<T>(what: &'static str, result: Result<T, vhost::Error>) -> Result<T, DriverError> {
    result.map_err(|source| DriverError::Frontend { what, source })
}

impl Frontend {
    /// Connects to a backend's socket and negotiates, as [`Frontend::over`].
    ///
    /// # Errors
    /// Nothing listens there, or negotiation fails.
    pub fn connect(path: &Path, wanted: u64) -> Result<Self, DriverError> {
        Self::over(UnixStream::connect(path)?, wanted)
    }

    /// Negotiates over a connection: `wanted` of the backend's virtio features (with bit 30 rings start
    /// disabled, see [`Frontend::start`]), all of its protocol features that the `vhost` crate's frontend can do.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn over(stream: UnixStream, wanted: u64) -> Result<Self, DriverError> {
        let mut inner = Inner::from_stream(stream, 256);
        at("set_owner", inner.set_owner())?;
        let offered = at("get_features", inner.get_features())?;
        let features = offered & wanted;
        let able = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::RESET_DEVICE
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS;
        let protocol = at("get_protocol_features", inner.get_protocol_features())? & able;
        at("set_protocol_features", inner.set_protocol_features(protocol))?;
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            inner.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        let queues = match protocol.contains(VhostUserProtocolFeatures::MQ) {
            true => at("get_queue_num", inner.get_queue_num())? as usize,
            false => 1,
        };
        at("set_features", inner.set_features(features))?;
        let needs_enable = features & F_PROTOCOL_FEATURES != 0;
        Ok(Self { inner, features: features & !F_PROTOCOL_FEATURES, protocol, queues, needs_enable })
    }

    /// Hands over all regions of `memory`.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn set_memory(&mut self, memory: &Memory) -> Result<(), DriverError> {
        let regions: Vec<_> = memory
            .regions()
            .map(|region| VhostUserMemoryRegionInfo {
                guest_phys_addr: region.gpa(),
                memory_size: region.size(),
                userspace_addr: region.user_addr(),
                mmap_offset: region.fd_offset(),
                mmap_handle: region.fd().as_raw_fd(),
            })
            .collect();
        at("set_mem_table", self.inner.set_mem_table(&regions)).map(drop)
    }

    /// Starts queue `index` from `base` (0 for a new ring, what [`Frontend::stop`] gave for an old one), and
    /// enables it where that is needed.
    ///
    /// # Errors
    /// The backend's or the connection's; the addresses must be in the memory handed over.
    pub fn start(&mut self, index: usize, queue: &DriverQueue, base: u16) -> Result<(), DriverError> {
        at("set_vring_num", self.inner.set_vring_num(index, queue.size()))?;
        at("set_vring_base", self.inner.set_vring_base(index, base))?;
        let [desc, avail, used] = queue.addresses();
        // Ring addresses are given in the frontend's address space.
        let user = |gpa| {
            queue
                .memory()
                .regions()
                .find(|r| gpa - r.gpa().min(gpa) < r.size() && gpa >= r.gpa())
                .map_or(gpa, |r| gpa - r.gpa() + r.user_addr())
        };
        let data = VringConfigData {
            queue_max_size: queue.size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: user(desc),
            used_ring_addr: user(used),
            avail_ring_addr: user(avail),
            log_addr: None,
        };
        at("set_vring_addr", self.inner.set_vring_addr(index, &data))?;
        at("set_vring_call", self.inner.set_vring_call(index, &event(queue.call_fd())?))?;
        at("set_vring_err", self.inner.set_vring_err(index, &event(queue.err_fd())?))?;
        at("set_vring_kick", self.inner.set_vring_kick(index, &event(queue.kick_fd())?))?;
        if self.needs_enable { self.enable(index, true) } else { Ok(()) }
    }

    /// Enables or disables a ring (only where bit 30 was negotiated).
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn enable(&mut self, index: usize, enable: bool) -> Result<(), DriverError> {
        at("set_vring_enable", self.inner.set_vring_enable(index, enable))
    }

    /// Stops queue `index`; every request taken is answered. Gives the base to go on from.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn stop(&mut self, index: usize) -> Result<u16, DriverError> {
        at("get_vring_base", self.inner.get_vring_base(index)).map(|base| base as u16)
    }

    /// Reads `len` bytes of configuration from `offset`.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>, DriverError> {
        let blank = vec![0; len as usize];
        let flags = VhostUserConfigFlags::WRITABLE;
        at("get_config", self.inner.get_config(offset, len, flags, &blank)).map(|(_, data)| data)
    }

    /// Writes configuration.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), DriverError> {
        at("set_config", self.inner.set_config(offset, VhostUserConfigFlags::WRITABLE, data))
    }

    /// Has the backend make an inflight region and hands it back to it, as a frontend does before it starts
    /// queues. Keep what this returns, and give it to [`Frontend::return_inflight`] after a reconnect.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn inflight(&mut self, queues: u16, size: u16) -> Result<(VhostUserInflight, OwnedFd), DriverError> {
        let ask = VhostUserInflight::new(0, 0, queues, size);
        let (region, file) = at("get_inflight_fd", self.inner.get_inflight_fd(&ask))?;
        let fd = OwnedFd::from(file);
        self.return_inflight(&region, &fd)?;
        Ok((region, fd))
    }

    /// Hands a kept inflight region to a backend.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn return_inflight(&mut self, region: &VhostUserInflight, fd: &OwnedFd) -> Result<(), DriverError> {
        at("set_inflight_fd", self.inner.set_inflight_fd(region, fd.as_raw_fd()))
    }

    /// Gives the backend a channel for its own requests; the other end is returned.
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn channel(&mut self) -> Result<UnixStream, DriverError> {
        let (ours, theirs) = UnixStream::pair()?;
        at("set_backend_request_fd", self.inner.set_backend_request_fd(&theirs))?;
        Ok(ours)
    }

    /// The device back to its beginning (RESET_DEVICE).
    ///
    /// # Errors
    /// The backend's or the connection's.
    pub fn reset(&mut self) -> Result<(), DriverError> {
        at("reset_device", self.inner.reset_device())
    }

    /// The crate's frontend, for what is not said here.
    pub fn inner(&mut self) -> &mut Inner {
        &mut self.inner
    }
}

#[allow(unsafe_code)] // the vhost crate takes vmm-sys-util's type
fn event(fd: &OwnedFd) -> Result<EventFd, DriverError> {
    let copy = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: the copy is open and given away.
    Ok(unsafe { EventFd::from_raw_fd(copy.into_raw_fd()) })
}
