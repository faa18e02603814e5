//! Benchmarks of the backends without a guest: a driver in this process, the backend in its own, a real
//! vhost-user socket between them. And the exits of guests, counted by KVM.

mod backend;
mod blk;
mod blk_driver;
mod exits;
mod frontend;
mod net;
mod net_backend;
mod net_driver;
mod net_frames;
mod report;
mod ring;
mod stats;
mod switch;

use clap::{Parser, Subcommand};

/// Measures backends side by side.
#[derive(Debug, Parser)]
#[command(name = "strata-bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Block backends: IOPS, latency, kicks and calls per I/O, processor time of the backend per I/O
    Blk(blk::Options),
    /// Net backends: frames per second each way, request/response latency, kicks and calls per frame, processor
    /// time of the backend per frame
    Net(net::Options),
    /// Exits of a guest by reason: boot, idle, disk and network loads (in the rig: cargo xtask bench exits)
    Exits(exits::Options),
    /// The switch: frames from guest to guest, beside two taps on a kernel bridge
    Switch(switch::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Blk(options) => blk::run(&options),
        What::Net(options) => net::run(&options),
        What::Exits(options) => exits::run(&options),
        What::Switch(options) => switch::run(&options),
    }
}
