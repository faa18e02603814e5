//! The command line: vhost-user's "backend program conventions" and what this backend adds to them.
//!
//! A pure function from words to [`Options`]; called by `main`. A wrong line ends the process with status 2.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};

use strata_vhost_blk::device::Tuning;
use strata_vhost_blk::engine::EngineKind;
use strata_vhost_blk::image::{Cache, Format, ImageOptions};
use strata_virtio::poller::PollLimit;

/// Serves a disk image to a virtual machine over vhost-user.
///
/// The image is opened and locked, then the process gives up all rights and serves one frontend after another
/// until SIGTERM. Exit status: 0 ended by a signal, 1 something failed, 2 wrong command line.
#[derive(Debug, Parser)]
#[command(name = "vhost-blk", version)]
#[command(group(ArgGroup::new("endpoint").args(["socket_path", "fd"])))]
pub(crate) struct Options {
    /// Socket to make and listen on; removed at the end
    #[arg(long, value_name = "PATH", required_unless_present_any = ["print_capabilities", "fd"])]
    pub(crate) socket_path: Option<PathBuf>,

    /// Descriptor of a socket that is listening, or connected to the frontend
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) fd: Option<i32>,

    /// The image: a raw file or a block device
    #[arg(long, value_name = "PATH", required_unless_present = "print_capabilities")]
    pub(crate) blk_file: Option<PathBuf>,

    /// Refuse writes; others may read the image at the same time
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Print what this program can do, as JSON, and end
    #[arg(long)]
    pub(crate) print_capabilities: bool,

    /// What the bytes of the image mean
    #[arg(long, value_enum, default_value_t = FormatName::Auto)]
    pub(crate) format: FormatName,

    /// Use of the host's page cache
    #[arg(long, value_enum, default_value_t = CacheName::Auto)]
    pub(crate) cache: CacheName,

    /// How requests reach the image
    #[arg(long, value_enum, default_value_t = EngineName::Auto)]
    pub(crate) engine: EngineName,

    /// Serial number the guest sees, at most 20 bytes
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) serial: String,

    /// Queues, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) num_queues: u16,

    /// Processors for the queue threads, one each, e.g. 2,3
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,

    /// Longest time a queue is polled before its thread sleeps, in microseconds; 0 never polls
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub(crate) poll: u64,

    /// For debugging: keep all rights
    #[arg(long)]
    pub(crate) no_sandbox: bool,
}

/// `--format`
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum FormatName {
    /// Raw; refused if it begins like another format
    Auto,
    /// Raw, whatever it begins with
    Raw,
}

/// `--cache`
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum CacheName {
    /// As none where the file system can, else as writeback
    Auto,
    /// Direct I/O, bypassing the page cache
    None,
    /// Through the page cache; a flush reaches the device
    Writeback,
    /// Through the page cache; a flush does nothing
    Unsafe,
}

/// `--engine`
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum EngineName {
    /// As io_uring where the kernel lets us, else as sync
    Auto,
    /// Never wait for the image
    #[value(name = "io_uring")]
    IoUring,
    /// System calls that wait
    Sync,
}

impl Options {
    /// The image asked for; `None` only with `--print-capabilities`.
    pub(crate) fn image(&self) -> Option<ImageOptions> {
        let path = self.blk_file.clone()?;
        let format = match self.format {
            FormatName::Auto => Format::Auto,
            FormatName::Raw => Format::Raw,
        };
        let cache = match self.cache {
            CacheName::Auto => Cache::Auto,
            CacheName::None => Cache::None,
            CacheName::Writeback => Cache::Writeback,
            CacheName::Unsafe => Cache::Unsafe,
        };
        Some(ImageOptions { path, read_only: self.read_only, format, cache })
    }

    /// The engine asked for.
    pub(crate) fn engine(&self) -> EngineKind {
        match self.engine {
            EngineName::Auto => EngineKind::Auto,
            EngineName::IoUring => EngineKind::Uring,
            EngineName::Sync => EngineKind::Sync,
        }
    }

    /// How queues are served.
    pub(crate) fn tuning(&self) -> Tuning {
        Tuning { poll: PollLimit(Duration::from_micros(self.poll)), cpus: self.cpus.clone() }
    }
}
