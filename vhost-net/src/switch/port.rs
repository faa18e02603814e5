//! A port as the control side knows it, and the network card its guest sees (virtio 1.2 section 5.1). The device is
//! called by [`strata_virtio::session`] on the port's own thread; it hands queues to the switch's thread and gets them
//! back by message.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::session::ConfigChange;
use strata_virtio::spec::RING_FEATURES;
use strata_virtio::vring::Vring;

use super::order::{Order, Orders, Queue};
use super::stats::PortStats;
use super::vlans::Vlans;
use crate::config::{CONFIG_SIZE, Space};
use crate::device::QUEUE_SIZE;
use crate::features as feature;
use crate::guard::Guard;
use crate::limit::Limit;
use crate::mac::Mac;

/// Virtio device ID of a network card.
const NETWORK: u16 = 1;

/// What every port offers.
const OFFERED: u64 = RING_FEATURES
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::MRG_RXBUF
    | feature::STATUS;

/// A port, shared by its session, the switch's thread and control.
#[derive(Debug)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The address of its guest's card.
    pub mac: Mac,
    /// Which VLANs it belongs to.
    pub vlans: Vlans,
    /// It reaches no other port that is isolated.
    pub isolated: bool,
    /// What its guest may claim to be.
    pub guard: Guard,
    /// What its guest may send; the rest waits in its ring.
    pub from_guest: Limit,
    /// What is sent to its guest; the rest is dropped.
    pub to_guest: Limit,
    /// Its counters.
    pub stats: Arc<PortStats>,
    link: AtomicBool,
    features: AtomicU64,
    /// Queues that are started.
    started: AtomicU64,
    change: ConfigChange,
}

impl Port {
    /// A port with its link up, and nothing forbidden.
    #[must_use]
    pub fn new(name: impl Into<String>, mac: Mac, vlans: Vlans) -> Self {
        Self {
            name: name.into(),
            mac,
            vlans,
            isolated: false,
            guard: Guard::default(),
            from_guest: Limit::default(),
            to_guest: Limit::default(),
            stats: Arc::default(),
            link: AtomicBool::new(true),
            features: AtomicU64::new(0),
            started: AtomicU64::new(0),
            change: ConfigChange::default(),
        }
    }

    /// Whether frames pass.
    #[inline]
    #[must_use]
    pub fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }

    /// Plugs the cable in or out; the guest sees it at once.
    pub fn set_link(&self, up: bool) {
        if self.link.swap(up, Ordering::Relaxed) != up {
            self.change.notify();
        }
    }

    /// What its driver accepted; 0 while there is none.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// Whether a guest sends and receives: both queues are started.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.started.load(Ordering::Relaxed) == 2
    }

    /// The channel to its frontend, for the session.
    #[must_use]
    pub fn change(&self) -> &ConfigChange {
        &self.change
    }
}

/// The card at a port.
#[derive(Debug)]
pub struct PortDevice {
    number: usize,
    port: Arc<Port>,
    orders: Orders,
    mtu: Option<u16>,
    identity: Identity,
}

impl PortDevice {
    pub(super) fn new(number: usize, port: Arc<Port>, orders: Orders, mtu: Option<u16>) -> Self {
        let identity = Identity {
            device_id: NETWORK,
            features: OFFERED | mtu.map_or(0, |_| feature::MTU),
            queue_sizes: vec![QUEUE_SIZE; 2],
            config_size: CONFIG_SIZE as u32,
        };
        Self { number, port, orders, mtu, identity }
    }
}

/// Which queue an index names (section 5.1.2).
fn queue(index: u16) -> Option<Queue> {
    match index {
        0 => Some(Queue::Receive),
        1 => Some(Queue::Transmit),
        _ => None,
    }
}

/// The thread serves every port and may block on none: a peer that fills its own call descriptor to the limit must lose
/// its call, not stop the switch. Nobody waits by reading such a descriptor; KVM does not look at the flag.
fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

impl Device for PortDevice {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        out.fill(0);
        let space = Space {
            mac: self.port.mac,
            link: self.port.link(),
            announce: false,
            pairs: 1,
            mtu: self.mtu.unwrap_or(0),
        };
        let bytes = space.bytes();
        let from = bytes.get(offset as usize..).unwrap_or_default();
        out.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Section 5.1.4.2: under VERSION_1 the address is read-only here.
    }

    fn set_features(&mut self, features: u64) {
        self.port.features.store(features, Ordering::Relaxed);
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let (index, features) = (setup.index, setup.features);
        let refused = |source| StartError::Resource { index, what: "handing it to the switch", source };
        let queue = queue(index).ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
        for fd in [&setup.call, &setup.err].into_iter().flatten() {
            set_nonblocking(fd).map_err(refused)?;
        }
        let stats = match queue {
            Queue::Receive => &self.port.stats.rx_ring,
            Queue::Transmit => &self.port.stats.tx_ring,
        };
        let vring = Box::new(Vring::new(setup)?.counting_in(Arc::clone(stats)));
        let port = self.number;
        let failed = self.orders.ask(|done| Order::Start { port, queue, vring, features, done });
        match failed {
            Some(None) => {
                self.port.started.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Some(Some(kind)) => Err(refused(kind.into())),
            None => Err(refused(io::Error::other("the switch's thread has ended"))),
        }
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let (port, queue) = (self.number, queue(index)?);
        let vring = self.orders.ask(|done| Order::Stop { port, queue, done })??;
        self.port.started.fetch_sub(1, Ordering::Relaxed);
        Some(vring.state())
    }

    fn reset(&mut self) {
        for index in 0..2 {
            self.stop_queue(index);
        }
        self.port.features.store(0, Ordering::Relaxed);
    }
}
