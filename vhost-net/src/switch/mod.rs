//! A switch in user space: joins the network cards of many guests, each behind a vhost-user socket of its own, without
//! a kernel bridge and without root. Made by `main` for `vhost-net --switch`.
//!
//! ```text
//!   vmm A --vhost-user--> session (thread) --> Device of port a --\
//!   vmm B --vhost-user--> session (thread) --> Device of port b ---+-- messages --> fabric (one thread): all rings,
//!   host  --varlink-----> control (thread) ----------------------/                  addresses, VLANs, uplink
//! ```
//!
//! **One thread moves all frames.** Where the host is itself a guest, a wake-up costs what hundreds of frames do: one
//! thread that has just delivered to B finds B's answer by looking, where a thread per port would have to be woken, and
//! N of them would poll. Rings and table are then one thread's own, without a lock. A batch per port in turn keeps one
//! guest from starving another. A switch that is one processor's worth of copying short is two switches.
//!
//! **A frame is copied once**, from its sender's buffers into its receiver's; but for the first 18 bytes, which are read
//! once, checked, and passed on from memory of ours, so that what was checked is what is sent ([`frame`]).
//!
//! **Offloads are each port's own affair.** Every port is offered checksum and TCP segmentation both ways. Where
//! both guests took them, a 64 KiB segment crosses as it is; where the receiver did not, the switch completes the sum
//! or cuts the segment for that receiver alone ([`segment`]). Offering only what all have would let one small guest slow
//! every other, and could not be kept: guests come and go, and what was negotiated stays. UDP segmentation is not
//! offered: its sender's kernel cuts, as it does for most cards. There is no control queue: a guest that filters does so
//! itself, and one queue pair is all that one thread can make use of.
//!
//! A port's guest may be killed, hang, reset or break its ring: its own frames are lost, counted, and no other port waits
//! for it ([`lane`]).

pub mod fabric;
pub mod fit;
mod forward;
pub mod frame;
pub mod lane;
pub mod order;
pub mod port;
pub mod segment;
pub mod service;
pub mod stats;
pub mod table;
pub mod uplink;
pub mod vlans;

use std::sync::Arc;
use std::sync::mpsc::channel;

use strata_virtio::poller::PollLimit;
use strata_virtio::worker::{Options, Worker, WorkerStats};

pub use port::{Port, PortDevice};

use fabric::Fabric;
use order::Orders;
use uplink::Uplink;

/// The most ports of a switch: what a process's descriptors and threads are enough for.
pub const MAX_PORTS: usize = 64;

/// What a switch is, beside its ports.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// Seconds after which an address that was not seen is forgotten.
    pub ageing: u32,
    /// The MTU its guests are told, in bytes.
    pub mtu: Option<u16>,
    /// How long the thread looks before it sleeps.
    pub poll: PollLimit,
    /// The thread's processor.
    pub cpu: Option<usize>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { name: "switch".to_owned(), ageing: 300, mtu: None, poll: PollLimit::default(), cpu: None }
    }
}

/// A running switch. Dropping it stops the thread; its ports' devices are stopped before.
#[derive(Debug)]
pub struct Switch {
    settings: Settings,
    ports: Vec<Arc<Port>>,
    orders: Orders,
    stats: Arc<WorkerStats>,
    _worker: Worker<Fabric>,
}

impl Switch {
    /// Starts the thread. An uplink serves the port it comes with, whose device is never made.
    ///
    /// # Errors
    /// No thread or descriptor is left.
    pub fn start(
        settings: Settings,
        ports: Vec<Arc<Port>>,
        uplink: Option<(usize, Uplink)>,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = channel();
        let fabric = Fabric::new(&settings, &ports, uplink, receiver);
        let stats = Arc::<WorkerStats>::default();
        let options = Options {
            name: "switch".to_owned(),
            cpu: settings.cpu,
            poll: settings.poll,
            stats: Arc::clone(&stats),
        };
        let worker = Worker::spawn(fabric, options)?;
        let orders = Orders::new(sender, worker.nudger());
        Ok(Self { settings, ports, orders, stats, _worker: worker })
    }

    /// Its ports, by number.
    #[must_use]
    pub fn ports(&self) -> &[Arc<Port>] {
        &self.ports
    }

    /// The device behind a port's socket; `None` if there is no such port.
    #[must_use]
    pub fn device(&self, number: usize) -> Option<PortDevice> {
        let port = self.ports.get(number)?;
        Some(PortDevice::new(number, Arc::clone(port), self.orders.clone(), self.settings.mtu))
    }

    /// What the host may ask of it.
    #[must_use]
    pub fn service(&self) -> service::Service {
        service::Service::new(
            self.settings.clone(),
            self.ports.clone(),
            self.orders.clone(),
            Arc::clone(&self.stats),
        )
    }
}
