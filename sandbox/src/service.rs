//! What a service manager hands a process and hears from it (sd_notify(3), sd_listen_fds(3)).
//!
//! Owns: reading `LISTEN_FDS`, which are sockets and what a process before this one has stored, and the socket of
//! `NOTIFY_SOCKET`. Called by each `main` before the sandbox, because in
//! it nothing can be opened any more: the notification socket is connected once, early, and written to as long as the
//! process lives. Refuses sockets that are none of ours (`LISTEN_PID`), and to fail for want of a service manager.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::sys;

/// SD_LISTEN_FDS_START
const FIRST: RawFd = 3;
/// More than any unit of ours passes; a bound on what the environment may make us touch.
const MOST: RawFd = 64;
/// Before the names of descriptors that we stored. A socket's is its unit's, which ends in `.socket`.
const STORED: &str = "stored-";
/// Descriptors in one message; the kernel takes 253 (SCM_MAX_FD).
const AT_ONCE: usize = 64;

/// Why what the service manager handed over cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// `LISTEN_FDS` is no number.
    #[error("LISTEN_FDS is {0:?}; it must be a number from 0 to 64")]
    Count(String),
    /// `LISTEN_FDS` counts a descriptor that is not open.
    #[error("LISTEN_FDS says that descriptor {0} is open, and it is not")]
    Closed(RawFd),
}

/// The sockets passed by socket activation, in the unit's order; empty if there are none or they are for another
/// process. May be called before [`crate::close_inherited`], which has to be told of them.
///
/// # Errors
/// The environment promises what is not there.
pub fn listeners() -> Result<Vec<RawFd>, ServiceError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    Ok(named(&passed()?, &names, |name| !name.starts_with(STORED)))
}

/// The descriptors that a process before this one has had stored as `name` ([`Notify::store`]), in no order. May be
/// called before [`crate::close_inherited`], which has to be told of them.
///
/// # Errors
/// The environment promises what is not there.
pub fn stored(name: &str) -> Result<Vec<RawFd>, ServiceError> {
    let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
    Ok(named(&passed()?, &names, |other| other.strip_prefix(STORED) == Some(name)))
}

/// Those whose name is wanted. Names are separated by colons, and may be missing.
fn named(fds: &[RawFd], names: &str, wanted: impl Fn(&str) -> bool) -> Vec<RawFd> {
    let names = names.split(':').chain(std::iter::repeat(""));
    fds.iter().zip(names).filter(|(_, name)| wanted(name)).map(|(fd, _)| *fd).collect()
}

/// All that was passed.
fn passed() -> Result<Vec<RawFd>, ServiceError> {
    let variable = |name| std::env::var(name).ok();
    let (Some(pid), Some(count)) = (variable("LISTEN_PID"), variable("LISTEN_FDS")) else {
        return Ok(Vec::new());
    };
    if pid.parse() != Ok(std::process::id()) {
        return Ok(Vec::new());
    }
    let count = match count.parse::<RawFd>() {
        Ok(count @ 0..=MOST) => count,
        _ => return Err(ServiceError::Count(count)),
    };
    let fds: Vec<RawFd> = (FIRST..FIRST + count).collect();
    match fds.iter().find(|fd| !sys::is_open(**fd)) {
        Some(closed) => Err(ServiceError::Closed(*closed)),
        None => Ok(fds),
    }
}

/// The way to the service manager, or to nobody.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    watched: Option<Duration>,
}

impl Notify {
    /// Connects to `NOTIFY_SOCKET`; without one, what is said goes nowhere. Call it after
    /// [`crate::close_inherited`] and before [`crate::isolate()`].
    #[must_use]
    pub fn from_environment() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|value| !value.is_empty()) else {
            return Self::default();
        };
        match connect(&address) {
            Ok(socket) => {
                let variable = |name| std::env::var(name).ok();
                let watched = interval(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"));
                Self { socket: Some(socket), watched }
            }
            Err(error) => {
                tracing::warn!("nobody is told of this service's state: NOTIFY_SOCKET {address:?}: {error}");
                Self::default()
            }
        }
    }

    /// How often [`Notify::alive`] has to be called: half of what the manager waits (sd_watchdog_enabled(3)). `None`: it
    /// does not watch.
    #[must_use]
    pub fn watched(&self) -> Option<Duration> {
        self.watched
    }

    /// The thread that the service stands and falls with has come round again.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// Whether anybody listens.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.socket.is_some()
    }

    /// The service does its work from now on.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// What it does, for people.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// It was told to end and does so.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}", one_line(status)));
    }

    /// Has the manager keep copies of descriptors for the next process of this service (`FDSTORE=1`). It does not watch
    /// them: what has gone stale is for that process to see, and for it to [`Notify::forget`].
    pub fn store(&self, name: &str, fds: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.socket else { return };
        let message = format!("FDSTORE=1\nFDNAME={STORED}{name}\nFDPOLL=0");
        let numbers: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        for part in numbers.chunks(AT_ONCE) {
            let (text, rights) = ([IoSlice::new(message.as_bytes())], [ControlMessage::ScmRights(part)]);
            if let Err(error) = sendmsg::<()>(socket.as_raw_fd(), &text, &rights, MsgFlags::empty(), None) {
                tracing::warn!("the service manager does not keep {name}: {error}");
            }
        }
    }

    /// What was stored as `name` is of no use any more.
    pub fn forget(&self, name: &str) {
        self.send(&format!("FDSTOREREMOVE=1\nFDNAME={STORED}{name}"));
    }

    fn send(&self, message: &str) {
        // A manager that is busy or gone is no reason to hold up a guest.
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            tracing::debug!("the service manager was not told: {error}");
        }
    }
}

/// Half of the watchdog's time, if it is this process that is watched.
fn interval(usec: Option<String>, pid: Option<String>) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(std::process::id())) {
        return None;
    }
    match usec?.parse() {
        Ok(usec @ 1..) => Some(Duration::from_micros(usec) / 2),
        _ => None,
    }
}

/// Lines are separate assignments.
fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(address)?,
        _ => return Err(io::ErrorKind::Unsupported.into()),
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
#[path = "service_test.rs"]
mod service_test;
