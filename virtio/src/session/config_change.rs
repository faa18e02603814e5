//! The channel back to the frontend, for the one thing a device of ours says on it: its configuration changed.
//!
//! A backend's `main` makes one [`ConfigChange`], gives a clone to its device and one to [`super::serve`], which
//! connects it whenever a frontend hands over a channel (SET_BACKEND_REQ_FD). Control plane only.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::socket::{AddressFamily, MsgFlags, SockType, getsockname, getsockopt, send, sockopt};
use vhost::vhost_user::message::BackendReq;

use super::wire::backend_request;

/// Tells the frontend that the device's configuration space has changed; it re-reads it and interrupts the
/// driver. Clones share one channel.
#[derive(Debug, Clone, Default)]
pub struct ConfigChange(Arc<Mutex<Option<OwnedFd>>>);

impl ConfigChange {
    /// Sends CONFIG_CHANGE. False if no frontend listens, or it does not read what it was sent (the message is
    /// then lost, and it will read the configuration when it connects again).
    pub fn notify(&self) -> bool {
        let channel = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = channel.as_ref() else { return false };
        let message = backend_request(BackendReq::CONFIG_CHANGE_MSG.into());
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // A frontend that acknowledges unasked would only fill its own buffer.
        send(channel.as_raw_fd(), &message, flags) == Ok(message.len())
    }

    /// Puts a channel in place of the former one, or none.
    pub(super) fn connect(&self, channel: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }
}

/// Whether a peer's descriptor can be such a channel.
pub(super) fn is_channel(fd: &OwnedFd) -> bool {
    let local = getsockname::<nix::sys::socket::SockaddrStorage>(fd.as_raw_fd());
    let unix = local
        .is_ok_and(|address| nix::sys::socket::SockaddrLike::family(&address) == Some(AddressFamily::Unix));
    unix && getsockopt(fd, sockopt::SockType) == Ok(SockType::Stream)
}
