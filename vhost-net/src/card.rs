//! The network card's state beside its rings: address, link, filters, which pairs are in use. Owned jointly by
//! [`crate::device`], which starts and resets it, and the control queue's thread, which carries out the driver's
//! commands; the queue threads look at the link and the VLAN filter, both lock-free.
//!
//! The kernel does the filtering by destination and the steering between queues: both are told to the tap, so
//! that no frame costs anything here for it. A filter is set only after the driver's first word about it, and
//! what the kernel cannot express is passed rather than lost.

mod wants;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use strata_virtio::limit::Throttle;
use strata_virtio::session::ConfigChange;

use crate::config::Space;
use crate::control::{Command, RxMode};
use crate::features as feature;
use crate::mac::Mac;
use crate::port::{Port, Settings};
use crate::tap::Tap;
use crate::vlan::VlanFilter;
use wants::Wants;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Of a feature that was not negotiated.
    #[error("the command needs feature {0:#x}, which was not negotiated")]
    NotNegotiated(u64),
    /// An address it may not send from.
    #[error("the address {0}: the host holds the card to its own")]
    Guarded(Mac),
    /// A number of pairs the card has not.
    #[error("{wanted} queue pairs; 1 to {max} are allowed")]
    Pairs {
        /// What was asked for.
        wanted: u16,
        /// What there is.
        max: u16,
    },
    /// The tap's answer.
    #[error("the tap cannot be {what}")]
    Tap {
        /// What was being done to it.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// The state that commands change.
#[derive(Debug)]
struct State {
    mac: Mac,
    features: u64,
    wants: Wants,
    /// Pairs the driver uses; counts while the control queue runs.
    pairs: u16,
    control: bool,
    /// Pairs whose receive queue is started.
    started: Vec<bool>,
    announce: bool,
}

/// One virtual network card.
#[derive(Debug)]
pub struct Card {
    tap: Arc<Tap>,
    /// The address it starts with.
    mac: Mac,
    port: Port,
    vlan: Arc<VlanFilter>,
    change: ConfigChange,
    state: Mutex<State>,
}

impl Card {
    /// A card on `tap` with the link up; `change` tells the frontend of changes.
    #[must_use]
    pub fn new(tap: Arc<Tap>, mac: Mac, settings: Settings, change: ConfigChange) -> Self {
        let started = vec![false; usize::from(tap.pairs())];
        let card = Self {
            tap,
            mac,
            port: Port::new(settings),
            vlan: Arc::default(),
            change,
            state: Mutex::new(State {
                mac,
                features: 0,
                wants: Wants::default(),
                pairs: 1,
                control: false,
                started,
                announce: false,
            }),
        };
        // One that was taken out under a process before this one is in again, as the link says. A macvtap has no such
        // switch.
        let _ = card.tap.set_carrier(true);
        card.reset();
        card
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing below panics; and if it did, every field is still a valid value.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tap.
    #[must_use]
    pub fn tap(&self) -> &Arc<Tap> {
        &self.tap
    }

    /// What its queues obey.
    #[must_use]
    pub fn port(&self) -> &Port {
        &self.port
    }

    /// The VLAN filter; for the queue threads.
    #[must_use]
    pub fn vlan(&self) -> Arc<VlanFilter> {
        Arc::clone(&self.vlan)
    }

    /// The configuration space.
    #[must_use]
    pub fn space(&self) -> Space {
        let state = self.state();
        Space {
            mac: state.mac,
            link: self.port.link(),
            announce: state.announce,
            pairs: self.tap.pairs(),
            mtu: self.tap.mtu().unwrap_or(0),
        }
    }

    /// Plugs the cable in or out: the guest sees it at once, and the tap has no carrier while it is out.
    pub fn set_link(&self, up: bool) {
        if self.port.set_link(up) == up {
            return;
        }
        if let Err(error) = self.tap.set_carrier(up) {
            tracing::warn!(%error, up, "the tap's carrier stays as it is");
        }
        {
            let mut state = self.state();
            // Switches on the way have to learn where the card is now.
            state.announce = up && state.features & feature::GUEST_ANNOUNCE != 0;
        }
        self.change.notify();
    }

    /// Asks the driver to announce itself to the switches on the way, as after a move of its cable. False if it
    /// cannot be asked.
    pub fn announce(&self) -> bool {
        {
            let mut state = self.state();
            if state.features & feature::GUEST_ANNOUNCE == 0 || !self.port.link() {
                return false;
            }
            state.announce = true;
        }
        self.change.notify()
    }

    /// Queue pairs that are in use.
    #[must_use]
    pub fn active_pairs(&self) -> usize {
        let state = self.state();
        let used = if state.control { usize::from(state.pairs) } else { usize::MAX };
        state.started.iter().take(used).filter(|started| **started).count()
    }

    /// The features the driver accepted; 0 while there is none.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.state().features
    }

    /// The driver is gone: everything as it was in the beginning. The queues are stopped.
    pub fn reset(&self) {
        let mut state = self.state();
        state.mac = self.mac;
        state.features = 0;
        state.wants = Wants::default();
        state.pairs = 1;
        state.control = false;
        state.announce = false;
        state.started.fill(false);
        self.vlan.clear();
        tell("set to no offloads", self.tap.set_offload(0));
        tell("opened to all addresses", self.tap.set_filter(None));
        self.steer(&state);
    }

    /// The driver accepted `features`: from here on the tap gives what it takes.
    pub fn set_features(&self, features: u64) {
        let mut state = self.state();
        state.features = features;
        tell("set to the driver's offloads", self.tap.set_offload(feature::tap_offloads(features)));
    }

    /// A receive queue was started or stopped.
    pub fn set_started(&self, pair: usize, started: bool) {
        let mut state = self.state();
        if let Some(slot) = state.started.get_mut(pair) {
            *slot = started;
        }
        self.steer(&state);
    }

    /// The control queue was started or stopped. A driver begins with one pair (section 5.1.6.5.5); one that
    /// `resumes`, with a backend before this one, has said how many it uses, and it is not known here: all it
    /// has started, then.
    pub fn set_control(&self, started: bool, resumes: bool) {
        let mut state = self.state();
        state.control = started;
        if started {
            state.pairs = if resumes { self.tap.pairs() } else { 1 };
        }
        self.steer(&state);
    }

    /// Tells the kernel which of the tap's queues get frames. The first stays attached for the tap's carrier.
    fn steer(&self, state: &State) {
        for (pair, &started) in state.started.iter().enumerate().skip(1) {
            // A frontend that keeps the control queue to itself starts and stops rings instead.
            let used = !state.control || pair < usize::from(state.pairs);
            tell("told which of its queues are used", self.tap.set_attached(pair, started && used));
        }
    }

    /// Does what the driver asks for.
    ///
    /// # Errors
    /// It may not, or the tap cannot.
    pub fn carry_out(&self, command: &Command) -> Result<(), CommandError> {
        let mut state = self.state();
        let needs = match command {
            Command::Receive(RxMode::Promiscuous | RxMode::AllMulticast, _) | Command::Addresses { .. } => {
                feature::CTRL_RX
            }
            Command::Receive(..) => feature::CTRL_RX_EXTRA,
            Command::Address(_) => feature::CTRL_MAC_ADDR,
            Command::Vlan(..) => feature::CTRL_VLAN,
            Command::Announced => feature::GUEST_ANNOUNCE,
            Command::Pairs(_) => feature::MQ,
            Command::Offloads(_) => feature::CTRL_GUEST_OFFLOADS,
        };
        if state.features & needs == 0 {
            return Err(CommandError::NotNegotiated(needs));
        }
        match command {
            Command::Receive(mode, on) => {
                state.wants.set(*mode, *on);
                self.filter(&state)
            }
            Command::Addresses { unicast, multicast } => {
                state.wants.unicast.clone_from(unicast);
                state.wants.multicast.clone_from(multicast);
                self.filter(&state)
            }
            Command::Address(mac) => {
                if self.port.guard.mac.is_some_and(|own| own != *mac) {
                    return Err(CommandError::Guarded(*mac));
                }
                state.mac = *mac;
                self.filter(&state)
            }
            Command::Vlan(id, wanted) => {
                self.vlan.set(*id, *wanted);
                Ok(())
            }
            Command::Announced => {
                state.announce = false;
                Ok(())
            }
            Command::Pairs(wanted) => {
                let max = self.tap.pairs();
                if !(1..=max).contains(wanted) {
                    return Err(CommandError::Pairs { wanted: *wanted, max });
                }
                state.pairs = *wanted;
                self.steer(&state);
                Ok(())
            }
            Command::Offloads(wanted) => {
                let negotiated = state.features & feature::GUEST_OFFLOADS;
                if wanted & !negotiated != 0 {
                    return Err(CommandError::NotNegotiated(wanted & !negotiated));
                }
                let source = self.tap.set_offload(feature::tap_offloads(*wanted));
                source.map_err(|source| CommandError::Tap { what: "set to other offloads", source })
            }
        }
    }

    fn filter(&self, state: &State) -> Result<(), CommandError> {
        let filter = state.wants.filter(state.mac);
        self.tap
            .set_filter(filter.as_ref())
            .map_err(|source| CommandError::Tap { what: "given a filter", source })
    }
}

/// A setting without which frames still flow.
fn tell(what: &'static str, result: io::Result<()>) {
    // A frontend that comes and goes, or a driver that resets its card, makes such lines.
    static REFUSED: Throttle = Throttle::new(5, 60);
    if let Err(error) = result
        && REFUSED.allow()
    {
        tracing::warn!(%error, "the tap cannot be {what}");
    }
}
