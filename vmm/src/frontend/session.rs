//! One connection to a backend: the requests of the vhost-user protocol, and the handshake that opens it.
//!
//! Made by [`super::connect`] and by the monitor when a backend returns; used under the link's lock. Bit 30 and
//! the protocol features are negotiated before anything else; acknowledgements are asked for as soon as
//! REPLY_ACK allows it, so that a backend's "no" is heard where it is said.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, shutdown};
use strata_virtio::memory::Memory;
use strata_virtio::spec::F_PROTOCOL_FEATURES;
use vhost::vhost_user::VhostUserProtocolFeatures as Protocol;
use vhost::vhost_user::message::FrontendReq as Req;

use super::wire::{Limit, Message, NEED_REPLY, Wire, WireError};

/// How long a backend may take to answer.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
/// How long it may take to stop a ring: it drains it, on a disk that may be slow.
const DRAIN: Duration = Duration::from_secs(60);
/// The most regions every backend takes (VHOST_MEMORY_BASELINE_NREGIONS).
const REGIONS_MAX: usize = 8;
/// Added to guest-physical addresses to make the "user addresses" in which the protocol speaks of memory. The
/// backend only ever compares them with each other; the vmm's real ones are none of its business.
const USER: u64 = 1 << 46;

/// What we make use of where it is offered.
const WANTED: Protocol = Protocol::MQ
    .union(Protocol::REPLY_ACK)
    .union(Protocol::CONFIG)
    .union(Protocol::INFLIGHT_SHMFD)
    .union(Protocol::BACKEND_REQ);

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The connection is lost.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// An answer of the wrong shape.
    #[error("the backend's answer to {request} makes no sense")]
    Nonsense {
        /// The request.
        request: &'static str,
    },
    /// The backend said no.
    #[error("the backend refused {request}")]
    Refused {
        /// The request.
        request: &'static str,
    },
    /// Guest memory is in too many pieces for the protocol's baseline.
    #[error("guest memory has {0} regions; a backend takes {REGIONS_MAX}")]
    Regions(usize),
}

impl SessionError {
    /// Whether the connection can go on.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::Regions(_))
    }
}

/// The region in which a backend notes what it works on. Ours to keep when the backend dies.
#[derive(Debug)]
pub(super) struct Inflight {
    pub(super) size: u64,
    pub(super) offset: u64,
    pub(super) queues: u16,
    pub(super) depth: u16,
    pub(super) fd: OwnedFd,
}

/// Where a ring lies, in guest-physical addresses.
#[derive(Debug, Clone, Copy)]
pub(super) struct RingAddresses {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
}

/// A connection whose handshake is done.
#[derive(Debug)]
pub(super) struct Session {
    wire: Wire,
    protocol: Protocol,
    /// What the backend offers, bit 30 included.
    features: u64,
    /// The number of queues it says it has, if it says so.
    queues: Option<u64>,
    /// Our end of the backend's own channel.
    channel: Option<Arc<Wire>>,
    has_memory: bool,
}

impl Session {
    /// Shakes hands. `first` bounds the wait for the first answer: a backend that is being started accepts, in
    /// its listening socket's backlog, before it is there.
    pub(super) fn open(
        stream: UnixStream,
        stop: &Arc<OwnedFd>,
        first: Option<Duration>,
    ) -> Result<Self, SessionError> {
        let wire = Wire::new(stream.into(), Arc::clone(stop));
        let mut this = Self {
            wire,
            protocol: Protocol::empty(),
            features: 0,
            queues: None,
            channel: None,
            has_memory: false,
        };
        this.features = this.get("GET_FEATURES", Req::GET_FEATURES, Limit::of(first))?;
        this.set("SET_OWNER", Req::SET_OWNER, &[], &[])?;
        if this.features & F_PROTOCOL_FEATURES != 0 {
            let limit = Limit::of(Some(ANSWER));
            let offered = this.get("GET_PROTOCOL_FEATURES", Req::GET_PROTOCOL_FEATURES, limit)?;
            let protocol = Protocol::from_bits_truncate(offered).intersection(WANTED);
            // Not acknowledged: only from here on may acknowledgements be asked for.
            this.set_word("SET_PROTOCOL_FEATURES", Req::SET_PROTOCOL_FEATURES, protocol.bits())?;
            this.protocol = protocol;
        }
        if this.has(Protocol::MQ) {
            let limit = Limit::of(Some(ANSWER));
            this.queues = Some(this.get("GET_QUEUE_NUM", Req::GET_QUEUE_NUM, limit)?);
        }
        if this.has(Protocol::BACKEND_REQ) {
            let (ours, theirs) = UnixStream::pair().map_err(WireError::System)?;
            this.set("SET_BACKEND_REQ_FD", Req::SET_BACKEND_REQ_FD, &[], &[theirs.as_fd()])?;
            this.channel = Some(Arc::new(Wire::new(ours.into(), Arc::clone(stop))));
        }
        Ok(this)
    }

    fn has(&self, feature: Protocol) -> bool {
        self.protocol.contains(feature)
    }

    /// What the backend offers a driver, bit 30 included.
    pub(super) fn features(&self) -> u64 {
        self.features
    }

    /// How many queues it says it has.
    pub(super) fn queues(&self) -> Option<u64> {
        self.queues
    }

    /// Whether it has a configuration space to ask for.
    pub(super) fn has_config(&self) -> bool {
        self.has(Protocol::CONFIG)
    }

    /// Whether it notes its requests where a successor finds them.
    pub(super) fn tracks_inflight(&self) -> bool {
        self.has(Protocol::INFLIGHT_SHMFD)
    }

    /// Ends the connection from our side. The socket, for [`has_parted`]; `None` if the backend has closed it already.
    pub(super) fn part(self) -> Option<Arc<OwnedFd>> {
        let socket = Arc::clone(self.wire.socket());
        let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
        (!drained(&socket)).then_some(socket)
    }

    /// The connection's socket, to watch.
    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        self.wire.socket()
    }

    /// The backend's own channel, to watch.
    pub(super) fn channel(&self) -> Option<&Arc<Wire>> {
        self.channel.as_ref()
    }

    /// Settles what the driver accepted of the backend's features.
    pub(super) fn set_features(&mut self, accepted: u64) -> Result<(), SessionError> {
        // Bit 30 goes back as it came: without it rings would start enabled.
        let features = (accepted | F_PROTOCOL_FEATURES) & self.features;
        self.set_word("SET_FEATURES", Req::SET_FEATURES, features)
    }

    /// Shares guest memory, once per connection.
    pub(super) fn set_memory(&mut self, memory: &Memory) -> Result<(), SessionError> {
        if self.has_memory {
            return Ok(());
        }
        let regions: Vec<_> = memory.regions().collect();
        if regions.len() > REGIONS_MAX {
            return Err(SessionError::Regions(regions.len()));
        }
        let mut body = Vec::new();
        body.extend((regions.len() as u32).to_ne_bytes());
        body.extend([0; 4]);
        for region in &regions {
            for word in [region.gpa(), region.size(), USER + region.gpa(), region.fd_offset()] {
                body.extend(word.to_ne_bytes());
            }
        }
        let fds: Vec<_> = regions.iter().map(|region| region.fd().as_fd()).collect();
        self.set("SET_MEM_TABLE", Req::SET_MEM_TABLE, &body, &fds)?;
        self.has_memory = true;
        Ok(())
    }

    pub(super) fn set_vring_num(&mut self, index: u16, size: u16) -> Result<(), SessionError> {
        self.set("SET_VRING_NUM", Req::SET_VRING_NUM, &vring(index, size.into()), &[])
    }

    pub(super) fn set_vring_base(&mut self, index: u16, base: u16) -> Result<(), SessionError> {
        self.set("SET_VRING_BASE", Req::SET_VRING_BASE, &vring(index, base.into()), &[])
    }

    pub(super) fn set_vring_addresses(&mut self, index: u16, at: RingAddresses) -> Result<(), SessionError> {
        // index, flags, then descriptors, used ring, avail ring, log.
        let mut body = vring(index, 0);
        for address in
            [USER.wrapping_add(at.desc), USER.wrapping_add(at.used), USER.wrapping_add(at.avail), 0]
        {
            body.extend(address.to_ne_bytes());
        }
        self.set("SET_VRING_ADDR", Req::SET_VRING_ADDR, &body, &[])
    }

    pub(super) fn set_vring_fd(
        &mut self,
        req: Req,
        index: u16,
        fd: BorrowedFd<'_>,
    ) -> Result<(), SessionError> {
        let name = match req {
            Req::SET_VRING_KICK => "SET_VRING_KICK",
            Req::SET_VRING_CALL => "SET_VRING_CALL",
            _ => "SET_VRING_ERR",
        };
        self.set(name, req, &u64::from(index).to_ne_bytes(), &[fd])
    }

    /// Lets a ring run or rest. Without bit 30 there is no such request, and rings always run.
    pub(super) fn enable(&mut self, index: u16, on: bool) -> Result<(), SessionError> {
        if self.features & F_PROTOCOL_FEATURES == 0 {
            return Ok(());
        }
        self.set("SET_VRING_ENABLE", Req::SET_VRING_ENABLE, &vring(index, on.into()), &[])?;
        if on && !self.has(Protocol::REPLY_ACK) {
            // Backends watch a ring's kick from SET_VRING_KICK on and throw away one that comes while the ring rests:
            // a driver that kicks at once would wait for ever. Any answer says that the ring runs by now.
            self.get("GET_FEATURES", Req::GET_FEATURES, Limit::of(Some(ANSWER)))?;
        }
        Ok(())
    }

    /// Stops a ring, which drains it, and says where to go on.
    pub(super) fn get_vring_base(&mut self, index: u16) -> Result<u16, SessionError> {
        let request = "GET_VRING_BASE";
        let limit = Limit::of(Some(DRAIN));
        self.wire.send(Req::GET_VRING_BASE.into(), 0, &vring(index, 0), &[], limit)?;
        let reply = self.wire.reply(Req::GET_VRING_BASE.into(), limit)?;
        match reply.body.as_chunks() {
            ([came, base], []) if u32::from_ne_bytes(*came) == u32::from(index) => {
                u16::try_from(u32::from_ne_bytes(*base)).map_err(|_| SessionError::Nonsense { request })
            }
            _ => Err(SessionError::Nonsense { request }),
        }
    }

    /// Reads the first `size` bytes of the configuration space.
    pub(super) fn get_config(&mut self, size: u32) -> Result<Vec<u8>, SessionError> {
        let request = "GET_CONFIG";
        let limit = Limit::of(Some(ANSWER));
        let mut body = config_header(0, size);
        body.resize(body.len() + size as usize, 0);
        self.wire.send(Req::GET_CONFIG.into(), 0, &body, &[], limit)?;
        let reply = self.wire.reply(Req::GET_CONFIG.into(), limit)?.body;
        match reply.split_at_checked(12) {
            // A backend that cannot answer says so with no payload, or a size of 0.
            Some((_, [])) => Err(SessionError::Refused { request }),
            Some((header, config)) if header == config_header(0, size) && config.len() == size as usize => {
                Ok(config.to_vec())
            }
            Some((header, _)) if header.get(4..8) == Some(&[0; 4]) => Err(SessionError::Refused { request }),
            _ => Err(SessionError::Nonsense { request }),
        }
    }

    /// Writes to the configuration space.
    pub(super) fn set_config(&mut self, offset: u32, data: &[u8]) -> Result<(), SessionError> {
        let mut body = config_header(offset, data.len() as u32);
        body.extend_from_slice(data);
        self.set("SET_CONFIG", Req::SET_CONFIG, &body, &[])
    }

    /// Has the backend make an inflight region.
    pub(super) fn get_inflight(&mut self, queues: u16, depth: u16) -> Result<Inflight, SessionError> {
        let request = "GET_INFLIGHT_FD";
        let limit = Limit::of(Some(ANSWER));
        let body = inflight(0, 0, queues, depth);
        self.wire.send(Req::GET_INFLIGHT_FD.into(), 0, &body, &[], limit)?;
        let Message { body, mut fds, .. } = self.wire.reply(Req::GET_INFLIGHT_FD.into(), limit)?;
        let word = |at: usize| body.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
        match (word(0).map(u64::from_ne_bytes), word(8).map(u64::from_ne_bytes), fds.pop()) {
            (Some(size), Some(offset), Some(fd)) if fds.is_empty() && size > 0 => {
                Ok(Inflight { size, offset, queues, depth, fd })
            }
            _ => Err(SessionError::Nonsense { request }),
        }
    }

    /// Gives the backend the inflight region: a new one, or the one that its predecessor left.
    pub(super) fn set_inflight(&mut self, region: &Inflight) -> Result<(), SessionError> {
        let body = inflight(region.size, region.offset, region.queues, region.depth);
        self.set("SET_INFLIGHT_FD", Req::SET_INFLIGHT_FD, &body, &[region.fd.as_fd()])
    }

    fn get(&self, request: &'static str, code: Req, limit: Limit) -> Result<u64, SessionError> {
        self.wire.send(code.into(), 0, &[], &[], limit)?;
        let reply = self.wire.reply(code.into(), limit)?;
        word_of(&reply).ok_or(SessionError::Nonsense { request })
    }

    fn set_word(&self, request: &'static str, code: Req, value: u64) -> Result<(), SessionError> {
        self.set(request, code, &value.to_ne_bytes(), &[])
    }

    fn set(
        &self,
        request: &'static str,
        code: Req,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        let limit = Limit::of(Some(ANSWER));
        if !self.has(Protocol::REPLY_ACK) {
            return Ok(self.wire.send(code.into(), 0, body, fds, limit)?);
        }
        self.wire.send(code.into(), NEED_REPLY, body, fds, limit)?;
        match word_of(&self.wire.reply(code.into(), limit)?) {
            Some(0) => Ok(()),
            Some(_) => Err(SessionError::Refused { request }),
            None => Err(SessionError::Nonsense { request }),
        }
    }
}

/// Waits until the backend of a connection that we have ended has closed its end, too: then it no longer touches guest
/// memory. False if that takes longer than draining a ring may.
pub(super) fn has_parted(socket: &OwnedFd) -> bool {
    let limit = Instant::now() + DRAIN;
    while !drained(socket) {
        let left = limit.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let ready = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLIN)], timeout);
        if left.is_zero() || ready == Ok(0) {
            return false;
        }
    }
    true
}

/// Throws away what has come; true at the end of it.
fn drained(socket: &OwnedFd) -> bool {
    let mut part = [0; 256];
    loop {
        match recv(socket.as_raw_fd(), &mut part, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return true,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return false,
            Err(_) => return true,
        }
    }
}

fn word_of(reply: &Message) -> Option<u64> {
    reply.body.as_slice().try_into().ok().filter(|_| reply.fds.is_empty()).map(u64::from_ne_bytes)
}

fn vring(index: u16, value: u32) -> Vec<u8> {
    [u32::from(index).to_ne_bytes(), value.to_ne_bytes()].concat()
}

fn config_header(offset: u32, size: u32) -> Vec<u8> {
    // Flags 0: what the driver may write.
    [offset, size, 0].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn inflight(size: u64, offset: u64, queues: u16, depth: u16) -> Vec<u8> {
    let mut body = [size.to_ne_bytes(), offset.to_ne_bytes()].concat();
    body.extend(queues.to_ne_bytes());
    body.extend(depth.to_ne_bytes());
    // The C structure ends in padding.
    body.extend([0; 4]);
    body
}
