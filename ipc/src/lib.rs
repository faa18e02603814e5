//! How our processes talk: Varlink over a unix socket per machine.
//!
//! Owns the interface `io.strata.Machine`, and systemd's `io.systemd.MachineInstance` in terms of it ([`Control`] is what a machine answers, [`Client`] what the command
//! asks with) and the care taken with whoever connects: [`serve`] bounds connections, message length and how
//! long a client may leave a reply unread, so one client can neither exhaust nor hold up the rest. The vmm calls
//! `serve`; the command and tests use `Client`. Refuses: malformed bytes (the connection is closed), unknown
//! methods (`org.varlink.service.MethodNotFound`), descriptors from clients (closed unseen).

pub mod blocking;
mod client;
mod guard;
mod instance;
mod interface;
mod server;
mod types;

#[cfg(test)]
mod server_test;

pub use client::{Client, ClientError};
pub use interface::{DESCRIPTION, INTERFACE};
pub use server::{Limits, serve, serve_with};
pub use types::{
    Control, Counters, DeviceState, DeviceStatistics, DeviceStatus, MachineState, NewDevice, Refused,
    Statistics, Status, Unplug, VcpuStatistics,
};
