//! The console's two queues, each on a thread of its own while it runs.
//!
//! Output is taken in batches: one write to the hub and one call for whatever the driver has posted. Input is
//! put into the driver's buffers as it comes; kicks are wanted only while input waits for a buffer.

use std::sync::Arc;

use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Progress, Service, Source};

use super::hub::Hub;

/// Bytes handed to the hub at once.
const BATCH: usize = 64 << 10;

/// Transmit: from the guest to the hub.
pub(super) struct Transmit {
    vring: Vring,
    hub: Arc<Hub>,
    chain: Chain,
    batch: Vec<u8>,
}

impl Transmit {
    pub(super) fn new(vring: Vring, hub: Arc<Hub>) -> Self {
        Self { vring, hub, chain: Chain::new(), batch: Vec::new() }
    }

    /// Writes the batch out, then answers its requests: what is answered has been handed over.
    fn deliver(&mut self) {
        if !self.batch.is_empty() {
            self.hub.write(&self.batch);
            self.batch.clear();
        }
        self.vring.flush();
    }

    pub(super) fn vring(&self) -> &Vring {
        &self.vring
    }
}

impl Service for Transmit {
    fn process(&mut self) -> Progress {
        let mut worked = Progress::Idle;
        for _ in 0..self.vring.queue().size() {
            if !self.vring.next(&mut self.chain) {
                break;
            }
            worked = Progress::Worked;
            // A request may be as long as guest memory: it goes out in pieces.
            let (mut at, len) = (0, self.chain.readable_len());
            while at < len {
                let start = self.batch.len();
                let piece = (len - at).min(BATCH - start);
                self.batch.resize(start + piece, 0);
                let copied = self.chain.copy_out(at, self.batch.get_mut(start..).unwrap_or_default()).is_ok();
                at = if copied { at + piece } else { len };
                if self.batch.len() >= BATCH {
                    self.hub.write(&self.batch);
                    self.batch.clear();
                }
            }
            self.vring.push(self.chain.head(), 0);
        }
        self.deliver();
        worked
    }

    fn has_work(&mut self) -> bool {
        self.vring.queue().has_work()
    }

    fn suppress_kicks(&mut self) {
        self.vring.queue_mut().suppress_kicks();
    }

    fn prepare_sleep(&mut self) -> bool {
        self.vring.queue_mut().arm_kicks()
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::kick(&self.vring)]
    }

    fn drain(&mut self) {
        self.deliver();
    }
}

/// Receive: from the hub to the guest.
pub(super) struct Receive {
    vring: Vring,
    hub: Arc<Hub>,
    chain: Chain,
}

impl Receive {
    pub(super) fn new(vring: Vring, hub: Arc<Hub>) -> Self {
        Self { vring, hub, chain: Chain::new() }
    }

    pub(super) fn vring(&self) -> &Vring {
        &self.vring
    }
}

impl Service for Receive {
    fn process(&mut self) -> Progress {
        let mut worked = Progress::Idle;
        while self.hub.has_input() && self.vring.next(&mut self.chain) {
            worked = Progress::Worked;
            let mut bytes = [0; 4096];
            let room = self.chain.writable_len().min(bytes.len());
            let count = self.hub.take(bytes.get_mut(..room).unwrap_or_default());
            let taken = bytes.get(..count).unwrap_or_default();
            let written = if self.chain.copy_in(0, taken).is_ok() { count } else { 0 };
            self.vring.push(self.chain.head(), written as u32);
        }
        self.vring.flush();
        worked
    }

    fn has_work(&mut self) -> bool {
        self.hub.has_input() && self.vring.queue().has_work()
    }

    fn suppress_kicks(&mut self) {
        self.vring.queue_mut().suppress_kicks();
    }

    fn prepare_sleep(&mut self) -> bool {
        // Without input a new buffer is no news.
        self.hub.has_input() && self.vring.queue_mut().arm_kicks()
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::kick(&self.vring), Source::readable(self.hub.input_ready())]
    }

    fn drain(&mut self) {
        self.vring.flush();
    }
}
