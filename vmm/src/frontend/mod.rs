//! Devices in other processes: the frontend's half of vhost-user.
//!
//! Made by the machine after the sandbox is closed ([`connect`] needs only a path in the vmm's root); called by
//! the PCI transport. Kicks and calls are eventfds that guest, KVM and backend share, so nothing here is on the
//! path of an I/O. A backend may die, hang or be replaced at any time: the guest sees a pause (`link.rs`).
//!
//! Refuses a backend that offers less than the machine file asks for, and one that returns in another shape.

mod feature;
mod kind;
mod last;
mod link;
mod monitor;
mod seen;
mod session;
mod stall;
mod wire;

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::memory::Memory;
use strata_virtio::vring::signal;

use crate::pci::{Notifier, PciDevice};
pub use kind::{Kind, OfferError};
use last::Leaving;
use link::Link;
use seen::Seen;
pub use seen::{Hook, Stall};
use session::Session;
pub use session::SessionError;
pub use wire::WireError;

/// Between two attempts of the first connection.
const RETRY: Duration = Duration::from_millis(20);
/// The smallest ring that is tried.
const RING_MIN: u16 = 16;

/// What the machine file says about a device.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub id: String,
    /// Where its backend listens.
    pub path: PathBuf,
    /// What it is.
    pub kind: Kind,
    /// Queues (a network card: pairs); `None`: one, or as many as the backend says a device of this kind has.
    pub queues: Option<u16>,
    /// The largest ring the guest may make, a power of two.
    pub queue_size: u16,
    /// After how long without a backend the device asks for a reset; `None`: the guest waits for ever.
    pub give_up: Option<Duration>,
    /// How often to look whether its rings stand.
    pub look: Duration,
    /// Told when its backend is lost or back.
    pub hook: Option<Hook>,
}

/// Why a device has no backend.
#[derive(Debug, thiserror::Error)]
pub enum FrontendError {
    /// Nobody listens.
    #[error("device {id}: nothing answers on {} within {} s", path.display(), patience.as_secs())]
    Connect {
        /// The device.
        id: String,
        /// Its socket.
        path: PathBuf,
        /// How long was waited.
        patience: Duration,
        /// The last answer.
        #[source]
        source: std::io::Error,
    },
    /// The backend will not do.
    #[error("device {id}: the backend on {} cannot be used", path.display())]
    Offer {
        /// The device.
        id: String,
        /// Its socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: OfferError,
    },
    /// The system refused a descriptor or a thread.
    #[error("device {id}: no descriptor or thread for the connection")]
    System {
        /// The device.
        id: String,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Whether a backend serves the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// One does.
    Connected,
    /// The guest waits for one.
    Lost,
}

/// What the frontend and its monitor share.
#[derive(Debug)]
struct Shared {
    id: String,
    path: PathBuf,
    kind: Kind,
    asked: Option<u16>,
    queue_size: u16,
    queues: u16,
    seen: Arc<Seen>,
    give_up: Option<Duration>,
    look: Duration,
    notifier: Notifier,
    link: Mutex<Link>,
    /// Readable for ever once the frontend is taken down.
    stop: Arc<OwnedFd>,
    /// Wakes the monitor: the connection was found lost by somebody else.
    wake: OwnedFd,
    err: Arc<OwnedFd>,
    leaving: Leaving,
    /// Ends the wait for the first answer of a backend that has not returned yet.
    hurry: Arc<OwnedFd>,
}

impl Shared {
    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        is_readable(&self.stop, Duration::ZERO)
    }

    /// Waits, or less if the frontend is taken down.
    fn pause(&self, time: Duration) {
        is_readable(&self.stop, time);
    }
}

fn is_readable(fd: &OwnedFd, limit: Duration) -> bool {
    use std::os::fd::AsFd;

    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX)).is_ok_and(|ready| ready > 0)
}

/// What others may know of a device: for status and statistics. Never waits for a backend.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    /// The device's name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// A word for what it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.0.kind.name()
    }

    /// Whether a backend serves it.
    #[must_use]
    pub fn state(&self) -> State {
        if self.0.seen.is_connected() { State::Connected } else { State::Lost }
    }

    /// How many queues it has.
    #[must_use]
    pub fn queues(&self) -> u16 {
        self.0.queues
    }

    /// How often its backend was lost.
    #[must_use]
    pub fn losses(&self) -> u64 {
        self.0.seen.losses()
    }

    /// Microseconds without a backend: of all outages that have ended, and of the longest of them.
    #[must_use]
    pub fn outages(&self) -> (u64, u64) {
        self.0.seen.outages()
    }

    /// Why the backend that answers is not taken into service.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        self.0.seen.trouble()
    }

    /// The guest is asked to let go of it: what it waits for is answered with errors once its backend has been gone for
    /// a while, or from now on (`now`), so that its driver can come to an end.
    pub fn leave(&self, now: bool) {
        self.0.leaving.set(Some(now));
        let mut link = self.0.link();
        if now {
            link.part();
            link.answer_with_errors();
        }
        if link.session.is_none() {
            signal(&self.0.hurry);
        }
        signal(&self.0.wake);
    }

    /// The guest keeps it.
    pub fn stay(&self) {
        self.0.leaving.set(None);
    }

    /// The ring that has held requests longest without one being answered.
    #[must_use]
    pub fn stall(&self) -> Option<Stall> {
        self.0.seen.stall()
    }
}

/// The device, as the PCI transport sees it.
struct Frontend {
    identity: Identity,
    shared: Arc<Shared>,
    monitor: Option<JoinHandle<()>>,
}

/// Connects to a backend, waiting for it at most `patience`, and makes a device of what it offers.
///
/// # Errors
/// Nobody answers, or what is offered is not what the machine file asks for.
pub fn connect(
    settings: Settings,
    memory: &Arc<Memory>,
    patience: Duration,
) -> Result<(PciDevice, Handle), FrontendError> {
    let Settings { id, path, kind, queues: asked, queue_size, give_up, look, hook } = settings;
    let system = |source: std::io::Error| FrontendError::System { id: id.clone(), source };
    let event = || {
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        EventFd::from_flags(flags).map(OwnedFd::from).map_err(|errno| system(errno.into()))
    };
    let (stop, err, wake, hurry) = (Arc::new(event()?), Arc::new(event()?), event()?, Arc::new(event()?));

    let start = Instant::now();
    let mut queue_size = queue_size;
    let (session, offer) = loop {
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(source) if start.elapsed() >= patience => {
                return Err(FrontendError::Connect { id, path, patience, source });
            }
            Err(_) => {
                std::thread::sleep(RETRY);
                continue;
            }
        };
        let offered = Session::open(stream, &stop, Some(patience.saturating_sub(start.elapsed())))
            .map_err(OfferError::from)
            .and_then(|mut session| {
                kind.offer(&mut session, asked, queue_size).map(|offer| (session, offer))
            });
        match offered {
            Ok(offered) => break offered,
            // Some do not say no: they hang up, and have to be asked for less from the start.
            Err(OfferError::Ring { size }) if size > RING_MIN => queue_size = size / 2,
            Err(source) => return Err(FrontendError::Offer { id, path, source }),
        }
    };
    kind::warn_untracked(&id, kind, offer.inflight);

    let identity = Identity {
        device_id: kind.device_id(),
        features: offer.features,
        queue_sizes: offer.sizes.clone(),
        config_size: offer.config.len() as u32,
    };
    let notifier = Notifier::new();
    let seen = Arc::new(Seen::new(hook));
    let link = Link::new(
        (id.clone(), kind),
        (session, offer),
        Arc::clone(memory),
        Arc::clone(&err),
        Arc::clone(&seen),
    );
    let shared = Arc::new(Shared {
        id: id.clone(),
        path,
        kind,
        asked,
        queue_size,
        queues: identity.queue_sizes.len() as u16,
        seen,
        give_up,
        look,
        notifier: notifier.clone(),
        link: Mutex::new(link),
        stop,
        wake,
        err,
        leaving: Leaving::default(),
        hurry,
    });
    let watching = Arc::clone(&shared);
    let monitor = std::thread::Builder::new()
        .name(format!("watch-{id}"))
        .spawn(move || monitor::run(&watching))
        .map_err(|source| FrontendError::System { id: id.clone(), source })?;
    let handle = Handle(Arc::clone(&shared));
    let device = Frontend { identity, shared, monitor: Some(monitor) };
    Ok((PciDevice { id, notifier, device: Box::new(device), slot: None }, handle))
}

impl Frontend {
    /// Runs on the link, and wakes the monitor if that found the connection lost.
    fn with<T>(&self, run: impl FnOnce(&mut Link) -> T) -> T {
        let mut link = self.shared.link();
        let had = link.session.is_some();
        let result = run(&mut link);
        let lost = had && link.session.is_none();
        drop(link);
        if lost {
            signal(&self.shared.wake);
        }
        result
    }
}

impl Device for Frontend {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        out.fill(0);
        let link = self.shared.link();
        for (slot, byte) in out.iter_mut().zip(link.offer.config.iter().skip(offset as usize)) {
            *slot = *byte;
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.with(|link| link.write_config(offset, data));
    }

    fn set_features(&mut self, features: u64) {
        self.with(|link| link.set_features(features));
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let index = setup.index;
        self.with(|link| link.start(setup)).map_err(|error| StartError::Resource {
            index,
            what: "its backend does not serve it",
            source: std::io::Error::other(error),
        })
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        self.with(|link| link.stop(index))
    }

    fn reset(&mut self) {
        self.with(Link::reset);
    }
}

impl Drop for Frontend {
    fn drop(&mut self) {
        signal(&self.shared.stop);
        signal(&self.shared.hurry);
        signal(&self.shared.wake);
        if let Some(monitor) = self.monitor.take() {
            let _ = monitor.join();
        }
        // The monitor has gone; closing the connection tells the backend.
        self.shared.link().session = None;
    }
}

#[cfg(test)]
mod kill_test;
#[cfg(test)]
mod last_test;
#[cfg(test)]
mod liar_test;
#[cfg(test)]
mod qemu_test;
#[cfg(test)]
pub(crate) mod reference_test;
#[cfg(test)]
mod stand_test;
