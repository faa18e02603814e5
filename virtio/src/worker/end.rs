#![allow(unsafe_code)] // preadv2(2) of eight bytes
//! The end of a queue's thread, and what may stand in its way.
//!
//! Made with each worker; [`End::wait`] is called by whoever stops it. A thread that signals its peer through a full
//! eventfd hangs in the write: full is 2^64 - 2 (eventfd(2)), which only the peer can have put there, and the flag
//! that would keep the write from waiting is shared with the peer, who may want to block on reading. So while a thread
//! takes long to end, full eventfds are emptied.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How long a thread may take before its peers' eventfds are looked at, again and again.
const PATIENCE: Duration = Duration::from_millis(20);

#[derive(Debug, Default)]
struct Flag {
    ended: Mutex<bool>,
    changed: Condvar,
}

/// Waits for the thread.
#[derive(Debug)]
pub(super) struct End {
    flag: Arc<Flag>,
    /// Copies of what the thread writes to.
    outlets: Vec<OwnedFd>,
}

/// Held by the thread; dropped at its end, however it comes.
#[derive(Debug)]
pub(super) struct Ending(Arc<Flag>);

impl End {
    pub(super) fn new(outlets: &[BorrowedFd<'_>]) -> std::io::Result<(Self, Ending)> {
        let flag = Arc::new(Flag::default());
        let outlets = outlets.iter().map(BorrowedFd::try_clone_to_owned).collect::<Result<_, _>>()?;
        Ok((Self { flag: Arc::clone(&flag), outlets }, Ending(flag)))
    }

    /// Returns once the thread has nothing left to do.
    pub(super) fn wait(&self) {
        let mut ended = self.flag.ended.lock().unwrap_or_else(PoisonError::into_inner);
        while !*ended {
            let waited = self.flag.changed.wait_timeout(ended, PATIENCE);
            let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
            ended = guard;
            if result.timed_out() {
                self.outlets.iter().filter(|outlet| is_full(outlet)).for_each(empty);
            }
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        *self.0.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

fn is_full(outlet: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(outlet.as_fd(), PollFlags::POLLOUT)], PollTimeout::ZERO) == Ok(0)
}

fn empty(outlet: &OwnedFd) {
    let mut count = [0_u8; 8];
    let into = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // Its peer may empty it between the look and this, so it must not wait: RWF_NOWAIT, since Linux 5.8.
    // SAFETY: one buffer of eight bytes of our own, which outlives the call.
    unsafe { libc::preadv2(outlet.as_raw_fd(), &raw const into, 1, -1, libc::RWF_NOWAIT) };
}
