//! What the control side wants of the switch's thread: messages, left for it and answered by it between two rounds.

use std::io;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};

use strata_virtio::vring::Vring;
use strata_virtio::worker::Nudge;

use super::table::Row;

/// Which of a port's two queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// To the guest.
    Receive,
    /// From the guest.
    Transmit,
}

/// One message.
#[derive(Debug)]
pub enum Order {
    /// A queue is started.
    Start {
        /// Number of its port.
        port: usize,
        /// Which one.
        queue: Queue,
        /// The queue.
        vring: Box<Vring>,
        /// What the driver accepted.
        features: u64,
        /// What went wrong, if anything did.
        done: SyncSender<Option<io::ErrorKind>>,
    },
    /// A queue is to stop; it comes back drained.
    Stop {
        /// Number of its port.
        port: usize,
        /// Which one.
        queue: Queue,
        /// The queue, if it was started.
        done: SyncSender<Option<Box<Vring>>>,
    },
    /// What the table holds.
    Rows {
        /// Its lines.
        done: SyncSender<Vec<Row>>,
    },
    /// What was learnt at a port is to be forgotten.
    Forget {
        /// Its number.
        port: usize,
    },
}

/// The way to the thread.
#[derive(Debug, Clone)]
pub struct Orders {
    orders: Sender<Order>,
    nudge: Nudge,
}

impl Orders {
    /// To the worker that `nudge` wakes and whose fabric receives what `orders` sends.
    #[must_use]
    pub fn new(orders: Sender<Order>, nudge: Nudge) -> Self {
        Self { orders, nudge }
    }

    /// Leaves an order.
    pub fn give(&self, order: Order) {
        // A thread that is gone answers nobody; who waits for it sees that.
        let _ = self.orders.send(order);
        self.nudge.nudge();
    }

    /// Leaves an order and waits for the answer; `None` if the thread is gone.
    pub fn ask<T>(&self, order: impl FnOnce(SyncSender<T>) -> Order) -> Option<T> {
        let (done, answer) = sync_channel(1);
        self.give(order(done));
        answer.recv().ok()
    }
}
