//! MSI-X vectors of a function, and the eventfds that fire them (PCI 3.0 section 6.8.2).
//!
//! Owned by [`super::function::Function`]. A vector that may fire has a route, and the eventfds ("lines") of
//! the queues that use it are attached to it: then a device's signal becomes an interrupt inside KVM. A vector
//! that is masked has its lines detached, so signals stay in the eventfds: that counter *is* the pending bit,
//! and attaching again at unmask sends what is pending. Nothing has to watch masked vectors.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use strata_virtio::limit::Throttle;
use vmm_sys_util::eventfd::EventFd;

use super::bytes;
use super::layout::ENTRY;
use super::wiring::{Message, Wiring, WiringError};

/// "No vector" in a vector register (virtio 1.2 section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;
const CONTROL_MASK: u32 = 1;
const ADDRESS: usize = 0;
const DATA: usize = 8;
const CONTROL: usize = 12;

static UNWIRED: Throttle = Throttle::new(5, 60);

/// An eventfd and the vector it is to fire.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) event: EventFd,
    pub(super) vector: u16,
    attached: Option<u32>,
}

impl Line {
    pub(super) fn new(vector: u16) -> std::io::Result<Self> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Self { event, vector, attached: None })
    }

    /// Whether a signal waits in the eventfd. Only so while nothing is attached.
    #[allow(unsafe_code)] // poll wants a borrowed descriptor
    fn is_pending(&self) -> bool {
        // SAFETY: the eventfd is open for as long as self is.
        let fd = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        self.attached.is_none() && poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
    }

    /// Takes the signal that waits in the eventfd, if there is one and nothing is attached.
    pub(super) fn take(&self) -> bool {
        self.attached.is_none() && self.event.read().is_ok()
    }

    /// Detaches for good; call before dropping.
    pub(super) fn cut(&mut self, wiring: &dyn Wiring) {
        if let Some(gsi) = self.attached.take() {
            wiring.detach(gsi, &self.event);
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Vector {
    message: Message,
    control: u32,
    gsi: Option<u32>,
    /// What the route sends, if there is one.
    routed: Option<Message>,
    /// The message was refused: not tried again until it changes.
    refused: bool,
}

/// The vectors.
#[derive(Debug)]
pub(super) struct Msix {
    vectors: Vec<Vector>,
    enabled: bool,
    masked: bool,
}

impl Msix {
    pub(super) fn new(count: u16) -> Self {
        let vector = Vector {
            message: Message::default(),
            control: CONTROL_MASK,
            gsi: None,
            routed: None,
            refused: false,
        };
        Self { vectors: vec![vector; count.into()], enabled: false, masked: false }
    }

    pub(super) fn len(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// The control register has changed.
    pub(super) fn control(&mut self, enabled: bool, masked: bool) {
        (self.enabled, self.masked) = (enabled, masked);
    }

    /// The table's bytes from entry `index`, or `None` past its end.
    pub(super) fn entry(&self, index: usize) -> Option<[u8; ENTRY]> {
        let vector = self.vectors.get(index)?;
        let mut out = [0; ENTRY];
        bytes::overlay(&mut out, ADDRESS, &vector.message.address.to_le_bytes());
        bytes::overlay(&mut out, DATA, &vector.message.data.to_le_bytes());
        bytes::overlay(&mut out, CONTROL, &vector.control.to_le_bytes());
        Some(out)
    }

    /// A guest's write to the table; may span entries. Returns the entries touched.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) -> std::ops::Range<usize> {
        let last = offset.saturating_add(data.len());
        let touched = offset / ENTRY..last.div_ceil(ENTRY).min(self.vectors.len());
        for index in touched.clone() {
            let Some(mut entry) = self.entry(index) else { break };
            let start = index * ENTRY;
            match offset.checked_sub(start) {
                Some(into) => bytes::overlay(&mut entry, into, data),
                None => bytes::overlay(&mut entry, 0, data.get(start - offset..).unwrap_or_default()),
            }
            if let Some(vector) = self.vectors.get_mut(index) {
                let message =
                    Message { address: bytes::le64(&entry, ADDRESS) & !3, data: bytes::le32(&entry, DATA) };
                vector.refused &= message == vector.message;
                vector.message = message;
                vector.control = bytes::le32(&entry, CONTROL) & CONTROL_MASK;
            }
        }
        touched
    }

    fn fires(&self, vector: &Vector) -> bool {
        self.enabled && !self.masked && vector.control & CONTROL_MASK == 0 && !vector.refused
    }

    /// The number a line of vector `index` is to be attached to now.
    fn target(&self, index: u16) -> Option<u32> {
        let vector = self.vectors.get(usize::from(index))?;
        vector.routed.filter(|_| self.fires(vector))?;
        vector.gsi
    }

    /// Makes routes and attachments what the registers say. One change of the routing table at most, unless a
    /// guest wrote messages that cannot be routed.
    pub(super) fn settle<'a>(&mut self, lines: impl Iterator<Item = &'a mut Line>, wiring: &dyn Wiring) {
        let mut lines: Vec<_> = lines.collect();
        let routes = self.stale_routes(&lines, wiring);
        if !routes.is_empty() && wiring.route(&routes).is_ok() {
            self.routed(&routes);
        } else {
            for route in routes {
                match wiring.route(&[route]) {
                    Ok(()) => self.routed(&[route]),
                    Err(error) => self.refuse(route.0, &error),
                }
            }
        }
        for line in &mut lines {
            let target = self.target(line.vector);
            if line.attached == target {
                continue;
            }
            line.cut(wiring);
            if let Some(gsi) = target {
                match wiring.attach(gsi, &line.event) {
                    Ok(()) => line.attached = Some(gsi),
                    Err(error) => self.refuse(gsi, &error),
                }
            }
        }
    }

    /// The routes that are needed by a line and not set yet.
    fn stale_routes(&mut self, lines: &[&mut Line], wiring: &dyn Wiring) -> Vec<(u32, Message)> {
        let mut routes = Vec::new();
        let mut used: Vec<_> = lines.iter().map(|line| line.vector).filter(|v| *v != NO_VECTOR).collect();
        used.sort_unstable();
        used.dedup();
        for index in used {
            let Some(vector) = self.vectors.get(usize::from(index)).copied() else { continue };
            if !self.fires(&vector) || vector.routed == Some(vector.message) {
                continue;
            }
            let gsi = match vector.gsi.map_or_else(|| wiring.allocate(), Ok) {
                Ok(gsi) => gsi,
                Err(error) => {
                    if UNWIRED.allow() {
                        tracing::warn!(vector = index, %error, "a vector stays silent");
                    }
                    continue;
                }
            };
            if let Some(vector) = self.vectors.get_mut(usize::from(index)) {
                vector.gsi = Some(gsi);
            }
            routes.push((gsi, vector.message));
        }
        routes
    }

    fn routed(&mut self, routes: &[(u32, Message)]) {
        for (gsi, message) in routes {
            for vector in self.vectors.iter_mut().filter(|vector| vector.gsi == Some(*gsi)) {
                vector.routed = Some(*message);
            }
        }
    }

    fn refuse(&mut self, gsi: u32, error: &WiringError) {
        if UNWIRED.allow() {
            tracing::warn!(gsi, error = %error, "the guest's message for a vector cannot be sent");
        }
        for vector in self.vectors.iter_mut().filter(|vector| vector.gsi == Some(gsi)) {
            vector.refused = true;
        }
    }

    /// The pending bits: a vector that does not fire, and has a signalled line.
    pub(super) fn pending<'a>(&self, lines: impl Iterator<Item = &'a Line>) -> [u8; 32] {
        let mut bits = [0; 32];
        for line in lines.filter(|line| line.is_pending()) {
            if line.vector < self.len()
                && let Some(byte) = bits.get_mut(usize::from(line.vector / 8))
            {
                *byte |= 1 << (line.vector % 8);
            }
        }
        bits
    }

    /// Gives all numbers back. Every line must have been cut.
    pub(super) fn release(&mut self, wiring: &dyn Wiring) {
        for vector in &mut self.vectors {
            vector.routed = None;
            if let Some(gsi) = vector.gsi.take() {
                wiring.release(gsi);
            }
        }
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod msix_test;
