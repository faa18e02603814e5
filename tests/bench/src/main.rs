//! Benchmarks of the backends without a guest: a driver in this process, the backend in its own, a real
//! vhost-user socket between them.

mod backend;
mod blk;
mod frontend;
mod report;
mod ring;
mod stats;

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
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().what {
        What::Blk(options) => blk::run(&options),
    }
}
