//! Signals that end the machine, as events. Blocked everywhere; one thread waits for them.

use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use super::Event;

fn set() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect()
}

/// Holds them back; before any thread is started, so that all have it so.
///
/// # Errors
/// The system refused.
pub(super) fn block() -> io::Result<()> {
    let mut all = set();
    // A console or backend that goes away is an error to be handled, not a reason to die.
    all.add(Signal::SIGPIPE);
    all.thread_block().map_err(Into::into)
}

/// Turns each into an event.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn watch(events: Sender<Event>) -> io::Result<()> {
    let wait = move || {
        while let Ok(signal) = set().wait() {
            if events.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}
