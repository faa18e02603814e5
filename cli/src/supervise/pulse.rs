//! Whether a backend hangs: the judgement, from evidence taken at intervals. No I/O here.
//!
//! Killing a backend that is merely slow costs the guest a pause for nothing, and makes a bad moment of the host
//! worse; so "it did not answer in time" is never enough. An interval between two looks speaks for a hang only if
//!
//! 1. every thread is stopped (SIGSTOP; not by a debugger) and none has moved since the last look, or
//! 2. somebody waits for it - a ring of the guest has held requests without an answer for the whole interval although
//!    the vmm rang its doorbell, or the vmm waits for the connection - and
//!    - it did not answer on its control socket, or the queue's counters there stand, and
//!    - no thread was in the kernel for a device (state `D`: storage is slow, and a kill would not even be heard), and
//!    - no thread waited for a CPU (`R` without having got half the interval: the host is busy), and
//!    - no thread moved, or one burned CPU for at least half the interval: it goes in circles.
//!
//! It hangs when intervals in a row, at least [`LOOKS`] of them and together the time from the machine file, all speak
//! for it. Intervals are counted, not the clock: one that lasted long because the launcher itself stood (a suspended
//! host, a frozen cgroup) counts as one of the length it was meant to have.
//!
//! What is not seen: a thread that wakes and sleeps without ever doing its work looks like one that waits for slow
//! storage, and is left alone.

use std::time::Duration;

use super::vitals::{TICKS, Vitals};

/// Looks that a hang takes at least.
pub(crate) const LOOKS: u32 = 4;

/// What was seen at one moment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Look {
    /// Its threads.
    pub(crate) threads: Vitals,
    /// What its control socket said of the queue in question; `None`: nothing in time.
    pub(crate) answer: Option<u64>,
    /// For how long somebody has been waiting for it: the ring that stands, or the connection.
    pub(crate) waited: Duration,
}

/// What an interval speaks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sign {
    /// It works, or nobody wants anything of it.
    Lives,
    /// It waits for a device or for a CPU.
    Waits,
    /// All its threads are stopped.
    Stopped,
    /// It sleeps although somebody waits for it.
    Sleeps,
    /// It burns CPU and does not answer.
    Spins,
}

impl Sign {
    /// For people: what a backend with this sign does.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Lives => "works",
            Self::Waits => "waits for a device or a CPU",
            Self::Stopped => "is stopped",
            Self::Sleeps => "sleeps on its requests",
            Self::Spins => "goes in circles",
        }
    }
}

/// What speaks out of the time between two looks, meant to be `interval` apart.
pub(crate) fn sign(before: &Look, now: &Look, interval: Duration) -> Sign {
    let stopped = |look: &Look| {
        let mut own = look.threads.values().filter(|thread| !thread.kernel).peekable();
        own.peek().is_some() && own.all(|thread| thread.state == 'T')
    };
    let still = |before: &Look, now: &Look| {
        let of = |look: &Look| {
            look.threads.iter().map(|(tid, it)| (*tid, it.ticks, it.switches)).collect::<Vec<_>>()
        };
        of(before) == of(now)
    };
    // One that was continued in between has moved.
    if stopped(before) && stopped(now) && still(before, now) {
        return Sign::Stopped;
    }
    let waited_for = now.waited >= interval;
    let answered = now.answer.is_some() && now.answer != before.answer;
    // Threads that are stopped now may run again at the next look; those that a debugger holds are its affair.
    let held = now.threads.values().any(|thread| matches!(thread.state, 'T' | 't'));
    if !waited_for || answered || held || now.threads.is_empty() {
        return Sign::Lives;
    }
    let of_both = || now.threads.iter().filter_map(|(tid, now)| Some((before.threads.get(tid)?, now)));
    let half = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX).saturating_mul(TICKS) / 2000;
    let spins = of_both().any(|(before, now)| now.ticks.saturating_sub(before.ticks) >= half.max(1));
    if now.threads.values().any(|thread| thread.state == 'D') {
        return Sign::Waits;
    }
    if spins {
        return Sign::Spins;
    }
    if now.threads.values().any(|thread| thread.state == 'R') {
        return Sign::Waits;
    }
    // A control socket that answers has a thread that moves; then its counters have spoken for the queue.
    let moved = now.threads.len() != before.threads.len()
        || of_both().any(|(before, now)| (now.switches, now.ticks) != (before.switches, before.ticks));
    if moved && now.answer.is_none() { Sign::Lives } else { Sign::Sleeps }
}

/// Signs in a row.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    looks: u32,
}

impl Pulse {
    /// Takes the sign of an interval; true if it hangs.
    pub(crate) fn take(&mut self, sign: Sign, interval: Duration, limit: Duration) -> bool {
        match sign {
            Sign::Lives | Sign::Waits => self.looks = 0,
            Sign::Stopped | Sign::Sleeps | Sign::Spins => self.looks = self.looks.saturating_add(1),
        }
        self.looks >= LOOKS && interval.saturating_mul(self.looks) >= limit
    }
}

#[cfg(test)]
#[path = "pulse_test.rs"]
mod pulse_test;
