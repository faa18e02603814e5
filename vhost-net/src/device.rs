//! The network device behind a vhost-user session (virtio 1.2 section 5.1): a worker per queue pair, one for the
//! control queue. Called by [`strata_virtio::session`] on the control thread.
//!
//! ```text
//!   queue 0 receive  \  pair 0: one thread     queue 2N: control, a thread of its own
//!   queue 1 transmit /
//!   queue 2 receive  \  pair 1: one thread
//!   ...
//! ```
//!
//! A pair's two queues are started and stopped one by one, so its thread is stopped, given or relieved of a
//! queue, and started again. Its way into the kernel ([`crate::batch`]) is made once, before the sandbox.

use std::io;
use std::sync::Arc;

use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::poller::PollLimit;
use strata_virtio::session::ConfigChange;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Options, Worker};

use crate::batch::Batch;
use crate::card::Card;
use crate::config::CONFIG_SIZE;
use crate::control::Control;
use crate::features;
use crate::mac::Mac;
use crate::pair::Pair;
use crate::port::Settings;
use crate::rx::Rx;
use crate::stats::PairStats;
use crate::tap::Tap;
use crate::tx::Tx;

/// Virtio device ID of a network card.
const NETWORK: u16 = 1;
/// The most descriptors of a receive or transmit queue.
pub const QUEUE_SIZE: u16 = 1024;
/// The most descriptors of the control queue.
pub const CONTROL_SIZE: u16 = 64;

/// How queues are served.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// How long a pair looks before its thread sleeps.
    pub poll: PollLimit,
    /// The processor of each pair's thread, in order; a pair without one roams.
    pub cpus: Vec<usize>,
    /// One system call per frame even where io_uring could be used.
    pub plain: bool,
}

/// The device.
#[derive(Debug)]
pub struct Net {
    identity: Identity,
    card: Arc<Card>,
    features: u64,
    tuning: Tuning,
    pairs: Vec<Slot>,
    stats: Vec<PairStats>,
    control: Option<Worker<Control>>,
}

/// A pair and where it is.
#[derive(Debug)]
enum Slot {
    Idle(Pair),
    Running(Worker<Pair>),
    /// Its thread panicked, or could not be started. It stays stopped.
    Lost,
}

/// What a started queue is.
enum Place {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Net {
    /// A card on `tap`. Makes the rings, so it comes before the sandbox closes.
    ///
    /// # Errors
    /// The process has no descriptors left.
    pub fn new(
        tap: Tap,
        mac: Mac,
        settings: Settings,
        tuning: Tuning,
        change: ConfigChange,
    ) -> io::Result<Self> {
        let count = tap.pairs();
        let mut pairs = Vec::with_capacity(usize::from(count));
        for queue in (0..usize::from(count)).filter_map(|pair| tap.queue(pair)) {
            let batch = if tuning.plain { Batch::plain(queue)? } else { Batch::new(queue)? };
            pairs.push(Slot::Idle(Pair::new(batch)));
        }
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(count)];
        queue_sizes.push(CONTROL_SIZE);
        let identity = Identity {
            device_id: NETWORK,
            features: features::offered(count, tap.uso(), tap.mtu().is_some()),
            queue_sizes,
            config_size: CONFIG_SIZE as u32,
        };
        let stats = (0..count).map(|_| PairStats::default()).collect();
        let card = Arc::new(Card::new(Arc::new(tap), mac, settings, change));
        Ok(Self { identity, card, features: 0, tuning, pairs, stats, control: None })
    }

    /// The card, for whoever plugs its cable.
    #[must_use]
    pub fn card(&self) -> &Arc<Card> {
        &self.card
    }

    /// The pairs' counters.
    #[must_use]
    pub fn stats(&self) -> &[PairStats] {
        &self.stats
    }

    fn place(&self, index: u16) -> Option<Place> {
        let (pair, count) = (usize::from(index / 2), self.pairs.len());
        match index % 2 {
            // Section 5.1.2: the control queue follows the last of the queues the device has.
            0 if pair == count => Some(Place::Control),
            0 if pair < count => Some(Place::Receive(pair)),
            1 if pair < count => Some(Place::Transmit(pair)),
            _ => None,
        }
    }

    /// Stops a pair's thread, lets `change` at it, and starts it again if it has a queue.
    fn with_pair<T>(&mut self, at: usize, change: impl FnOnce(&mut Pair) -> T) -> io::Result<T> {
        let gone = || io::Error::other("the pair's thread has ended");
        let slot = self.pairs.get_mut(at).ok_or_else(gone)?;
        let mut pair = match std::mem::replace(slot, Slot::Lost) {
            Slot::Idle(pair) => pair,
            Slot::Running(worker) => worker.stop().ok_or_else(gone)?,
            Slot::Lost => return Err(gone()),
        };
        let result = change(&mut pair);
        *slot = if pair.started() {
            let options = Options {
                name: format!("pair{at}"),
                cpu: self.tuning.cpus.get(at).copied(),
                poll: self.tuning.poll,
                stats: self.stats.get(at).map(|stats| Arc::clone(&stats.thread)).unwrap_or_default(),
            };
            Slot::Running(Worker::spawn(pair, options)?)
        } else {
            Slot::Idle(pair)
        };
        Ok(result)
    }
}

impl Device for Net {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        out.fill(0);
        let space = self.card.space().bytes();
        let from = space.get(offset as usize..).unwrap_or_default();
        for (to, from) in out.iter_mut().zip(from) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Section 5.1.4.2: under VERSION_1 the address is read-only here.
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        self.card.set_features(features);
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let index = setup.index;
        let refused = |source| StartError::Resource { index, what: "starting its thread", source };
        let place = self.place(index).ok_or_else(|| refused(io::ErrorKind::InvalidInput.into()))?;
        let features = setup.features;
        let vring = Vring::new(setup)?;
        match place {
            Place::Receive(pair) => {
                let PairStats { rx, rx_ring, .. } = self.stats.get(pair).cloned().unwrap_or_default();
                let rx =
                    Rx::new(vring.counting_in(rx_ring), features, self.card.vlan(), self.card.port(), rx);
                self.with_pair(pair, |pair| pair.rx = Some(Box::new(rx))).map_err(refused)?;
                self.card.set_started(pair, true);
            }
            Place::Transmit(pair) => {
                let PairStats { tx, tx_ring, .. } = self.stats.get(pair).cloned().unwrap_or_default();
                let tx = Tx::new(vring.counting_in(tx_ring), features, self.card.port(), tx);
                self.with_pair(pair, |pair| pair.tx = Some(Box::new(tx))).map_err(refused)?;
            }
            Place::Control => {
                let resumes = vring.queue().base() != 0;
                let control = Control::new(vring, Arc::clone(&self.card));
                let options = Options {
                    name: "control".to_owned(),
                    cpu: None,
                    poll: PollLimit(std::time::Duration::ZERO),
                    ..Options::default()
                };
                self.control = Some(Worker::spawn(control, options).map_err(refused)?);
                self.card.set_control(true, resumes);
            }
        }
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        match self.place(index)? {
            Place::Receive(at) => {
                self.card.set_started(at, false);
                let mut rx = self.with_pair(at, |pair| pair.rx.take()).ok()??;
                rx.discard();
                Some(rx.vring().state())
            }
            Place::Transmit(at) => {
                let tx = self.with_pair(at, |pair| pair.tx.take()).ok()??;
                Some(tx.vring().state())
            }
            Place::Control => {
                self.card.set_control(false, false);
                let control = self.control.take()?.stop()?;
                Some(control.vring().state())
            }
        }
    }

    fn reset(&mut self) {
        for index in 0..self.identity.queue_sizes.len() as u16 {
            self.stop_queue(index);
        }
        self.features = 0;
        self.card.reset();
    }
}
