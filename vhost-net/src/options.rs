//! The command line: vhost-user's "backend program conventions" and what this backend adds to them.
//!
//! A pure function from words to [`Options`]; called by `main`. A wrong line ends the process with status 2.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser};

use strata_sandbox::Namespaces;
use strata_vhost_net::device::Tuning;
use strata_vhost_net::mac::Mac;
use strata_virtio::poller::PollLimit;

use crate::switch_options::SwitchOptions;

/// Serves a network card on a tap to a virtual machine over vhost-user.
///
/// The tap is opened, then the process gives up all rights and serves one frontend after another until SIGTERM.
/// Exit status: 0 ended by a signal, 1 something failed, 2 wrong command line.
#[derive(Debug, Parser)]
#[command(name = "vhost-net", version)]
#[command(group(ArgGroup::new("endpoint").args(["socket_path", "fd"])))]
#[command(group(ArgGroup::new("cable").args(["tap", "tap_fd"])))]
pub(crate) struct Options {
    /// Socket to make and listen on; removed at the end. Without it and --fd, the socket that socket activation
    /// passed (LISTEN_FDS)
    #[arg(long, value_name = "PATH")]
    pub(crate) socket_path: Option<PathBuf>,

    /// Descriptor of a socket that is listening, or connected to the frontend
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) fd: Option<i32>,

    /// Descriptor of a listening socket for control (Varlink, io.strata.Net)
    #[arg(long, value_name = "FDNUM", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) control_fd: Option<i32>,

    /// The tap, by its name
    #[arg(long, value_name = "NAME", required_unless_present_any = ["print_capabilities", "tap_fd", "switch"])]
    pub(crate) tap: Option<String>,

    /// The tap, as open descriptors, one per queue pair
    #[arg(long, value_name = "FDNUM,...", value_delimiter = ',', value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) tap_fd: Vec<i32>,

    /// Make the tap if it does not exist; it goes when this process does
    #[arg(long, conflicts_with = "tap_fd")]
    pub(crate) create_tap: bool,

    /// The card's address; without it one that follows from the tap's name
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) mac: Option<Mac>,

    /// Queue pairs, each with a thread of its own
    #[arg(long, value_name = "PAIRS", conflicts_with = "tap_fd", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) num_queues: u16,

    /// Processors for the pairs' threads, one each, e.g. 2,3
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,

    /// Longest time a pair looks for work before its thread sleeps, in microseconds; 0 never looks
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=1000))]
    pub(crate) poll: u64,

    /// One system call per frame even where io_uring could be used
    #[arg(long)]
    pub(crate) no_io_uring: bool,

    #[command(flatten)]
    pub(crate) switch: SwitchOptions,

    /// Print what this program can do, as JSON, and end
    #[arg(long)]
    pub(crate) print_capabilities: bool,

    /// Who makes the sandbox's namespaces: own, this process; given, the service manager that started it has
    #[arg(long, value_name = "own|given", default_value = "own", conflicts_with = "no_sandbox")]
    pub(crate) namespaces: Namespaces,

    /// For debugging: keep all rights
    #[arg(long)]
    pub(crate) no_sandbox: bool,
}

impl Options {
    /// Whether something says where frontends come from: a flag, or a service manager that passes a socket.
    pub(crate) fn has_endpoint(&self) -> bool {
        let own = self.fd.is_some() || self.socket_path.is_some() || self.switch.switch.is_some();
        own || std::env::var_os("LISTEN_FDS").is_some()
    }

    /// How queues are served.
    pub(crate) fn tuning(&self) -> Tuning {
        Tuning {
            poll: PollLimit(Duration::from_micros(self.poll)),
            cpus: self.cpus.clone(),
            plain: self.no_io_uring,
        }
    }

    /// The descriptors that stay open, the socket's among them.
    pub(crate) fn kept(&self, socket: Option<i32>) -> Vec<i32> {
        let own = self.tap_fd.iter().copied().chain(socket).chain(self.control_fd);
        own.chain(self.switch.kept()).collect()
    }

    /// A descriptor that was named twice.
    pub(crate) fn repeated(&self) -> Option<i32> {
        let mut all = self.kept(self.fd);
        all.sort_unstable();
        all.windows(2).find_map(|pair| match pair {
            [a, b] if a == b => Some(*a),
            _ => None,
        })
    }
}

#[cfg(test)]
#[path = "options_test.rs"]
mod options_test;
