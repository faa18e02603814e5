//! The block backend: serves one image over vhost-user.
//!
//! ```text
//!   main: open image -> isolate -> rings -> lock -> session (strata_virtio)
//!                                                      | start_queue / stop_queue
//!   device  ------------------------------------------+
//!   server  (one per queue, on its own thread): ring -> request -> slot -> engine -> image
//! ```

pub mod config;
pub mod control;
pub mod device;
pub mod disk;
pub mod engine;
pub mod image;
pub mod layers;
pub mod rate;
pub mod request;
pub mod server;
pub mod slot;
pub mod tally;
