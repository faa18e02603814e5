//! The tap: the host's end of the guest's cable. Owns its descriptors, one per queue pair, and what may be
//! asked of them after start-up: offloads, attaching and detaching a queue, the address filter. Opened or
//! checked by `main` before the sandbox closes; used by [`crate::device`] (settings) and, through
//! [`crate::batch`], by the queue threads (frames).
//!
//! Refuses a tap that does not exist (unless asked to create it), is in use, lacks a virtio-net header or is
//! no tap at all: a descriptor from outside is not trusted to be what it is said to be.

mod error;
mod ioctl;
mod macvtap;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

pub use error::TapError;
pub use ioctl::offload;

use crate::header::HEADER;
use crate::mac::Mac;

/// The most queue pairs: what the kernel gives one tap (MAX_TAP_QUEUES).
pub const MAX_PAIRS: u16 = 256;

/// How long a tap may be busy before it is said to be.
const BUSY: Duration = Duration::from_millis(500);

/// One tap with a descriptor per queue pair.
#[derive(Debug)]
pub struct Tap {
    name: String,
    queues: Vec<OwnedFd>,
    multi_queue: bool,
    uso: bool,
    mtu: Option<u16>,
}

impl Tap {
    /// Opens the tap or macvtap `name` with one queue per pair, all attached.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, pairs: usize, create: bool) -> Result<Self, TapError> {
        if pairs == 0 || pairs > usize::from(MAX_PAIRS) {
            return Err(TapError::Pairs(pairs));
        }
        let wire = ioctl::Name::new(name).ok_or_else(|| TapError::Name(name.to_owned()))?;
        if !create
            && !ioctl::exists(&wire).map_err(|source| TapError::System { what: "looked up", source })?
        {
            let suffix = if pairs > 1 { " multi_queue" } else { "" };
            return Err(TapError::Missing(name.to_owned(), suffix));
        }
        let macvtap =
            macvtap::find(name).map_err(|source| TapError::System { what: "looked up in /sys", source })?;
        let mut queues = Vec::with_capacity(pairs);
        let mut multi_queue = pairs > 1;
        for _ in 0..pairs {
            let fd = match &macvtap {
                Some(node) => node.open().map_err(|source| {
                    let (name, node) = (name.to_owned(), node.path.clone());
                    TapError::Node { name, node, source }
                })?,
                None => ioctl::open_tun()
                    .map_err(|source| TapError::System { what: "opened (/dev/net/tun)", source })?,
            };
            if let Err(source) = attach(&fd, &wire, multi_queue) {
                // One pair is also served by a tap made for several; the kernel wants to hear so.
                let retry = source.raw_os_error() == Some(libc::EINVAL) && !multi_queue;
                if !retry || attach(&fd, &wire, true).is_err() {
                    return Err(refused(name, multi_queue, source));
                }
                multi_queue = true;
            }
            queues.push(fd);
        }
        Self::prepare(name.to_owned(), queues, multi_queue)
    }

    /// Takes descriptors opened elsewhere, one per pair, all of one tap.
    ///
    /// # Errors
    /// One of them is not a tap with a virtio-net header, or they are not of the same tap.
    pub fn from_fds(fds: Vec<OwnedFd>) -> Result<Self, TapError> {
        if fds.is_empty() || fds.len() > usize::from(MAX_PAIRS) {
            return Err(TapError::Pairs(fds.len()));
        }
        let mut first: Option<(String, bool)> = None;
        for (index, fd) in fds.iter().enumerate() {
            let (name, flags) = ioctl::describe(fd).map_err(|source| TapError::NotATap { index, source })?;
            let missing = ioctl::missing(flags);
            if let Some(missing) = missing {
                return Err(TapError::Flags { index, missing });
            }
            let multi = ioctl::is_multi_queue(flags);
            match &first {
                None => first = Some((name, multi)),
                Some((known, _)) if *known != name => {
                    return Err(TapError::Different { first: known.clone(), second: name });
                }
                Some(_) => {}
            }
            // Programs that share the open file would see the flag too; a tap is not shared.
            fcntl(fd, FcntlArg::F_GETFL)
                .and_then(|old| {
                    fcntl(fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(old) | OFlag::O_NONBLOCK))
                })
                .map_err(|errno| TapError::System { what: "made non-blocking", source: errno.into() })?;
        }
        let (name, multi_queue) = first.unwrap_or_default();
        Self::prepare(name, fds, multi_queue)
    }

    fn prepare(name: String, queues: Vec<OwnedFd>, multi_queue: bool) -> Result<Self, TapError> {
        for fd in &queues {
            ioctl::set_header_size(fd, HEADER)
                .map_err(|source| TapError::System { what: "given a header of 12 bytes", source })?;
        }
        let first = queues.first().ok_or(TapError::Pairs(0))?;
        // Tried once here: a kernel before 6.2 refuses UDP segmentation. What a guest gets is set later.
        let uso = ioctl::set_offload(first, offload::CSUM | offload::USO4 | offload::USO6).is_ok();
        ioctl::set_offload(first, 0)
            .map_err(|source| TapError::System { what: "set to no offloads", source })?;
        let mtu = ioctl::Name::new(&name).and_then(|wire| ioctl::mtu(&wire).ok());
        Ok(Self { name, queues, multi_queue, uso, mtu })
    }

    /// The interface's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of queue pairs.
    #[must_use]
    pub fn pairs(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(MAX_PAIRS)
    }

    /// Whether it segments UDP (TUN_F_USO4/6).
    #[must_use]
    pub fn uso(&self) -> bool {
        self.uso
    }

    /// Its MTU in bytes when it was opened, if it could be seen from here.
    #[must_use]
    pub fn mtu(&self) -> Option<u16> {
        self.mtu
    }

    /// Says what its MTU is, where that is known better than it can be seen from here.
    #[must_use]
    pub fn with_mtu(mut self, mtu: Option<u16>) -> Self {
        self.mtu = mtu.or(self.mtu);
        self
    }

    /// A pair's descriptor.
    #[must_use]
    pub fn queue(&self, pair: usize) -> Option<BorrowedFd<'_>> {
        self.queues.get(pair).map(AsFd::as_fd)
    }

    /// What the guest takes: flags of [`offload`]. For all queues.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_offload(&self, flags: u32) -> io::Result<()> {
        self.queues.first().map_or(Ok(()), |fd| ioctl::set_offload(fd, flags))
    }

    /// Has the kernel steer frames to this pair's queue, or no longer. Nothing to do on a tap of one queue.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_attached(&self, pair: usize, attached: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        match self.queues.get(pair) {
            Some(fd) => match ioctl::set_queue(fd, attached) {
                // It is so already.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
                other => other,
            },
            None => Ok(()),
        }
    }

    /// Which frames the kernel passes to the guest, by destination: those in `unicast` and `multicast`
    /// (`all_multicast`: any group), or all for `None`. The kernel compares the first 8 addresses, of which the
    /// unicast ones must be part, and hashes groups beyond; what it cannot hold, it passes.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn set_filter(&self, filter: Option<&Filter>) -> io::Result<()> {
        self.queues.first().map_or(Ok(()), |fd| ioctl::set_filter(fd, filter))
    }

    /// Gives the interface its carrier, or takes it away: the host then sends it nothing.
    ///
    /// # Errors
    /// The kernel's answer; before 5.0 it does not know the request.
    pub fn set_carrier(&self, up: bool) -> io::Result<()> {
        self.queues.first().map_or(Ok(()), |fd| ioctl::set_carrier(fd, up))
    }

    /// Whether the interface is still there and has the same name.
    #[must_use]
    pub fn alive(&self) -> bool {
        self.queues.first().is_some_and(|fd| ioctl::describe(fd).is_ok())
    }
}

/// Destinations a guest wants to receive.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Any group address.
    pub all_multicast: bool,
    /// Addresses, unicast ones first.
    pub addresses: Vec<Mac>,
}

/// Attaches to a tap, waiting for whoever had it to be quite gone: a backend that is started again in place of
/// one that was killed is often quicker than the kernel with closing the other's descriptors.
fn attach(fd: &OwnedFd, name: &ioctl::Name, multi_queue: bool) -> io::Result<()> {
    let deadline = Instant::now() + BUSY;
    loop {
        match ioctl::attach(fd, name, multi_queue) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

fn refused(name: &str, multi_queue: bool, source: io::Error) -> TapError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EBUSY) => TapError::Busy(name),
        Some(libc::EPERM | libc::EACCES) => TapError::Permission(name),
        Some(libc::EINVAL) if multi_queue => {
            TapError::Mismatch { name, queues: "several queues", other: "without multi_queue" }
        }
        Some(libc::EINVAL) => TapError::Mismatch { name, queues: "one queue", other: "with other flags" },
        Some(libc::E2BIG) => TapError::Mismatch { name, queues: "that many queues", other: "for fewer" },
        _ => TapError::System { what: "opened", source },
    }
}
