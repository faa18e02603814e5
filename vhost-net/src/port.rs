//! What a NIC's queues obey and report to beside the driver: the link, rate limits, the guard against spoofing, who
//! captures. Made by [`crate::card`], which its control side changes; each queue has a copy, and none of it is a lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::capture::Captures;
use crate::guard::Guard;
use crate::limit::{Limit, Rate};

/// The settings a NIC begins with.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// What the guest may claim to be.
    pub guard: Guard,
    /// From the guest.
    pub tx: Rate,
    /// To the guest.
    pub rx: Rate,
}

/// One NIC's port, as its queues see it.
#[derive(Debug, Clone)]
pub struct Port {
    link: Arc<AtomicBool>,
    /// What the guest may claim to be.
    pub guard: Arc<Guard>,
    /// From the guest.
    pub tx: Arc<Limit>,
    /// To the guest.
    pub rx: Arc<Limit>,
    /// Who sees its frames.
    pub captures: Arc<Captures>,
}

impl Port {
    /// A port with the link up.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            link: Arc::new(AtomicBool::new(true)),
            guard: Arc::new(settings.guard),
            tx: Arc::new(Limit::new(settings.tx)),
            rx: Arc::new(Limit::new(settings.rx)),
            captures: Arc::default(),
        }
    }

    /// Whether frames pass.
    #[inline]
    #[must_use]
    pub fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }

    /// Plugs the cable in or out; how it was.
    pub fn set_link(&self, up: bool) -> bool {
        self.link.swap(up, Ordering::Relaxed)
    }
}
