//! Rings as both sides see them, and what every backend shares: guest memory from descriptors, the split
//! queue, adaptive polling, the inflight region, the vhost-user session.

pub mod chain;
pub mod device;
#[cfg(any(test, feature = "driver"))]
pub mod driver;
pub mod inflight;
pub mod limit;
pub mod memory;
pub mod poller;
pub mod pulse;
pub mod queue;
mod ring;
pub mod session;
pub mod spec;
mod trace;
pub mod vring;
pub mod worker;
