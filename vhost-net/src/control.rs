//! The control queue (virtio 1.2 section 5.1.6.5): what a driver asks of its card beside sending and receiving.
//! Served by a thread of its own, at leisure; started and stopped by [`crate::device`], answered by
//! [`crate::card`].
//!
//! Refuses, with VIRTIO_NET_ERR, commands that are unknown, malformed, or of a feature that was not negotiated.
//! A command is copied out of guest memory once, up to a limit, before it is looked at.

mod command;

use std::sync::Arc;

use strata_virtio::chain::Chain;
use strata_virtio::limit::Throttle;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Progress, Service, Source};
use virtio_bindings::virtio_net as net;

pub use command::{Command, Malformed, RxMode};

use crate::card::Card;
use crate::pair::answer_resubmitted;

/// The longest command looked at: address tables of some ten thousand entries.
const LONGEST: usize = 64 * 1024;
/// Commands before the thread looks at its stop flag.
const BUDGET: usize = 64;

/// The control queue while it is started.
#[derive(Debug)]
pub struct Control {
    vring: Vring,
    card: Arc<Card>,
    chain: Chain,
    command: Vec<u8>,
}

impl Control {
    /// Serves `vring`.
    #[must_use]
    pub fn new(vring: Vring, card: Arc<Card>) -> Self {
        Self { vring, card, chain: Chain::new(), command: Vec::new() }
    }

    /// The queue.
    #[must_use]
    pub fn vring(&self) -> &Vring {
        &self.vring
    }

    /// Carries out the command in `chain` and writes the answer; bytes written.
    fn serve(&mut self) -> u32 {
        let len = self.chain.readable_len();
        let done = if len > LONGEST {
            Err(Malformed::Long(len))
        } else {
            self.command.resize(len, 0);
            match self.chain.copy_out(0, &mut self.command) {
                Ok(()) => Command::parse(&self.command),
                Err(_) => Err(Malformed::Short),
            }
        };
        let ack = match done {
            Ok(command) => match self.card.carry_out(&command) {
                Ok(()) => net::VIRTIO_NET_OK,
                Err(why) => refused(&why),
            },
            Err(why) => refused(&why),
        };
        // The answer is the first writable byte; a driver that has no room for it does not want to know.
        u32::from(self.chain.copy_in(0, &[ack as u8]).is_ok())
    }
}

#[cold]
fn refused(why: &dyn std::error::Error) -> u32 {
    static REFUSED: Throttle = Throttle::new(5, 60);
    if REFUSED.allow() {
        tracing::warn!(%why, "a control command was refused");
    }
    net::VIRTIO_NET_ERR
}

impl Service for Control {
    fn process(&mut self) -> Progress {
        for _ in 0..BUDGET {
            if !self.vring.next(&mut self.chain) {
                self.vring.flush();
                return Progress::Idle;
            }
            let written = self.serve();
            self.vring.push(self.chain.head(), written);
            // The driver waits for each answer.
            self.vring.flush();
        }
        Progress::Worked
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
        answer_resubmitted(&mut self.vring);
    }
}
