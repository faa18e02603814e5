//! Where a read puts its frame: the guest's buffers, and behind them memory of ours for what they cannot take.

use strata_virtio::chain::Chain;

use super::LARGEST;
use crate::batch::{MAX_PIECES, Scatter};

/// What one read of a batch may fill.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Buffers, the next ones of those held.
    pub(super) chains: usize,
    /// Bytes they take.
    pub(super) capacity: usize,
}

/// Adds a buffer to the read being described, up to the largest frame; the bytes it takes.
#[inline]
pub(super) fn describe(scatter: &mut Scatter, chain: &Chain) -> usize {
    let mut capacity = 0;
    // One piece is kept for the overflow.
    for piece in chain.writable().iter().take(MAX_PIECES - 1) {
        if capacity >= LARGEST {
            break;
        }
        scatter.guest(*piece);
        capacity += piece.len();
    }
    capacity
}

/// Ends the description of a read: what its buffers cannot take goes to the overflow.
#[inline]
pub(super) fn finish(scatter: &mut Scatter, place: Place, overflow: Option<&mut [u8]>) {
    if place.capacity < LARGEST
        && let Some(overflow) = overflow.and_then(|all| all.get_mut(..LARGEST - place.capacity))
    {
        scatter.own(overflow);
    }
    scatter.end();
}
