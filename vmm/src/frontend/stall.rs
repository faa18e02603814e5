//! Rings that stand: the driver has made requests available and no used entry follows.
//!
//! Looked at by the monitor, now and then. A ring that stands proves nothing by itself, since storage may be slow;
//! the monitor rings its kick, so that a backend which is awake shows it, and whoever supervises the backend's
//! process judges. Both indices are the guest's and the backend's to write: a lie makes a stall appear or hides one.

use std::time::{Duration, Instant};

use super::seen::Stall;

/// How each ring stood at the last look.
#[derive(Debug, Default)]
pub(super) struct Stalls(Vec<Option<(u16, Instant)>>);

impl Stalls {
    /// Takes a look: `avail` and `used` indices of the rings that run and whose requests are to be answered (not those
    /// where buffers wait for something to come). The ring that stands longest, if one does.
    pub(super) fn look(
        &mut self,
        rings: impl IntoIterator<Item = (u16, u16, u16)>,
        now: Instant,
    ) -> Option<Stall> {
        let before = std::mem::take(&mut self.0);
        let mut worst: Option<Stall> = None;
        for (queue, avail, used) in rings {
            if avail == used {
                continue;
            }
            let at = usize::from(queue);
            let since = match before.get(at).copied().flatten() {
                Some((stood, since)) if stood == used => since,
                _ => now,
            };
            if self.0.len() <= at {
                self.0.resize(at + 1, None);
            }
            if let Some(slot) = self.0.get_mut(at) {
                *slot = Some((used, since));
            }
            let time = now.saturating_duration_since(since);
            if time > worst.map_or(Duration::ZERO, |worst| worst.time) {
                worst = Some(Stall { queue, time });
            }
        }
        worst
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_that_stands_longest_is_named() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stalls = Stalls::default();
        assert_eq!(stalls.look([(0, 5, 5), (1, 7, 3)], at(0)), None);
        let stall = |queue, seconds| Some(Stall { queue, time: Duration::from_secs(seconds) });
        assert_eq!(stalls.look([(0, 6, 5), (1, 7, 3)], at(2)), stall(1, 2));
        // One answer, and it moves; the other stands now, through the wrap of its indices or not.
        assert_eq!(stalls.look([(0, 6, 5), (1, 8, 4)], at(5)), stall(0, 3));
        assert_eq!(stalls.look([(0, 6, 6), (1, 4, 4)], at(6)), None);
        // A ring that was done begins anew.
        assert_eq!(stalls.look([(0, 7, 6)], at(7)), None);
        assert_eq!(stalls.look([(0, 0, 6)], at(9)), stall(0, 2));
    }
}
