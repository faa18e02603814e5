//! The command line: vhost-user's "backend program conventions" and what this backend adds to them.
//!
//! A pure function from words to [`Options`]; called by `main`. A wrong line ends the process with status 2.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};

use strata_sandbox::Namespaces;
use strata_vhost_blk::device::Tuning;
use strata_vhost_blk::disk::OnError;
use strata_vhost_blk::engine::EngineKind;
use strata_vhost_blk::image::{Cache, Format, ImageOptions};
use strata_vhost_blk::rate::Rates;
use strata_virtio::poller::PollLimit;

/// Serves a disk image to a virtual machine over vhost-user.
///
/// The image is opened and locked, then the process gives up all rights and serves one frontend after another
/// until SIGTERM. Exit status: 0 ended by a signal, 1 something failed, 2 wrong command line.
#[derive(Debug, Parser)]
#[command(name = "vhost-blk", version)]
#[command(group(ArgGroup::new("endpoint").args(["socket_path", "fd"])))]
pub(crate) struct Options {
    /// Socket to make and listen on; removed at the end. Without it and --fd, the socket that socket activation
    /// passed (LISTEN_FDS)
    #[arg(long, value_name = "PATH")]
    pub(crate) socket_path: Option<PathBuf>,

    /// Descriptor of a socket that is listening, or connected to the frontend
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) fd: Option<i32>,

    /// The image: a raw file or a block device
    #[arg(long, value_name = "PATH", required_unless_present = "print_capabilities")]
    pub(crate) blk_file: Option<PathBuf>,

    /// Descriptor of the image, a raw file, if who started this process has opened it; --blk-file then only names it
    #[arg(long, value_name = "FDNUM", requires = "direct_fd", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) image_fd: Option<i32>,

    /// Descriptor of the same file opened once more, for direct I/O
    #[arg(long, value_name = "FDNUM", requires = "image_fd", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) direct_fd: Option<i32>,

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

    /// What happens when the image fails
    #[arg(long, value_enum, default_value_t = OnErrorName::Report)]
    pub(crate) on_error: OnErrorName,

    /// Most requests per second, of all queues together; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) iops: u64,

    /// Requests that may come at once after a pause; 0: a tenth of a second's worth
    #[arg(long, value_name = "N", default_value_t = 0, requires = "iops")]
    pub(crate) iops_burst: u64,

    /// Most bytes per second, of all queues together; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) bytes_per_second: u64,

    /// Bytes that may be transferred at once after a pause; 0: a tenth of a second's worth
    #[arg(long, value_name = "N", default_value_t = 0, requires = "bytes_per_second")]
    pub(crate) bytes_burst: u64,

    /// Descriptor of a listening socket for control (Varlink, io.strata.Disk)
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) control_fd: Option<i32>,

    /// Queues, each with a thread of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) num_queues: u16,

    /// Processors for the queue threads, one each, e.g. 2,3
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,

    /// Longest time a queue is polled before its thread sleeps, in microseconds; 0 never polls
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=5000))]
    pub(crate) poll: u64,

    /// Longest time a call is put off after the first answer it is for, in microseconds, while the queue is polled; 0
    /// calls at once
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub(crate) coalesce: u64,

    /// Who makes the sandbox's namespaces: own, this process; given, the service manager that started it has
    #[arg(long, value_name = "own|given", default_value = "own", conflicts_with = "no_sandbox")]
    pub(crate) namespaces: Namespaces,

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
    /// qcow2, with the images behind it
    Qcow2,
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

/// `--on-error`
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum OnErrorName {
    /// The guest is told
    Report,
    /// The queue waits until it is resumed (control)
    Stop,
}

impl Options {
    /// What happens when the image fails.
    pub(crate) fn on_error(&self) -> OnError {
        match self.on_error {
            OnErrorName::Report => OnError::Report,
            OnErrorName::Stop => OnError::Stop,
        }
    }

    /// The limits to begin with.
    pub(crate) fn rates(&self) -> Rates {
        Rates {
            iops: self.iops,
            iops_burst: self.iops_burst,
            bytes_per_second: self.bytes_per_second,
            bytes_burst: self.bytes_burst,
        }
    }

    /// The descriptors to be kept of those that were passed down.
    pub(crate) fn kept(&self, socket: Option<i32>) -> Vec<i32> {
        [socket, self.control_fd, self.image_fd, self.direct_fd].into_iter().flatten().collect()
    }

    /// Whether something says where frontends come from: a flag, or a service manager that passes a socket.
    pub(crate) fn has_endpoint(&self) -> bool {
        self.fd.is_some() || self.socket_path.is_some() || std::env::var_os("LISTEN_FDS").is_some()
    }

    /// The image asked for; `None` only with `--print-capabilities`.
    pub(crate) fn image(&self) -> Option<ImageOptions> {
        let path = self.blk_file.clone()?;
        let format = match self.format {
            FormatName::Auto => Format::Auto,
            FormatName::Raw => Format::Raw,
            FormatName::Qcow2 => Format::Qcow2,
        };
        let cache = match self.cache {
            CacheName::Auto => Cache::Auto,
            CacheName::None => Cache::None,
            CacheName::Writeback => Cache::Writeback,
            CacheName::Unsafe => Cache::Unsafe,
        };
        Some(ImageOptions { path, read_only: self.read_only, format, cache })
    }

    /// The numbers of the image's two descriptors, if it is open already.
    pub(crate) fn given(&self) -> Option<(i32, i32)> {
        self.image_fd.zip(self.direct_fd)
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
        Tuning {
            poll: PollLimit(Duration::from_micros(self.poll)),
            coalesce: Duration::from_micros(self.coalesce),
            cpus: self.cpus.clone(),
        }
    }
}
