//! A load on one queue: requests of one block each, to random places, a constant number under way.
//!
//! Called by [`crate::blk`] for each run. Posts through [`crate::ring`], which shares no code with the backends.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::frontend::Client;
use crate::ring::{BLOCK, Notify};
use crate::stats::Histogram;

/// One driver and what it has counted.
pub(crate) struct Driver<'a> {
    client: &'a mut Client,
    write: bool,
    depth: u16,
    notify: Notify,
    random: u64,
    posted: Vec<Instant>,
    /// Requests answered.
    pub(crate) done: u64,
    /// Doorbells rung.
    pub(crate) kicks: u64,
    calls: u64,
    /// From being posted to being seen answered.
    pub(crate) latency: Histogram,
}

impl<'a> Driver<'a> {
    /// Nothing is posted yet.
    pub(crate) fn new(client: &'a mut Client, write: bool, depth: u16, notify: Notify) -> Self {
        let posted = vec![Instant::now(); usize::from(depth)];
        Self {
            client,
            write,
            depth,
            notify,
            random: 0x9e37_79b9_7f4a_7c15,
            posted,
            done: 0,
            kicks: 0,
            calls: 0,
            latency: Histogram::default(),
        }
    }

    /// Counts from zero, after a warm-up.
    pub(crate) fn forget(&mut self) {
        (self.done, self.kicks, self.calls, self.latency) = (0, 0, 0, Histogram::default());
        drop(self.drain_calls());
        self.calls = 0;
    }

    /// Keeps `depth` requests under way for a time, then waits for the last.
    pub(crate) fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut now = start;
        let mut under_way = 0;
        for slot in 0..self.depth {
            self.post(slot, now);
            under_way += 1;
        }
        self.publish()?;
        loop {
            let mut any = false;
            let going_on = now - start < time;
            while let Some((slot, status)) = self.client.ring.completed() {
                ensure!(status == 0, "a request has failed with status {status}");
                if !any {
                    now = Instant::now();
                    any = true;
                }
                if let Some(posted) = self.posted.get(usize::from(slot)) {
                    self.latency.add((now - *posted).as_nanos() as u64);
                }
                self.done += 1;
                if going_on {
                    self.post(slot, now);
                } else {
                    under_way -= 1;
                }
            }
            if under_way == 0 {
                return Ok(());
            }
            if any {
                self.publish()?;
            } else if self.notify == Notify::Poll {
                std::hint::spin_loop();
                // A backend that has died never answers.
                ensure!(start.elapsed() < time + Duration::from_secs(20), "the backend does not answer");
            } else if !self.client.ring.arm() {
                self.sleep()?;
            }
        }
    }

    fn post(&mut self, slot: u16, now: Instant) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let blocks = self.client.capacity / BLOCK as u64;
        let sector = (self.random % blocks) * (BLOCK as u64 / 512);
        if let Some(posted) = self.posted.get_mut(usize::from(slot)) {
            *posted = now;
        }
        self.client.ring.post(slot, self.write, sector);
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        if self.client.ring.publish() {
            self.kicks += 1;
            self.client.kick.write(1).context("kicking")?;
        }
        Ok(())
    }

    fn sleep(&mut self) -> anyhow::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.client.call(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(20_000u16))?;
        ensure!(ready > 0, "the backend does not answer");
        self.calls += self.client.calls.read().context("reading calls")?;
        Ok(())
    }

    fn drain_calls(&mut self) -> anyhow::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.client.call(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO)? > 0 {
            self.calls += self.client.calls.read()?;
        }
        Ok(())
    }

    /// Calls that have come.
    ///
    /// # Errors
    /// The descriptor cannot be read.
    pub(crate) fn calls(&mut self) -> anyhow::Result<u64> {
        self.drain_calls()?;
        Ok(self.calls)
    }
}
