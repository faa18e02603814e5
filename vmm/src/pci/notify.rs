//! How a device speaks up by itself: its configuration changed, or it cannot go on.
//!
//! A device gets a [`Notifier`] when it is made; [`super::Pci`] connects it to the function the device is put
//! on, for as long as the function lives. Signals are flags, so a device (or a hostile backend behind one) that
//! notifies a million times costs one pending entry.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a device has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Signals {
    /// Its configuration space reads differently now.
    pub(crate) config: bool,
    /// It needs a reset by the driver (virtio 1.2 section 2.1.2).
    pub(crate) broken: bool,
}

/// A message to the bus's event thread.
#[derive(Debug)]
pub(super) enum Event {
    /// The function of this index has signals to take.
    Signalled(usize),
    /// The bus goes away.
    Stop,
}

#[derive(Debug, Default)]
struct Inner {
    signals: Signals,
    listener: Option<(Sender<Event>, usize)>,
}

/// A device's voice. Clones speak for the same device.
#[derive(Debug, Clone, Default)]
pub struct Notifier(Arc<Mutex<Inner>>);

impl Notifier {
    /// A notifier nobody listens to yet; what it says is kept.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The device's configuration space reads differently from now on.
    pub fn config_changed(&self) {
        self.signal(|signals| signals.config = true);
    }

    /// The device cannot serve its queues any more until the driver resets it.
    pub fn needs_reset(&self) {
        self.signal(|signals| signals.broken = true);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, set: impl FnOnce(&mut Signals)) {
        let mut inner = self.inner();
        let quiet = inner.signals == Signals::default();
        set(&mut inner.signals);
        if quiet && let Some((sender, index)) = &inner.listener {
            // No receiver means that the bus is going away.
            let _ = sender.send(Event::Signalled(*index));
        }
    }

    pub(super) fn connect(&self, sender: Sender<Event>, index: usize) {
        let mut inner = self.inner();
        if inner.signals != Signals::default() {
            let _ = sender.send(Event::Signalled(index));
        }
        inner.listener = Some((sender, index));
    }

    pub(super) fn disconnect(&self) {
        self.inner().listener = None;
    }

    pub(crate) fn take(&self) -> Signals {
        std::mem::take(&mut self.inner().signals)
    }
}
