#![allow(unsafe_code)] // real-time signals, which the safe wrappers do not know
//! What comes as a signal, as events. Blocked everywhere; one thread waits for them.
//!
//! SIGTERM, SIGINT and SIGHUP end the machine. machinectl speaks in signals too (systemd-nspawn(1)): SIGRTMIN+4 presses
//! the power button, and under a service manager SIGINT, which it has no other use for, is a reboot.

use std::io;
use std::mem::MaybeUninit;
use std::sync::mpsc::Sender;
use std::thread;

use nix::sys::signal::Signal;
use strata_sandbox::Namespaces;

use super::{Command, Event};

const ENDS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

/// The signal by which machinectl asks for power-off.
fn power_off() -> libc::c_int {
    libc::SIGRTMIN() + 4
}

fn set(more: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set; the others change it, and refuse numbers that are no signals.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in ENDS.map(|signal| signal as libc::c_int).iter().chain(&[power_off()]).chain(more) {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        set.assume_init()
    }
}

/// Holds them back; before any thread is started, so that all have it so.
///
/// # Errors
/// The system refused.
pub(super) fn block() -> io::Result<()> {
    // A console or backend that goes away is an error to be handled, not a reason to die.
    let all = set(&[libc::SIGPIPE]);
    // SAFETY: both point to what they should, and the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Turns each into an event. `manager`: who made the namespaces tells whether a service manager runs this.
///
/// # Errors
/// There is no thread to be had.
pub(super) fn watch(events: Sender<Event>, manager: Namespaces) -> io::Result<()> {
    let wait = move || {
        let waited = set(&[]);
        loop {
            let mut signal = 0;
            // SAFETY: both point to what they should for as long as the call takes.
            if unsafe { libc::sigwait(&waited, &mut signal) } != 0 {
                continue;
            }
            let event = match signal {
                number if number == power_off() => Event::Asked(Command::PowerOff),
                libc::SIGINT if manager == Namespaces::Given => Event::Asked(Command::Restart),
                number => match Signal::try_from(number) {
                    Ok(signal) => Event::Signal(signal),
                    Err(_) => continue,
                },
            };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}
