//! What a session knows of one ring, and when it runs.
//!
//! ```text
//!   stopped --- kick given, address and size known, memory there, enabled ---> running
//!      ^                                                                          |
//!      +----- GET_VRING_BASE, disable, reset, disconnect (drained, base kept) ----+
//! ```
//!
//! Without PROTOCOL_FEATURES a ring is enabled as it starts; with it, SET_VRING_ENABLE has to come (vhost-user,
//! "Ring states").

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::request::RingAddresses;
use crate::device::QueueSetup;
use crate::inflight::QueueRegion;
use crate::memory::Memory;

/// What the frontend has said about a ring.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) num: Option<u16>,
    pub(super) base: u16,
    pub(super) addresses: Option<RingAddresses>,
    pub(super) kick: Kick,
    pub(super) call: Option<OwnedFd>,
    pub(super) err: Option<OwnedFd>,
    pub(super) enabled: bool,
    pub(super) running: bool,
    /// It has run in this session.
    pub(super) begun: bool,
}

/// The doorbell.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Not given: the ring is stopped.
    #[default]
    None,
    /// The ring is to be polled.
    Poll,
    /// An eventfd.
    Fd(OwnedFd),
}

/// Why a ring that should run cannot.
#[derive(Debug, thiserror::Error)]
pub(super) enum SetupError {
    #[error("the {part} of ring {index} at {addr:#x} is not in the memory table")]
    Address { index: u16, part: &'static str, addr: u64 },
    #[error("ring {index} needs a copy of its descriptors")]
    Descriptor {
        index: u16,
        #[source]
        source: std::io::Error,
    },
}

impl RingState {
    /// Whether everything is there to run.
    pub(super) fn is_ready(&self, needs_enable: bool) -> bool {
        self.num.is_some()
            && self.addresses.is_some()
            && !matches!(self.kick, Kick::None)
            && (self.enabled || !needs_enable)
    }

    /// What the device is to be started with; `None` if something has not been said yet.
    pub(super) fn setup(
        &self,
        index: u16,
        features: u64,
        memory: &Arc<Memory>,
        inflight: Option<QueueRegion>,
    ) -> Result<Option<QueueSetup>, SetupError> {
        let (Some(size), Some(at)) = (self.num, self.addresses) else { return Ok(None) };
        let gpa = |part, addr| memory.user_to_gpa(addr).ok_or(SetupError::Address { index, part, addr });
        let copy = |fd: Option<&OwnedFd>| {
            fd.map(OwnedFd::try_clone).transpose().map_err(|source| SetupError::Descriptor { index, source })
        };
        let kick = match &self.kick {
            Kick::Fd(fd) => Some(fd),
            Kick::Poll | Kick::None => None,
        };
        Ok(Some(QueueSetup {
            index,
            size,
            desc: gpa("descriptor table", at.desc)?,
            avail: gpa("avail ring", at.avail)?,
            used: gpa("used ring", at.used)?,
            features,
            base: self.base,
            kick: copy(kick)?,
            call: copy(self.call.as_ref())?,
            err: copy(self.err.as_ref())?,
            memory: Arc::clone(memory),
            inflight,
            inherited: !self.begun,
        }))
    }
}
