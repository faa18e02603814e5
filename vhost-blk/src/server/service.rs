//! When a queue's requests are served: what its thread does with a [`Server`].
//!
//! Called by the worker of [`strata_virtio`] only. The order is the point: answers first, since they free slots
//! and let the driver go on; then requests; one call for all that was answered.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use strata_virtio::worker::{Progress, Service, Source};

use super::{HALTED, Lane, Server};
use crate::request::Status;

impl Service for Server {
    #[inline]
    fn process(&mut self) -> Progress {
        let mut worked = self.reap();
        if !self.parked.is_empty() {
            self.resume();
        }
        if self.may_take() {
            self.not_before = None;
            for taken in 0..self.vring.queue().size() {
                if !self.vring.next(&mut self.chain) {
                    break;
                }
                if taken == 0 {
                    self.found = Instant::now();
                    worked = true;
                }
                if !self.accept() {
                    break;
                }
                self.show_some();
                if !self.parked.is_empty() {
                    break;
                }
            }
            let answered = std::mem::take(&mut self.untimed);
            if answered > 0 {
                self.tally.latency.add(self.found.elapsed(), answered);
            }
        }
        if let Some(uring) = &mut self.uring {
            uring.submit();
            worked |= self.reap();
        }
        self.flush();
        if worked { Progress::Worked } else { Progress::Idle }
    }

    #[inline]
    fn has_work(&mut self) -> bool {
        self.has_answers() || (self.vring.queue().has_work() && self.may_take()) || self.vring.call_is_due()
    }

    fn suppress_kicks(&mut self) {
        self.vring.queue_mut().suppress_kicks();
    }

    fn prepare_sleep(&mut self) -> bool {
        // A sleep is no measure for microseconds: what was put off is not slept over.
        self.vring.call_now();
        // A queue that may not take requests need not hear of them.
        let new = self.may_take() && self.vring.queue_mut().arm_kicks();
        new || self.has_answers()
    }

    fn wake_after(&self) -> Option<Duration> {
        // A millisecond more: a sleep cut short would only be repeated.
        let limit = self.not_before.map(|time| time.saturating_duration_since(Instant::now()));
        let limit = limit.map(|time| time + Duration::from_millis(1));
        if self.parked.is_empty() { limit } else { Some(HALTED) }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let mut sources = vec![Source::kick(&self.vring)];
        sources.extend(self.uring.as_ref().map(|uring| Source::readable(uring.as_fd())));
        sources.extend(self.lane.as_ref().map(|lane| Source::readable(lane.as_fd())));
        sources
    }

    fn is_under_way(&self) -> bool {
        self.not_before.is_some()
            || self.uring.as_ref().is_some_and(|uring| uring.under_way() > 0)
            || self.lane.as_ref().is_some_and(|lane| lane.under_way() > 0)
    }

    fn drain(&mut self) {
        loop {
            // What has failed and waited for better times waits no longer.
            if !self.parked.is_empty() {
                self.disk.halted.fetch_sub(1, Ordering::Relaxed);
            }
            for index in std::mem::take(&mut self.parked) {
                self.finish(index, Status::IoError);
            }
            if self.reap() {
                continue;
            }
            // The ring first: the lane may be waiting for what is under way in it.
            match &mut self.uring {
                Some(uring) if uring.under_way() > 0 => {
                    uring.wait();
                    continue;
                }
                _ => {}
            }
            let durable = self.disk.write_through.load(Ordering::Relaxed) && self.disk.image.flushes();
            match self.lane.as_mut().and_then(Lane::wait) {
                Some(reply) => self.replied(reply, durable),
                None if self.parked.is_empty() => break,
                None => {}
            }
        }
        self.flush();
        self.vring.call_now();
    }
}
