//! The command line: vhost-user's "backend program conventions" and what this backend adds to them.
//!
//! A pure function from words to [`Options`]; called by `main`. A wrong line ends the process with status 2.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgGroup, Parser, ValueEnum};
use ipnet::IpNet;

use strata_sandbox::Namespaces;
use strata_vhost_net::device::Tuning;
use strata_vhost_net::guard::{Guard, address};
use strata_vhost_net::limit::{Rate, burst};
use strata_vhost_net::mac::Mac;
use strata_vhost_net::port::Settings;
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

    /// The network's MTU, which the guest is told; without it the tap's
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(68..=65521))]
    pub(crate) mtu: Option<u16>,

    /// What the guest cannot be: mac, anyone with another address than the card's; dhcp, a DHCP server; ra, an IPv6
    /// router
    #[arg(long, value_name = "mac|dhcp|ra,...", value_enum, value_delimiter = ',')]
    pub(crate) guard: Vec<Guarded>,

    /// The IP addresses and networks the guest can send from; without it any
    #[arg(long, value_name = "ADDRESS,...", value_delimiter = ',', value_parser = address)]
    pub(crate) allow_ip: Vec<IpNet>,

    /// Limit of what the guest sends, e.g. bits=100000000,packets=20000,burst=20 (per second; burst in milliseconds)
    #[arg(long, value_name = "KEY=NUMBER,...", value_parser = rate)]
    pub(crate) tx_limit: Option<Rate>,

    /// The same for what the guest is sent
    #[arg(long, value_name = "KEY=NUMBER,...", value_parser = rate)]
    pub(crate) rx_limit: Option<Rate>,

    /// Queue pairs, each with a thread of its own
    #[arg(long, value_name = "PAIRS", conflicts_with = "tap_fd", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) num_queues: u16,

    /// Processors for the pairs' threads, one each, e.g. 2,3
    #[arg(long, value_name = "CPU,...", value_delimiter = ',')]
    pub(crate) cpus: Vec<usize>,

    /// Longest time a pair looks for work before its thread sleeps, in microseconds; 0 never looks
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=5000))]
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

/// What a guest is kept from being.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Guarded {
    /// Anyone else.
    Mac,
    /// A DHCP server.
    Dhcp,
    /// A router.
    Ra,
}

/// A rate limit as it is written.
fn rate(text: &str) -> Result<Rate, String> {
    const FORM: &str =
        "bits=NUMBER, packets=NUMBER (per second, at least 1) and burst=5 to 10000 (milliseconds)";
    let mut rate = Rate::default();
    for part in text.split(',') {
        let (key, number) = part.split_once('=').ok_or(FORM)?;
        let number = number.parse::<u64>().ok().filter(|number| *number > 0).ok_or(FORM)?;
        match key {
            "bits" => rate.bits = Some(number),
            "packets" => rate.packets = Some(number),
            "burst" => rate.burst = burst(number).ok_or(FORM)?,
            _ => return Err(FORM.to_owned()),
        }
    }
    Ok(rate)
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

    /// What the card `mac` may do.
    pub(crate) fn settings(&self, mac: Mac) -> Settings {
        let has = |what| self.guard.contains(&what);
        let guard = Guard {
            mac: has(Guarded::Mac).then_some(mac),
            addresses: self.allow_ip.clone(),
            dhcp: has(Guarded::Dhcp),
            router: has(Guarded::Ra),
        };
        Settings { guard, tx: self.tx_limit.unwrap_or_default(), rx: self.rx_limit.unwrap_or_default() }
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
