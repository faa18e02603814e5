//! The block device behind a vhost-user session: features, configuration space, one worker per queue.
//!
//! Called by [`strata_virtio::session`] on the control thread. Queues share the [`Disk`] and nothing else; all
//! that happens to requests is in [`crate::server`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::poller::PollLimit;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Options, Worker};

use crate::config;
use crate::disk::Disk;
use crate::server::Server;

/// Virtio device ID of a block device (virtio 1.2 section 5.2).
const BLOCK: u16 = 2;
/// The most descriptors of a queue.
pub const QUEUE_SIZE: u16 = 1024;

/// How queues are served.
#[derive(Debug, Clone, Default)]
pub struct Tuning {
    /// How long a queue is polled before its thread sleeps.
    pub poll: PollLimit,
    /// How long a call may be put off after the first answer it is for ([`Vring::calling_within`]).
    pub coalesce: Duration,
    /// The processor of each queue's thread, in order; a queue without one roams.
    pub cpus: Vec<usize>,
}

/// The device.
#[derive(Debug)]
pub struct Block {
    identity: Identity,
    disk: Arc<Disk>,
    space: [u8; config::CONFIG_SIZE],
    features: u64,
    tuning: Tuning,
    workers: Vec<Option<Worker<Server>>>,
}

impl Block {
    /// A device with `queues` queues for a disk.
    #[must_use]
    pub fn new(disk: Arc<Disk>, queues: u16, tuning: Tuning) -> Self {
        let identity = Identity {
            device_id: BLOCK,
            features: config::features(&disk, queues),
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            config_size: config::CONFIG_SIZE as u32,
        };
        let space = config::space(&disk, queues);
        let workers = (0..queues).map(|_| None).collect();
        let mut device = Self { identity, disk, space, features: 0, tuning, workers };
        device.forget_driver();
        device
    }

    fn writeback(&mut self) -> Option<&mut u8> {
        self.space.get_mut(config::WRITEBACK)
    }

    /// The write cache is on, and the driver has accepted nothing.
    fn forget_driver(&mut self) {
        self.features = 0;
        if let Some(byte) = self.writeback() {
            *byte = 1;
        }
        self.apply_cache();
    }

    fn apply_cache(&mut self) {
        let writeback = self.writeback().copied().unwrap_or(1);
        let through = config::write_through(self.features, writeback);
        self.disk.write_through.store(through, Ordering::Relaxed);
    }
}

impl Device for Block {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        out.fill(0);
        // It may have grown.
        if let Some(field) = self.space.first_chunk_mut() {
            *field = self.disk.limits().capacity.to_le_bytes();
        }
        let from = self.space.get(offset as usize..).unwrap_or_default();
        for (byte, value) in out.iter_mut().zip(from) {
            *byte = *value;
        }
    }

    /// Only the write cache can be switched, and only by a driver that accepted CONFIG_WCE.
    fn write_config(&mut self, offset: u32, data: &[u8]) {
        let index = config::WRITEBACK.checked_sub(offset as usize);
        let Some(value) = index.and_then(|index| data.get(index)) else { return };
        let value = u8::from(*value != 0);
        if !config::cache_can_be_switched(self.features) {
            return;
        }
        if let Some(byte) = self.writeback() {
            *byte = value;
        }
        self.apply_cache();
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        self.apply_cache();
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let index = setup.index;
        let refused = |source| StartError::Resource { index, what: "starting its thread", source };
        let place = self
            .workers
            .get_mut(usize::from(index))
            .ok_or_else(|| refused(std::io::Error::from(std::io::ErrorKind::InvalidInput)))?;
        // The one before, if any, gives its ring back first.
        drop(place.take());
        let tally = self.disk.tallies.get(usize::from(index)).cloned().unwrap_or_default();
        let stats = Arc::clone(&tally.thread);
        let vring = Vring::new(setup)?.counting_in(Arc::clone(&tally.ring));
        let vring = vring.calling_within(self.tuning.coalesce);
        let server = Server::new(Arc::clone(&self.disk), vring, tally).map_err(refused)?;
        let options = Options {
            name: format!("queue{index}"),
            cpu: self.tuning.cpus.get(usize::from(index)).copied(),
            poll: self.tuning.poll,
            stats,
        };
        *place = Some(Worker::spawn(server, options).map_err(refused)?);
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let worker = self.workers.get_mut(usize::from(index))?.take()?;
        worker.stop().map(|server| server.vring().state())
    }

    fn reset(&mut self) {
        // Dropping a worker stops it, as stop_queue does.
        self.workers.iter_mut().for_each(|worker| drop(worker.take()));
        self.forget_driver();
    }
}
