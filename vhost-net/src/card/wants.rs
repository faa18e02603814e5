//! Which frames a driver wants to receive, by destination, and the tap's filter for that.

use crate::control::RxMode;
use crate::mac::Mac;
use crate::tap::Filter;

/// Receive modes and addresses, as the driver last set them.
#[derive(Debug, Clone, Default)]
pub(super) struct Wants {
    promiscuous: bool,
    all_multicast: bool,
    all_unicast: bool,
    no_multicast: bool,
    no_unicast: bool,
    no_broadcast: bool,
    /// Besides the card's own.
    pub(super) unicast: Vec<Mac>,
    /// Groups.
    pub(super) multicast: Vec<Mac>,
}

impl Wants {
    /// Switches a mode.
    pub(super) fn set(&mut self, mode: RxMode, on: bool) {
        *match mode {
            RxMode::Promiscuous => &mut self.promiscuous,
            RxMode::AllMulticast => &mut self.all_multicast,
            RxMode::AllUnicast => &mut self.all_unicast,
            RxMode::NoMulticast => &mut self.no_multicast,
            RxMode::NoUnicast => &mut self.no_unicast,
            RxMode::NoBroadcast => &mut self.no_broadcast,
        } = on;
    }

    /// The tap's filter for a card with the address `own`; `None` lets everything through.
    pub(super) fn filter(&self, own: Mac) -> Option<Filter> {
        if self.promiscuous || self.all_unicast {
            return None;
        }
        let mut addresses = Vec::new();
        if !self.no_unicast {
            addresses.push(own);
            addresses.extend(&self.unicast);
        }
        if !self.no_broadcast {
            addresses.push(Mac::BROADCAST);
        }
        if !self.no_multicast {
            addresses.extend(&self.multicast);
        }
        if addresses.is_empty() {
            // A filter without addresses would be none; this one names a card that cannot be.
            addresses.push(Mac::new([0; 6]));
        }
        Some(Filter { all_multicast: self.all_multicast && !self.no_multicast, addresses })
    }
}

#[cfg(test)]
#[path = "wants_test.rs"]
mod wants_test;
