//! One frontend's session: what it has negotiated, and what each request does to the device.
//!
//! Called by [`super::serve`] with one request after another; no I/O on the socket happens here. Refuses what
//! contradicts the state (sizes beyond the device's, bases of running rings, features not offered). Whatever
//! changes under a running ring (memory, addresses, descriptors) stops and drains it first and starts it after.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserProtocolFeatures as Protocol;

use super::config_change::{ConfigChange, is_channel};
use super::request::{Request, RequestError};
use super::rings::{Kick, RingState, SetupError};
use crate::device::{Device, StartError};
use crate::inflight::{Created, Inflight, InflightError};
use crate::memory::{MAX_REGIONS, Memory, MemoryError};
use crate::spec::F_PROTOCOL_FEATURES;
use crate::vring::signal;

/// What is offered to every frontend.
pub(super) const PROTOCOL_FEATURES: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::BACKEND_REQ)
    .union(Protocol::CONFIG)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(Protocol::RESET_DEVICE)
    .union(Protocol::CONFIGURE_MEM_SLOTS)
    .union(Protocol::STATUS);

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("features {extra:#x} were not offered")]
    Features { extra: u64 },
    #[error("ring {index} of a device with {count}")]
    Ring { index: u32, count: usize },
    #[error("ring {index} is running; stop it with GET_VRING_BASE first")]
    Running { index: u16 },
    #[error("{num} descriptors for ring {index}; a power of two up to {max} is allowed")]
    Num { index: u16, num: u32, max: u16 },
    #[error("base {base} for ring {index}; up to 65535 is allowed")]
    Base { index: u16, base: u32 },
    #[error("an inflight region for {queues} queues of {size}; up to {max_queues} of {max_size} are allowed")]
    Inflight { queues: u16, size: u16, max_queues: usize, max_size: u16 },
    #[error("the backend channel is not a unix stream socket")]
    Channel,
    #[error("the memory cannot be used")]
    Memory(#[from] MemoryError),
    #[error("the inflight region cannot be used")]
    Region(#[from] InflightError),
    #[error("the ring cannot be set up")]
    Setup(#[from] SetupError),
    #[error("the device does not start the ring")]
    Start(#[from] StartError),
}

/// A reply with a body.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) body: Vec<u8>,
    pub(super) fd: Option<OwnedFd>,
}

impl Reply {
    fn word(value: u64) -> Option<Self> {
        Some(Self { body: value.to_ne_bytes().to_vec(), fd: None })
    }
}

/// The state of one session. Dropping it stops every ring (drained), resets the device, unmaps the memory.
pub(super) struct Session<'a> {
    device: &'a mut dyn Device,
    channel: &'a ConfigChange,
    /// As accepted, bit 30 included; `None` before SET_FEATURES.
    features: Option<u64>,
    protocol: Protocol,
    status: u8,
    rings: Vec<RingState>,
    memory: Option<Arc<Memory>>,
    inflight: Option<Inflight>,
}

impl<'a> Session<'a> {
    pub(super) fn new(device: &'a mut dyn Device, channel: &'a ConfigChange) -> Self {
        let rings = device.identity().queue_sizes.iter().map(|_| RingState::default()).collect();
        let (features, protocol) = (None, Protocol::empty());
        Self { device, channel, features, protocol, status: 0, rings, memory: None, inflight: None }
    }

    /// Whether the frontend may ask for acknowledgements.
    pub(super) fn acknowledges(&self) -> bool {
        self.protocol.contains(Protocol::REPLY_ACK)
    }

    /// Does what is asked; gives the reply of requests that have one.
    pub(super) fn handle(&mut self, request: Request) -> Result<Option<Reply>, Refused> {
        match request {
            Request::GetFeatures => return Ok(Reply::word(self.offered())),
            Request::SetFeatures(features) => self.set_features(features)?,
            Request::SetOwner | Request::ResetOwner => {}
            Request::SetMemTable(regions) => {
                let memory = Memory::new(regions)?;
                self.set_memory(Some(memory))?;
            }
            Request::SetVringNum { index, num } => self.set_num(index, num)?,
            Request::SetVringAddr { index, addresses } => {
                self.change(index, |ring| ring.addresses = Some(addresses))?;
            }
            Request::SetVringBase { index, base } => self.set_base(index, base)?,
            Request::GetVringBase { index } => return self.get_base(index).map(Some),
            Request::SetVringKick { index, fd } => {
                self.change(index, |ring| ring.kick = fd.map_or(Kick::Poll, Kick::Fd))?;
            }
            Request::SetVringCall { index, fd } => self.change(index, |ring| ring.call = fd)?,
            Request::SetVringErr { index, fd } => self.change(index, |ring| ring.err = fd)?,
            Request::GetProtocolFeatures => return Ok(Reply::word(PROTOCOL_FEATURES.bits())),
            Request::SetProtocolFeatures(bits) => {
                let extra = bits & !PROTOCOL_FEATURES.bits();
                if extra != 0 {
                    return Err(Refused::Features { extra });
                }
                self.protocol = Protocol::from_bits_truncate(bits);
            }
            Request::GetQueueNum => return Ok(Reply::word(self.rings.len() as u64)),
            Request::SetVringEnable { index, enable } => self.set_enable(index, enable)?,
            Request::SetBackendReqFd(fd) if is_channel(&fd) => self.channel.connect(Some(fd)),
            Request::SetBackendReqFd(_) => return Err(Refused::Channel),
            Request::GetConfig { offset, size, flags } => {
                return Ok(Some(self.get_config(offset, size, flags)));
            }
            Request::SetConfig { offset, data } => self.device.write_config(offset, &data),
            Request::GetInflightFd { queues, size } => return self.get_inflight(queues, size).map(Some),
            Request::SetInflightFd { len, offset, queues, size, fd } => {
                if let Some(index) = self.first_running() {
                    return Err(Refused::Running { index });
                }
                self.inflight = Some(Inflight::map(fd.as_fd(), len, offset, queues, size)?);
            }
            Request::ResetDevice => self.reset(),
            Request::GetMaxMemSlots => return Ok(Reply::word(MAX_REGIONS as u64)),
            Request::AddMemReg(region) => {
                let memory = match &self.memory {
                    Some(memory) => memory.with_region(region)?,
                    None => Memory::new(vec![region])?,
                };
                self.set_memory(Some(memory))?;
            }
            Request::RemMemReg { gpa, size, user_addr } => {
                let missing = MemoryError::NoRegion { gpa, size };
                let memory = self.memory.as_ref().ok_or(missing)?.without_region(gpa, size, user_addr)?;
                self.set_memory(memory)?;
            }
            Request::SetStatus(status) => {
                // Eight bits in a 64-bit payload; zero is a reset (virtio 1.2 section 2.1).
                self.status = status as u8;
                if self.status == 0 {
                    self.reset();
                }
            }
            Request::GetStatus => return Ok(Reply::word(self.status.into())),
        }
        Ok(None)
    }

    fn offered(&self) -> u64 {
        self.device.identity().features | F_PROTOCOL_FEATURES
    }

    fn set_features(&mut self, features: u64) -> Result<(), Refused> {
        let extra = features & !self.offered();
        if extra != 0 {
            return Err(Refused::Features { extra });
        }
        // Frontends repeat this; only a change is worth stopping for.
        if self.features != Some(features) {
            self.stop_all();
            self.features = Some(features);
            self.device.set_features(features & !F_PROTOCOL_FEATURES);
            self.start_all()?;
        }
        Ok(())
    }

    fn set_memory(&mut self, memory: Option<Memory>) -> Result<(), Refused> {
        self.stop_all();
        self.memory = memory.map(Arc::new);
        self.start_all()
    }

    fn set_num(&mut self, index: u32, num: u32) -> Result<(), Refused> {
        let at = self.stopped(index)?;
        let max = self.device.identity().queue_sizes.get(usize::from(at)).copied().unwrap_or(0);
        let size = u16::try_from(num).ok().filter(|size| size.is_power_of_two() && *size <= max);
        let size = size.ok_or(Refused::Num { index: at, num, max })?;
        self.ring(at).num = Some(size);
        Ok(())
    }

    fn set_base(&mut self, index: u32, base: u32) -> Result<(), Refused> {
        let at = self.stopped(index)?;
        self.ring(at).base = u16::try_from(base).map_err(|_| Refused::Base { index: at, base })?;
        Ok(())
    }

    fn get_base(&mut self, index: u32) -> Result<Reply, Refused> {
        let at = self.check(index)?;
        self.stop(at);
        let ring = self.ring(at);
        // Stopped until a new kick comes.
        ring.kick = Kick::None;
        let body = [index, u32::from(ring.base)].iter().flat_map(|word| word.to_ne_bytes()).collect();
        Ok(Reply { body, fd: None })
    }

    fn set_enable(&mut self, index: u32, enable: bool) -> Result<(), Refused> {
        let at = self.check(index)?;
        self.ring(at).enabled = enable;
        if !enable && self.needs_enable() {
            self.stop(at);
        }
        self.start(at)
    }

    /// Changes something a running ring depends on.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut RingState)) -> Result<(), Refused> {
        let at = self.check(index)?;
        self.stop(at);
        change(self.ring(at));
        self.start(at)
    }

    fn get_config(&mut self, offset: u32, size: u32, flags: u32) -> Reply {
        let mut body: Vec<u8> = [offset, size, flags].iter().flat_map(|word| word.to_ne_bytes()).collect();
        // The parser has bound the size by the message's own length.
        let mut data = vec![0; size as usize];
        self.device.read_config(offset, &mut data);
        body.append(&mut data);
        Reply { body, fd: None }
    }

    fn get_inflight(&mut self, queues: u16, size: u16) -> Result<Reply, Refused> {
        let max_size = self.device.identity().queue_sizes.iter().copied().max().unwrap_or(0);
        let max_queues = self.rings.len();
        if usize::from(queues) > max_queues || size > max_size {
            return Err(Refused::Inflight { queues, size, max_queues, max_size });
        }
        let Created { inflight, fd } = Inflight::create(queues, size)?;
        // struct VhostUserInflight: mmap_size, mmap_offset, num_queues, queue_size, padding.
        let mut body = inflight.len().to_ne_bytes().to_vec();
        body.extend_from_slice(&0u64.to_ne_bytes());
        body.extend_from_slice(&queues.to_ne_bytes());
        body.extend_from_slice(&size.to_ne_bytes());
        body.extend_from_slice(&[0; 4]);
        Ok(Reply { body, fd: Some(fd) })
    }

    /// What the guest's reset does: nothing runs, nothing is known of the rings. Memory and negotiated protocol
    /// stay, the inflight region does not (its requests are gone with the rings).
    fn reset(&mut self) {
        self.stop_all();
        self.device.reset();
        self.rings.iter_mut().for_each(|ring| *ring = RingState::default());
        self.features = None;
        self.status = 0;
        self.inflight = None;
    }

    fn needs_enable(&self) -> bool {
        self.features.is_some_and(|features| features & F_PROTOCOL_FEATURES != 0)
    }

    fn check(&self, index: u32) -> Result<u16, Refused> {
        let count = self.rings.len();
        match u16::try_from(index) {
            Ok(at) if usize::from(at) < count => Ok(at),
            _ => Err(Refused::Ring { index, count }),
        }
    }

    fn stopped(&self, index: u32) -> Result<u16, Refused> {
        let at = self.check(index)?;
        match self.rings.get(usize::from(at)) {
            Some(ring) if !ring.running => Ok(at),
            _ => Err(Refused::Running { index: at }),
        }
    }

    #[allow(clippy::indexing_slicing)] // only with indices `check` has let through
    fn ring(&mut self, at: u16) -> &mut RingState {
        &mut self.rings[usize::from(at)]
    }

    fn first_running(&self) -> Option<u16> {
        self.rings.iter().position(|ring| ring.running).map(|at| at as u16)
    }

    fn stop(&mut self, at: u16) {
        if self.ring(at).running {
            let state = self.device.stop_queue(at);
            let ring = self.ring(at);
            ring.running = false;
            if let Some(state) = state {
                ring.base = state.base;
            }
        }
    }

    /// Starts a ring if all it needs is there and it does not run.
    fn start(&mut self, at: u16) -> Result<(), Refused> {
        let needs_enable = self.needs_enable();
        let (Some(features), Some(memory)) = (self.features, &self.memory) else { return Ok(()) };
        let Some(ring) = self.rings.get_mut(usize::from(at)) else { return Ok(()) };
        if ring.running || !ring.is_ready(needs_enable) {
            return Ok(());
        }
        let inflight = self.inflight.as_ref().and_then(|region| region.queue(at));
        let started = match ring.setup(at, features & !F_PROTOCOL_FEATURES, memory, inflight) {
            Ok(Some(setup)) => self.device.start_queue(setup).map_err(Refused::from),
            Ok(None) => return Ok(()),
            Err(error) => Err(error.into()),
        };
        match started {
            Ok(()) => (ring.running, ring.begun) = (true, true),
            // A frontend that does not ask for acknowledgements hears of it here.
            Err(_) => ring.err.iter().for_each(signal),
        }
        started
    }

    fn stop_all(&mut self) {
        (0..self.rings.len() as u16).for_each(|at| self.stop(at));
    }

    /// Starts whatever is ready; the first failure is reported, the others are tried all the same.
    fn start_all(&mut self) -> Result<(), Refused> {
        let mut result = Ok(());
        for at in 0..self.rings.len() as u16 {
            let started = self.start(at);
            if result.is_ok() {
                result = started;
            }
        }
        result
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.reset();
        self.channel.connect(None);
    }
}
