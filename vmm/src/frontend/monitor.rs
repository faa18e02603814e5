//! The thread that watches a backend's connection, and fetches it back when it is lost.
//!
//! One per device. Reconnects without a deadline; a backend that returns in another shape is refused with an
//! event that says what differs, and tried again. Answers the backend's own requests, of which it knows one: its
//! configuration has changed.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use strata_virtio::limit::Throttle;
use vhost::vhost_user::message::BackendReq;

use super::kind::{OfferError, warn_untracked};
use super::session::{ANSWER, Session, SessionError};
use super::wire::{Limit, NEED_REPLY, Wire, WireError};
use super::{Shared, is_readable, last};
use crate::pci::causes;

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(50);
/// After a backend was refused.
const REFUSED: Duration = Duration::from_millis(500);
/// At least this long between two readings of a changed configuration.
const CALM: Duration = Duration::from_millis(10);
/// Messages of the backend's taken at once.
const BURST: u32 = 64;

static EVENTS: Throttle = Throttle::new(20, 60);

/// What is watched while there is a connection.
struct Watch {
    socket: Arc<OwnedFd>,
    channel: Option<Arc<Wire>>,
    connection: u64,
}

/// Runs until the frontend is taken down.
pub(super) fn run(shared: &Shared) {
    let mut deaf = 0;
    let mut last = Instant::now();
    while !shared.is_stopping() {
        let watch = {
            let link = shared.link();
            link.session.as_ref().map(|session| Watch {
                socket: Arc::clone(session.socket()),
                channel: session.channel().cloned(),
                connection: link.connection,
            })
        };
        match watch {
            Some(watch) => observe(shared, &watch, &mut deaf, &mut last),
            None => fetch_back(shared),
        }
    }
}

/// Waits for something to happen to a connection, and sees to it. `deaf`: the connection whose own channel the
/// backend has closed; `last`: when the rings were looked at.
fn observe(shared: &Shared, watch: &Watch, deaf: &mut u64, last: &mut Instant) {
    let channel = watch.channel.as_ref().filter(|_| *deaf != watch.connection);
    let ready = {
        let mut fds = vec![
            PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN),
            // Only its end: answers on it are for whoever asked.
            PollFd::new(watch.socket.as_fd(), PollFlags::from_bits_retain(libc::POLLRDHUP)),
            PollFd::new(shared.err.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(channel.map(|channel| PollFd::new(channel.socket().as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::try_from(shared.look).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "a backend can no longer be watched");
                shared.pause(REFUSED);
            }
        }
        // `None` are events without a name in this library, of which we asked for one.
        let ready = |at: usize| fds.get(at).is_some_and(|fd| fd.any().unwrap_or(true));
        [ready(0), ready(1), ready(2), ready(3)]
    };
    let [woken, ended, broken, spoken] = ready;
    if woken {
        drain(&shared.wake);
    }
    if last.elapsed() >= shared.look {
        *last = Instant::now();
        shared.link().look();
    }
    if ended {
        shared.link().hang_up(watch.connection);
        return;
    }
    if broken {
        drain(&shared.err);
        if EVENTS.allow() {
            tracing::warn!(device = shared.id, "the backend found a ring broken; the device needs a reset");
        }
        shared.notifier.needs_reset();
    }
    if let Some(channel) = channel.filter(|_| spoken) {
        match listen(channel) {
            Ok(true) => {
                if shared.link().refresh() {
                    shared.notifier.config_changed();
                }
                shared.pause(CALM);
            }
            Ok(false) => {}
            Err(_) => *deaf = watch.connection,
        }
    }
}

fn drain(event: &OwnedFd) {
    let mut count = [0; 8];
    let _ = nix::unistd::read(event, &mut count);
}

/// Takes what the backend says by itself; true if its configuration has changed. It is acknowledged before
/// anything is asked of it: it may be waiting for that.
fn listen(channel: &Wire) -> Result<bool, WireError> {
    let mut changed = false;
    for _ in 0..BURST {
        // What has begun to come is waited for; what has not ends the round.
        let mut fds = [PollFd::new(channel.socket().as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready == 0) {
            break;
        }
        let limit = Limit::of(Some(ANSWER));
        let message = channel.receive(0, limit)?;
        let known = message.code == u32::from(BackendReq::CONFIG_CHANGE_MSG) && message.body.is_empty();
        changed |= known;
        if message.flags & NEED_REPLY != 0 {
            let answer = u64::from(!known).to_ne_bytes();
            channel.send(message.code, REPLY, &answer, &[], limit)?;
        }
    }
    Ok(changed)
}

/// The reply flag of a header.
const REPLY: u32 = 4;

/// Tries until a backend of the right shape is in service, or the frontend is taken down.
fn fetch_back(shared: &Shared) {
    let since = Instant::now();
    let mut refused = String::new();
    let mut given_up: u32 = 0;
    while !shared.is_stopping() {
        if shared.leaving.has_come(since) {
            shared.link().answer_with_errors();
            shared.pause(last::PAUSE);
            continue;
        }
        match attempt(shared) {
            Ok(()) => {
                if EVENTS.allow() {
                    let after = since.elapsed().as_millis();
                    tracing::info!(device = shared.id, "the backend is back after {after} ms");
                }
                return;
            }
            Err(Failed::Connect) => shared.pause(RETRY),
            // It was to hear that the device is to go.
            Err(Failed::Offer(_)) if is_readable(&shared.hurry, Duration::ZERO) && !shared.is_stopping() => {
                drain(&shared.hurry);
            }
            Err(Failed::Offer(error)) => {
                let text = causes(&error);
                // The connection's own troubles are those of a backend that is still dying.
                let dying =
                    matches!(error, OfferError::Session(SessionError::Wire(_)) | OfferError::Ring { .. });
                let quiet = dying || text == refused;
                if !quiet && EVENTS.allow() {
                    tracing::error!(device = shared.id, why = text, "a returning backend is refused");
                }
                if !dying {
                    shared.seen.refused(Some(text.clone()));
                }
                shared.pause(if dying { RETRY } else { REFUSED });
                refused = text;
            }
        }
        // Again after as long again: the driver may have reset it, and wait anew.
        if shared.give_up.is_some_and(|limit| since.elapsed() >= limit.saturating_mul(given_up + 1)) {
            given_up = given_up.saturating_add(1);
            if EVENTS.allow() {
                tracing::warn!(
                    device = shared.id,
                    "no backend has returned in time; the device needs a reset"
                );
            }
            shared.notifier.needs_reset();
        }
    }
}

enum Failed {
    /// Nobody listens.
    Connect,
    /// Somebody does, and will not do.
    Offer(OfferError),
}

fn attempt(shared: &Shared) -> Result<(), Failed> {
    let stream = UnixStream::connect(&shared.path).map_err(|_| Failed::Connect)?;
    // A supervisor keeps the listening socket open, so this may be the backlog of a backend yet to be started.
    let patience = shared.leaving.patience().or(shared.give_up);
    let offer_failed = |error: SessionError| Failed::Offer(error.into());
    let mut session = Session::open(stream, &shared.hurry, patience).map_err(offer_failed)?;
    let kind = shared.kind;
    let offer = kind.offer(&mut session, shared.asked, shared.queue_size).map_err(Failed::Offer)?;
    warn_untracked(&shared.id, kind, offer.inflight);
    let mut link = shared.link();
    link.adopt(session, &offer).map_err(Failed::Offer)?;
    // The parts of the configuration that may differ are shown as they are now.
    let changed = link.refresh();
    drop(link);
    if changed {
        shared.notifier.config_changed();
    }
    Ok(())
}
