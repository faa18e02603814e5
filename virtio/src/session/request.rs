//! vhost-user requests as typed values. A pure function from a message's bytes and descriptors; it refuses
//! wrong lengths, wrong numbers of descriptors, and values outside what the specification allows.

use std::os::fd::OwnedFd;

use vhost::vhost_user::message::FrontendReq;

use super::wire::{MAX_BODY, MAX_FDS, Message};
use crate::memory::RegionSpec;

/// Why a message is refused. The stream is in step: the session can go on if the frontend hears of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("request {0} is not known")]
    Unknown(u32),
    #[error("{code:?} has {have} bytes; {want} are expected")]
    Length { code: FrontendReq, have: usize, want: usize },
    #[error("{code:?} has {have} descriptors; {want} are expected")]
    Descriptors { code: FrontendReq, have: usize, want: usize },
    #[error("{code:?} has {what} {value:#x}; {allowed} is allowed")]
    Value { code: FrontendReq, what: &'static str, value: u64, allowed: &'static str },
}

/// A ring's address triple, in the frontend's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingAddresses {
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
}

/// What a frontend asks for.
#[derive(Debug)]
pub(crate) enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<RegionSpec>),
    SetVringNum {
        index: u32,
        num: u32,
    },
    SetVringAddr {
        index: u32,
        addresses: RingAddresses,
    },
    SetVringBase {
        index: u32,
        base: u32,
    },
    GetVringBase {
        index: u32,
    },
    /// `None`: the ring is to be polled.
    SetVringKick {
        index: u32,
        fd: Option<OwnedFd>,
    },
    /// `None`: the driver polls.
    SetVringCall {
        index: u32,
        fd: Option<OwnedFd>,
    },
    SetVringErr {
        index: u32,
        fd: Option<OwnedFd>,
    },
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable {
        index: u32,
        enable: bool,
    },
    SetBackendReqFd(OwnedFd),
    GetConfig {
        offset: u32,
        size: u32,
        flags: u32,
    },
    SetConfig {
        offset: u32,
        data: Vec<u8>,
    },
    GetInflightFd {
        queues: u16,
        size: u16,
    },
    SetInflightFd {
        len: u64,
        offset: u64,
        queues: u16,
        size: u16,
        fd: OwnedFd,
    },
    ResetDevice,
    GetMaxMemSlots,
    AddMemReg(RegionSpec),
    RemMemReg {
        gpa: u64,
        size: u64,
        user_addr: u64,
    },
    SetStatus(u64),
    GetStatus,
}

/// Bit 8 of a vring descriptor message: there is no descriptor.
const NO_FD: u64 = 0x100;
/// Bytes of `struct vhost_user_config` before its payload.
const CONFIG_HEADER: usize = 12;

/// What is left of a body; reads past the end give zero, the length has been checked before.
struct Body<'a>(&'a [u8]);

impl Body<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                *head
            }
            None => [0; N],
        }
    }

    fn u16(&mut self) -> u16 {
        u16::from_ne_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_ne_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_ne_bytes(self.take())
    }
}

/// The request's code, if there is such a request.
pub(crate) fn code_of(message: &Message) -> Result<FrontendReq, RequestError> {
    FrontendReq::try_from(message.code).map_err(|()| RequestError::Unknown(message.code))
}

impl Request {
    /// Takes a message apart. Descriptors it has no use for are closed.
    pub(crate) fn parse(message: Message) -> Result<Self, RequestError> {
        use FrontendReq as R;
        let code = code_of(&message)?;
        let Message { body: bytes, fds, .. } = message;
        let mut part = Parts { code, body: Body(&bytes), len: bytes.len(), fds };
        Ok(match code {
            R::GET_FEATURES => part.empty(Self::GetFeatures)?,
            R::SET_FEATURES => Self::SetFeatures(part.word()?),
            R::SET_OWNER => part.empty(Self::SetOwner)?,
            R::RESET_OWNER => part.empty(Self::ResetOwner)?,
            R::SET_MEM_TABLE => Self::SetMemTable(part.regions()?),
            R::SET_VRING_NUM => {
                let (index, num) = part.vring()?;
                Self::SetVringNum { index, num }
            }
            R::SET_VRING_ADDR => {
                let (index, addresses) = part.addresses()?;
                Self::SetVringAddr { index, addresses }
            }
            R::SET_VRING_BASE => {
                let (index, base) = part.vring()?;
                Self::SetVringBase { index, base }
            }
            R::GET_VRING_BASE => Self::GetVringBase { index: part.vring()?.0 },
            R::SET_VRING_KICK => {
                let (index, fd) = part.vring_fd()?;
                Self::SetVringKick { index, fd }
            }
            R::SET_VRING_CALL => {
                let (index, fd) = part.vring_fd()?;
                Self::SetVringCall { index, fd }
            }
            R::SET_VRING_ERR => {
                let (index, fd) = part.vring_fd()?;
                Self::SetVringErr { index, fd }
            }
            R::GET_PROTOCOL_FEATURES => part.empty(Self::GetProtocolFeatures)?,
            R::SET_PROTOCOL_FEATURES => Self::SetProtocolFeatures(part.word()?),
            R::GET_QUEUE_NUM => part.empty(Self::GetQueueNum)?,
            R::SET_VRING_ENABLE => match part.vring()? {
                (index, value @ 0..=1) => Self::SetVringEnable { index, enable: value == 1 },
                (_, value) => return Err(part.value("the state", value.into(), "0 or 1")),
            },
            R::SET_BACKEND_REQ_FD => {
                part.length(0).or_else(|_| part.length(8))?;
                Self::SetBackendReqFd(part.fd()?)
            }
            R::GET_CONFIG => {
                let (offset, size, flags) = part.config()?;
                Self::GetConfig { offset, size, flags }
            }
            R::SET_CONFIG => {
                let (offset, ..) = part.config()?;
                Self::SetConfig { offset, data: part.body.0.to_vec() }
            }
            R::GET_INFLIGHT_FD => {
                let (_, _, queues, size) = part.inflight()?;
                Self::GetInflightFd { queues, size }
            }
            R::SET_INFLIGHT_FD => {
                let (len, offset, queues, size) = part.inflight()?;
                Self::SetInflightFd { len, offset, queues, size, fd: part.fd()? }
            }
            R::RESET_DEVICE => part.empty(Self::ResetDevice)?,
            R::GET_MAX_MEM_SLOTS => part.empty(Self::GetMaxMemSlots)?,
            R::ADD_MEM_REG => {
                part.length(40)?;
                part.body.u64();
                Self::AddMemReg(part.region()?)
            }
            R::REM_MEM_REG => {
                part.length(40)?;
                part.body.u64();
                let (gpa, size, user_addr) = (part.body.u64(), part.body.u64(), part.body.u64());
                Self::RemMemReg { gpa, size, user_addr }
            }
            R::SET_STATUS => Self::SetStatus(part.word()?),
            R::GET_STATUS => part.empty(Self::GetStatus)?,
            _ => return Err(RequestError::Unknown(code.into())),
        })
    }
}

/// A message being taken apart.
struct Parts<'a> {
    code: FrontendReq,
    body: Body<'a>,
    len: usize,
    fds: Vec<OwnedFd>,
}

impl Parts<'_> {
    fn length(&self, want: usize) -> Result<(), RequestError> {
        if self.len == want {
            return Ok(());
        }
        Err(RequestError::Length { code: self.code, have: self.len, want })
    }

    fn value(&self, what: &'static str, value: u64, allowed: &'static str) -> RequestError {
        RequestError::Value { code: self.code, what, value, allowed }
    }

    fn empty(&self, request: Request) -> Result<Request, RequestError> {
        self.length(0).map(|()| request)
    }

    fn word(&mut self) -> Result<u64, RequestError> {
        self.length(8)?;
        Ok(self.body.u64())
    }

    fn vring(&mut self) -> Result<(u32, u32), RequestError> {
        self.length(8)?;
        Ok((self.body.u32(), self.body.u32()))
    }

    fn addresses(&mut self) -> Result<(u32, RingAddresses), RequestError> {
        self.length(40)?;
        let (index, flags) = (self.body.u32(), self.body.u32());
        // Bit 0 asks for a log of used-ring writes (migration), which needs LOG_SHMFD; it is not offered.
        if flags != 0 {
            return Err(self.value("the flags", flags.into(), "0"));
        }
        let (desc, used, avail) = (self.body.u64(), self.body.u64(), self.body.u64());
        Ok((index, RingAddresses { desc, used, avail }))
    }

    fn vring_fd(&mut self) -> Result<(u32, Option<OwnedFd>), RequestError> {
        let value = self.word()?;
        if value & !(NO_FD | 0xff) != 0 {
            return Err(self.value("the ring", value, "an index up to 255 and bit 8"));
        }
        let fd = if value & NO_FD == 0 { Some(self.fd()?) } else { None };
        Ok(((value & 0xff) as u32, fd))
    }

    fn fd(&mut self) -> Result<OwnedFd, RequestError> {
        let have = self.fds.len();
        match self.fds.pop() {
            Some(fd) if have == 1 => Ok(fd),
            _ => Err(RequestError::Descriptors { code: self.code, have, want: 1 }),
        }
    }

    fn config(&mut self) -> Result<(u32, u32, u32), RequestError> {
        let (offset, size, flags) = (self.body.u32(), self.body.u32(), self.body.u32());
        let want = CONFIG_HEADER + (size as usize).min(MAX_BODY);
        self.length(want)?;
        Ok((offset, size, flags))
    }

    fn inflight(&mut self) -> Result<(u64, u64, u16, u16), RequestError> {
        // The C structure ends in padding, which some send and some do not.
        self.length(20).or_else(|_| self.length(24))?;
        Ok((self.body.u64(), self.body.u64(), self.body.u16(), self.body.u16()))
    }

    fn regions(&mut self) -> Result<Vec<RegionSpec>, RequestError> {
        let count = self.body.u32() as usize;
        self.body.u32();
        if count == 0 || count > MAX_FDS {
            return Err(self.value("the number of regions", count as u64, "1 to 32"));
        }
        self.length(8 + count * 32)?;
        if self.fds.len() != count {
            return Err(RequestError::Descriptors { code: self.code, have: self.fds.len(), want: count });
        }
        Ok(std::mem::take(&mut self.fds).into_iter().map(|fd| self.spec(fd)).collect())
    }

    fn region(&mut self) -> Result<RegionSpec, RequestError> {
        let fd = self.fd()?;
        Ok(self.spec(fd))
    }

    fn spec(&mut self, fd: OwnedFd) -> RegionSpec {
        let (gpa, size) = (self.body.u64(), self.body.u64());
        let (user_addr, fd_offset) = (self.body.u64(), self.body.u64());
        RegionSpec { gpa, size, user_addr, fd, fd_offset }
    }
}

#[cfg(test)]
#[path = "request_test.rs"]
mod request_test;
