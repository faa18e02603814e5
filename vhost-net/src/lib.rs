//! A virtio network card behind a vhost-user socket, on a tap.
//!
//! ```text
//!   frontend --vhost-user--> session --> device --> pair (thread): tx --\           /--> kernel's network
//!                                          |                       rx <-- batch, tap
//!                                          +------> control (thread) --> card: address, filters, link, steering
//! ```
//! `main` opens the tap and the socket, closes the sandbox around itself, and serves.

pub mod batch;
pub mod capture;
pub mod card;
pub mod config;
pub mod control;
pub mod counted;
pub mod device;
pub mod features;
pub mod guard;
pub mod header;
#[cfg(any(test, feature = "host"))]
pub mod host;
pub mod limit;
pub mod mac;
pub mod pair;
pub mod port;
pub mod rx;
pub mod service;
pub mod stats;
pub mod switch;
pub mod tap;
pub mod tx;
pub mod vlan;
