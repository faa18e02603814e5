#![allow(unsafe_code)] // received descriptors become owned values
//! vhost-user messages on a stream socket: framing and descriptors. Called by [`super::serve`].
//!
//! Never blocks on the peer alone: every wait also ends when the stop descriptor is signalled, so half a message
//! or an unread reply cannot hold a backend. Refuses headers of another version, bodies beyond 4 KiB, more
//! than 32 descriptors; a stream that went wrong there cannot be trusted to be in step and is given up.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// The largest body that is read or sent, in bytes.
pub(crate) const MAX_BODY: usize = 4096;
/// The most descriptors one message carries.
pub(crate) const MAX_FDS: usize = 32;
/// What one message of a stream can carry (SCM_MAX_FD). There is room for all of them: what would not fit, the
/// kernel has opened all the same, and nobody could close it.
const SCM_MAX_FD: usize = 253;
const HEADER: usize = 12;
const VERSION: u32 = 1;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;

/// Why a stream is given up.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stop descriptor was signalled.
    #[error("asked to stop")]
    Stopped,
    /// The peer went away in the middle of a message.
    #[error("the frontend went away in the middle of a message")]
    Cut,
    /// A header that is not one.
    #[error("message {code} has flags {flags:#x}; version 1 and the need_reply flag are allowed")]
    Flags {
        /// Request code.
        code: u32,
        /// The flags word.
        flags: u32,
    },
    /// A body longer than any message's.
    #[error("message {code} says it has {size} bytes; up to {MAX_BODY} are allowed")]
    Size {
        /// Request code.
        code: u32,
        /// Length given.
        size: u32,
    },
    /// Too many descriptors.
    #[error("more than {MAX_FDS} descriptors with one message")]
    Descriptors,
    /// The system's answer.
    #[error("the connection failed")]
    System(#[from] std::io::Error),
}

impl From<Errno> for WireError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// A message as received: header checked, body still bytes.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) code: u32,
    pub(crate) need_reply: bool,
    pub(crate) body: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connection to a frontend.
#[derive(Debug)]
pub(crate) struct Wire<'a> {
    sock: OwnedFd,
    stop: BorrowedFd<'a>,
}

impl<'a> Wire<'a> {
    pub(crate) fn new(sock: OwnedFd, stop: BorrowedFd<'a>) -> Self {
        Self { sock, stop }
    }

    /// The next message; `None` if the peer has closed between two.
    pub(crate) fn receive(&self) -> Result<Option<Message>, WireError> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER];
        if !self.fill(&mut header, &mut fds, true)? {
            return Ok(None);
        }
        let [code, flags, size] = words(header);
        if flags & !NEED_REPLY != VERSION {
            return Err(WireError::Flags { code, flags });
        }
        if size as usize > MAX_BODY {
            return Err(WireError::Size { code, size });
        }
        let mut body = vec![0; size as usize];
        self.fill(&mut body, &mut fds, false)?;
        Ok(Some(Message { code, need_reply: flags & NEED_REPLY != 0, body, fds }))
    }

    /// Reads exactly `out`; false if the stream ended before its first byte and `may_end` allows that.
    fn fill(&self, out: &mut [u8], fds: &mut Vec<OwnedFd>, may_end: bool) -> Result<bool, WireError> {
        let mut done = 0;
        while let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read(rest, fds) {
                Ok(0) if done == 0 && may_end => return Ok(false),
                Ok(0) => return Err(WireError::Cut),
                Ok(n) => done += n,
                Err(WireError::System(e)) if e.raw_os_error() == Some(libc::EAGAIN) => {
                    self.wait(PollFlags::POLLIN)?;
                }
                Err(WireError::System(e)) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(WireError::System(e))
                    if e.raw_os_error() == Some(libc::ECONNRESET) && done == 0 && may_end =>
                {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn read(&self, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, WireError> {
        let mut iov = [IoSliceMut::new(out)];
        let mut space = nix::cmsg_space!([RawFd; SCM_MAX_FD]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let got = recvmsg::<()>(self.sock.as_raw_fd(), &mut iov, Some(&mut space), flags)?;
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
        Ok(got.bytes)
    }

    /// Sends a reply to request `code`.
    pub(crate) fn reply(&self, code: u32, body: &[u8], fd: Option<BorrowedFd<'_>>) -> Result<(), WireError> {
        let mut message = header(code, VERSION | REPLY, body.len() as u32);
        message.extend_from_slice(body);
        let mut fd = fd.map(|fd| [fd.as_raw_fd()]);
        let mut done = 0;
        while let Some(rest) = message.get(done..).filter(|rest| !rest.is_empty()) {
            let control = fd.as_ref().map(|fd| ControlMessage::ScmRights(fd));
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match sendmsg::<()>(self.sock.as_raw_fd(), &[IoSlice::new(rest)], control.as_slice(), flags, None)
            {
                Ok(sent) => {
                    done += sent;
                    fd = None;
                }
                Err(Errno::EAGAIN) => self.wait(PollFlags::POLLOUT)?,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn wait(&self, what: PollFlags) -> Result<(), WireError> {
        wait_or_stop(self.sock.as_fd(), what, self.stop)
    }
}

/// Waits until `fd` is ready, or says [`WireError::Stopped`].
pub(crate) fn wait_or_stop(
    fd: BorrowedFd<'_>,
    what: PollFlags,
    stop: BorrowedFd<'_>,
) -> Result<(), WireError> {
    let mut fds = [PollFd::new(stop, PollFlags::POLLIN), PollFd::new(fd, what)];
    match poll(&mut fds, PollTimeout::NONE) {
        Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(_) if fds.first().and_then(PollFd::any) == Some(true) => Err(WireError::Stopped),
        Ok(_) => Ok(()),
    }
}

/// A header: request, flags, size, each 32 bits in the machine's order (the peer is on this machine).
pub(crate) fn header(code: u32, flags: u32, size: u32) -> Vec<u8> {
    [code, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A request of the backend's own, for the channel back to the frontend.
pub(crate) fn backend_request(code: u32) -> Vec<u8> {
    header(code, VERSION, 0)
}

fn words(header: [u8; HEADER]) -> [u32; 3] {
    let all = header.iter().rev().fold(0u128, |all, byte| all << 8 | u128::from(*byte));
    [all as u32, (all >> 32) as u32, (all >> 64) as u32].map(u32::from_le)
}
