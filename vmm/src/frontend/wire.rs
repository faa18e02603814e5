#![allow(unsafe_code)] // received descriptors become owned values
//! vhost-user messages as the frontend sees them: requests out, replies in, each within a time limit.
//!
//! Called by [`super::session`]. The `vhost` crate's `Frontend` is not used here because it waits for a silent
//! backend for ever: a receive timeout on the socket is "try again" to it. Its message numbers are ours.
//!
//! A reply's bytes are the backend's and so hostile: bodies up to 4 KiB, 8 descriptors, the right request code.
//! Whatever goes wrong here ends the connection; a stream that is out of step cannot be trusted again.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

const MAX_BODY: usize = 4096;
const MAX_FDS: usize = 8;
/// What one message of a stream can carry (SCM_MAX_FD). There is room for all of them: what would not fit, the
/// kernel has opened all the same, and nobody could close it.
const SCM_MAX_FD: usize = 253;
const HEADER: usize = 12;
const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
/// The sender wants an acknowledgement.
pub(super) const NEED_REPLY: u32 = 8;

/// Why a connection ends.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The frontend is being taken down.
    #[error("asked to stop")]
    Stopped,
    /// The backend closed the connection.
    #[error("the backend closed the connection")]
    Closed,
    /// No answer in time.
    #[error("the backend did not answer request {code} within {} s", limit.as_secs())]
    Late {
        /// The request.
        code: u32,
        /// How long it had.
        limit: Duration,
    },
    /// Another message than the one waited for, or one out of bounds.
    #[error("message {code} came with flags {flags:#x} and {size} bytes where the answer to {wanted} is due")]
    OutOfStep {
        /// What came.
        code: u32,
        /// Its flags.
        flags: u32,
        /// Its length.
        size: u32,
        /// The request that waits.
        wanted: u32,
    },
    /// More descriptors than any message has.
    #[error("more than {MAX_FDS} descriptors came with one message")]
    Descriptors,
    /// The system's answer.
    #[error("the connection failed")]
    System(#[from] std::io::Error),
}

impl From<Errno> for WireError {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// How long something may take; `None` is for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    start: Instant,
    limit: Option<Duration>,
}

impl Limit {
    pub(super) fn of(limit: Option<Duration>) -> Self {
        Self { start: Instant::now(), limit }
    }

    fn left(&self) -> Option<PollTimeout> {
        let Some(limit) = self.limit else { return Some(PollTimeout::NONE) };
        let left = limit.checked_sub(self.start.elapsed())?;
        Some(PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX))
    }
}

/// A message that came.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) code: u32,
    pub(super) flags: u32,
    pub(super) body: Vec<u8>,
    pub(super) fds: Vec<OwnedFd>,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct Wire {
    sock: Arc<OwnedFd>,
    stop: Arc<OwnedFd>,
}

impl Wire {
    /// A connection that is given up when `stop` becomes readable.
    pub(super) fn new(sock: OwnedFd, stop: Arc<OwnedFd>) -> Self {
        Self { sock: Arc::new(sock), stop }
    }

    /// The socket, to watch for the other side's end.
    pub(super) fn socket(&self) -> &Arc<OwnedFd> {
        &self.sock
    }

    /// Sends a message.
    pub(super) fn send(
        &self,
        code: u32,
        flags: u32,
        body: &[u8],
        fds: &[BorrowedFd<'_>],
        limit: Limit,
    ) -> Result<(), WireError> {
        let header = [code, VERSION | flags, body.len() as u32];
        let message: Vec<u8> =
            header.iter().flat_map(|word| word.to_ne_bytes()).chain(body.iter().copied()).collect();
        let mut fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let mut done = 0;
        while let Some(rest) = message.get(done..).filter(|rest| !rest.is_empty()) {
            let control = [ControlMessage::ScmRights(&fds)];
            let control = if fds.is_empty() { &[] } else { control.as_slice() };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.sock.as_raw_fd(), &[IoSlice::new(rest)], control, flags, None) {
                Ok(sent) => {
                    done += sent;
                    fds.clear();
                }
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT, code, limit)?,
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE | Errno::ECONNRESET) => return Err(WireError::Closed),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The answer to request `code`.
    pub(super) fn reply(&self, code: u32, limit: Limit) -> Result<Message, WireError> {
        let message = self.receive(code, limit)?;
        let Message { code: came, flags, ref body, .. } = message;
        if came != code || flags & (VERSION_MASK | REPLY) != VERSION | REPLY {
            let size = body.len() as u32;
            return Err(WireError::OutOfStep { code: came, flags, size, wanted: code });
        }
        Ok(message)
    }

    /// The next message, whatever it is; `wanted` is only for what is said if it does not come.
    pub(super) fn receive(&self, wanted: u32, limit: Limit) -> Result<Message, WireError> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        self.fill(&mut header, &mut fds, wanted, limit)?;
        let [code, flags, size] = words(header);
        if size as usize > MAX_BODY {
            return Err(WireError::OutOfStep { code, flags, size, wanted });
        }
        let mut body = vec![0; size as usize];
        self.fill(&mut body, &mut fds, wanted, limit)?;
        Ok(Message { code, flags, body, fds })
    }

    fn fill(
        &self,
        out: &mut [u8],
        fds: &mut Vec<OwnedFd>,
        wanted: u32,
        limit: Limit,
    ) -> Result<(), WireError> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let mut iov = [IoSliceMut::new(rest)];
            let mut space = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let got = match recvmsg::<()>(self.sock.as_raw_fd(), &mut iov, Some(&mut space), flags) {
                Ok(got) => got,
                Err(Errno::EAGAIN) => {
                    self.wait(PollFlags::POLLIN, wanted, limit)?;
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(Errno::ECONNRESET) => return Err(WireError::Closed),
                Err(errno) => return Err(errno.into()),
            };
            // Every descriptor is owned before anything can fail, so none leaks.
            for control in got.cmsgs()? {
                if let ControlMessageOwned::ScmRights(list) = control {
                    // SAFETY: the kernel has just opened these descriptors for this process alone.
                    fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            if got.flags.contains(MsgFlags::MSG_CTRUNC) || fds.len() > MAX_FDS {
                return Err(WireError::Descriptors);
            }
            if got.bytes == 0 {
                return Err(WireError::Closed);
            }
            done += got.bytes;
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags, code: u32, limit: Limit) -> Result<(), WireError> {
        let late = || WireError::Late { code, limit: limit.limit.unwrap_or_default() };
        let timeout = limit.left().ok_or_else(late)?;
        let mut fds =
            [PollFd::new(self.stop.as_fd(), PollFlags::POLLIN), PollFd::new(self.sock.as_fd(), what)];
        match poll(&mut fds, timeout) {
            Ok(0) => Err(late()),
            Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
            Ok(_) if fds.first().and_then(PollFd::any) == Some(true) => Err(WireError::Stopped),
            Ok(_) => Ok(()),
        }
    }
}

fn words(header: [u8; HEADER]) -> [u32; 3] {
    let mut words = [0; 3];
    for (word, bytes) in words.iter_mut().zip(header.chunks_exact(4)) {
        *word = bytes.iter().rev().fold(0, |all, byte| all << 8 | u32::from(*byte));
    }
    words
}
