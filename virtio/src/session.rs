//! The backend's end of vhost-user: serves one frontend after another with one [`Device`].
//!
//! Called by a backend's `main`, on the control thread; the queues run on threads of the device's. A session
//! is a small state machine (`state`) fed with typed requests (`request`) from a socket (`wire`).
//!
//! ```text
//!   listen --> accept --> request, reply, request, ... --> disconnect: rings drained, device reset, memory
//!     ^                                                    unmapped
//!     +------------------------------------------------------+
//! ```
//!
//! The message layer is our own rather than the `vhost` crate's `BackendReqHandler`: that one keeps the channel
//! for CONFIG_CHANGE to itself, knows no SET_STATUS, and blocks in `recvmsg` on half a message, where no stop
//! request reaches it. Message numbers and flags are the crate's, and its `Frontend` is the peer in our tests.
//!
//! A request that is refused ends the session unless the frontend asked for an acknowledgement, since it would
//! otherwise believe what is not so.

mod config_change;
mod endpoint;
#[cfg(any(test, feature = "driver"))]
mod replay;
mod request;
mod rings;
mod state;
mod wire;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

pub use config_change::ConfigChange;
pub use endpoint::{Endpoint, EndpointError};
#[cfg(any(test, feature = "driver"))]
pub use replay::replay;
use request::{Request, code_of};
use state::{Refused, Session};
pub use wire::WireError;
use wire::{Message, Wire, wait_or_stop};

use vhost::vhost_user::message::FrontendReq;

use crate::device::Device;
use crate::limit::Throttle;

/// How [`serve`] came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The stop descriptor was signalled.
    Stopped,
    /// The only client there could be has gone.
    Disconnected,
}

/// Why [`serve`] cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No client can be accepted any more.
    #[error("the socket accepts no clients")]
    Accept(#[source] std::io::Error),
}

/// Serves frontends with `device` until `stop` becomes readable, or the only connection is closed. A client's
/// fault ends its session, never this. At the end no queue runs and no guest memory is mapped.
///
/// # Errors
/// The listening socket itself fails.
pub fn serve(
    endpoint: Endpoint,
    device: &mut dyn Device,
    stop: &impl AsFd,
    channel: &ConfigChange,
) -> Result<Ended, SessionError> {
    let stop = stop.as_fd();
    let listener = match endpoint {
        Endpoint::Listener(listener) => listener,
        Endpoint::Stream(stream) => {
            return Ok(match attend(stream.into(), device, stop, channel) {
                Err(WireError::Stopped) => Ended::Stopped,
                _ => Ended::Disconnected,
            });
        }
    };
    listener.set_nonblocking(true).map_err(SessionError::Accept)?;
    loop {
        match wait_or_stop(listener.as_fd(), PollFlags::POLLIN, stop) {
            Ok(()) => {}
            Err(WireError::Stopped) => return Ok(Ended::Stopped),
            Err(error) => return Err(SessionError::Accept(std::io::Error::other(error))),
        }
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if is_passing(&error) => continue,
            Err(error) => return Err(SessionError::Accept(error)),
        };
        if let Err(WireError::Stopped) = attend(client.into(), device, stop, channel) {
            return Ok(Ended::Stopped);
        }
    }
}

/// Errors of `accept` that say something about one client only.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

/// One session, from connect to disconnect.
fn attend(
    sock: OwnedFd,
    device: &mut dyn Device,
    stop: BorrowedFd<'_>,
    channel: &ConfigChange,
) -> Result<(), WireError> {
    static ENDED: Throttle = Throttle::new(10, 60);
    let wire = Wire::new(sock, stop);
    let mut session = Session::new(device, channel);
    if ENDED.allow() {
        tracing::info!("a frontend has connected");
    }
    let result = loop {
        match wire.receive() {
            Ok(Some(message)) => match answer(&wire, &mut session, message) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            },
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    drop(session);
    if ENDED.allow() {
        match &result {
            Ok(()) | Err(WireError::Stopped) => tracing::info!("the session has ended"),
            Err(error) => tracing::warn!(%error, "the session has failed"),
        }
    }
    result
}

/// Whether a request is answered by a message of its own rather than an acknowledgement.
fn has_reply(code: FrontendReq) -> bool {
    use FrontendReq as R;
    matches!(
        code,
        R::GET_FEATURES
            | R::GET_VRING_BASE
            | R::GET_PROTOCOL_FEATURES
            | R::GET_QUEUE_NUM
            | R::GET_CONFIG
            | R::GET_INFLIGHT_FD
            | R::GET_MAX_MEM_SLOTS
            | R::GET_STATUS
    )
}

/// Does one request and replies; false if the session has to end.
fn answer(wire: &Wire<'_>, session: &mut Session<'_>, message: Message) -> Result<bool, WireError> {
    static REFUSED: Throttle = Throttle::new(10, 60);
    let (code, need_reply) = (message.code, message.need_reply);
    let name = code_of(&message).ok();
    // A reply of another shape than the one expected would put both sides out of step.
    let acknowledge = need_reply && session.acknowledges() && !name.is_some_and(has_reply);
    let result = Request::parse(message).map_err(Refused::from).and_then(|request| session.handle(request));
    match result {
        Ok(Some(reply)) => {
            wire.reply(code, &reply.body, reply.fd.as_ref().map(AsFd::as_fd))?;
            Ok(true)
        }
        Ok(None) => {
            // The request that turns acknowledgements on may itself ask for one.
            if need_reply && session.acknowledges() {
                wire.reply(code, &0u64.to_ne_bytes(), None)?;
            }
            Ok(true)
        }
        Err(why) => {
            if REFUSED.allow() {
                let error = crate::vring::Causes(&why);
                tracing::warn!(request = ?name, code, %error, goes_on = acknowledge, "a request is refused");
            }
            if acknowledge {
                wire.reply(code, &1u64.to_ne_bytes(), None)?;
            }
            Ok(acknowledge)
        }
    }
}

#[cfg(test)]
#[path = "session_test.rs"]
mod session_test;
