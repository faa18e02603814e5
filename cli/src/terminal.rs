//! The terminal in raw mode, and certainly out of it again: when dropped, and from a panic before its message.

use std::io::{IsTerminal, stdin};
use std::os::fd::AsFd;
use std::sync::{Mutex, Once, PoisonError};

use nix::sys::termios::{OutputFlags, SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};

/// How the terminal was, while it is not.
static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

/// Raw mode for as long as this lives.
#[derive(Debug)]
pub(crate) struct Raw(());

impl Raw {
    /// Puts the terminal on standard input into raw mode. `None` when there is none, or when it is somebody
    /// else's: a job in the background would be stopped for touching it.
    pub(crate) fn enter() -> Option<Self> {
        if !stdin().is_terminal() || !foreground() {
            return None;
        }
        let saved = tcgetattr(stdin().as_fd()).ok()?;
        let mut raw = saved.clone();
        cfmakeraw(&mut raw);
        // Our own messages still need their carriage returns; the guest's come with one already.
        raw.output_flags |= OutputFlags::OPOST | OutputFlags::ONLCR;
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let then = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore();
                then(panic);
            }));
        });
        *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        if tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &raw).is_err() {
            restore();
            return None;
        }
        Some(Self(()))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

fn restore() {
    if let Some(saved) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(stdin().as_fd(), SetArg::TCSANOW, &saved);
    }
}

/// Whether this process may read the terminal on standard input without being stopped for it.
pub(crate) fn foreground() -> bool {
    nix::unistd::tcgetpgrp(stdin().as_fd()).is_ok_and(|group| group == nix::unistd::getpgrp())
}
