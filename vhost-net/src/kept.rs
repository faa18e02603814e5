//! The tap of a service: its descriptors stay with the service manager, so that the tap keeps its carrier and its queue
//! of frames while a process of this service is replaced by the next.
//!
//! Called by `main` before the sandbox. Descriptors that come back are checked as any from outside; those of another tap,
//! of one that was deleted, or of another number of queues are given up, and the tap is opened by its name.

use std::os::fd::{BorrowedFd, OwnedFd};

use strata_sandbox::Notify;
use strata_vhost_net::tap::{Tap, TapError};

/// What they are stored as.
pub(crate) const NAME: &str = "tap";

/// The tap `name` with one queue per pair, from what came `back` if it is that.
///
/// # Errors
/// Those of [`Tap::open`].
pub(crate) fn tap(
    name: &str,
    pairs: u16,
    create: bool,
    back: Vec<OwnedFd>,
    notify: &Notify,
) -> Result<Tap, TapError> {
    if !back.is_empty() {
        match Tap::from_fds(back) {
            Ok(tap) if tap.name() == name && tap.pairs() == pairs => {
                tracing::info!("{name}: as the process before this one left it");
                return Ok(tap);
            }
            Ok(tap) => tracing::info!("the tap kept was {} with {} queue pair(s)", tap.name(), tap.pairs()),
            Err(error) => tracing::info!("the tap kept is of no use any more: {error}"),
        }
        // The manager closes its copies soon; opening waits that long for a tap that is busy.
        notify.forget(NAME);
    }
    let tap = Tap::open(name, usize::from(pairs), create)?;
    let queues: Vec<BorrowedFd<'_>> =
        (0..usize::from(tap.pairs())).filter_map(|pair| tap.queue(pair)).collect();
    notify.store(NAME, &queues);
    Ok(tap)
}
