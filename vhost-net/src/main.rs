//! `vhost-net`: one network card, served over vhost-user from inside a sandbox.
//!
//! Everything that needs a right happens before the first client is heard, in this order: command line, tap,
//! socket, sandbox. Afterwards the process has descriptors and nothing else.

mod kept;
mod options;
mod switch_options;
mod switch_run;

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use options::Options;
use strata_sandbox::{
    Isolated, Notify, Role, Spec, close_inherited, disabled, isolate, listeners, remove_at_end, stored,
};
use strata_vhost_net::counted;
use strata_vhost_net::device::Net;
use strata_vhost_net::mac::Mac;
use strata_vhost_net::service::Nic;
use strata_vhost_net::tap::Tap;
use strata_virtio::pulse;
use strata_virtio::session::{ConfigChange, Endpoint, serve};

/// What the conventions ask `--print-capabilities` to say (QEMU docs/interop/vhost-user.rst).
const CAPABILITIES: &str = r#"{"type":"net","features":["tap","tap-fd","switch"]}"#;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    if !options.has_endpoint() {
        let text = "no socket: give --socket-path or --fd, or start it by socket activation (LISTEN_FDS)";
        Options::command().error(clap::error::ErrorKind::MissingRequiredArgument, text).exit();
    }
    if let Some(name) = options.switch.twice() {
        let text = format!("two ports are named {name}");
        Options::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit();
    }
    if let Some(fd) = options.repeated() {
        let text = format!("descriptor {fd} is given twice");
        Options::command().error(clap::error::ErrorKind::ArgumentConflict, text).exit();
    }
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-net: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    if let Some(name) = &options.switch.switch {
        return switch_run::run(options, name);
    }
    let fd = socket(options)?;
    let back = stored(kept::NAME)?;
    close_inherited(&[options.kept(fd), back.clone()].concat());
    let notify = Arc::new(Notify::from_environment());
    let sandboxed = !options.no_sandbox;
    let tap = match &options.tap {
        Some(name) => kept::tap(name, options.num_queues, options.create_tap, inherit(&back)?, &notify)?,
        None => Tap::from_fds(inherit(&options.tap_fd)?)?,
    }
    .with_mtu(options.mtu);
    let endpoint = match (fd, &options.socket_path) {
        (Some(fd), _) => Endpoint::inherit(fd)?,
        (None, Some(path)) => {
            let endpoint = Endpoint::listen(path)?;
            if sandboxed {
                remove_at_end(path, Role::Net)?;
            }
            endpoint
        }
        (None, None) => anyhow::bail!("LISTEN_FDS is set, but no socket was passed to this process"),
    };
    let control = control(options)?;
    let isolated = isolated(options)?;
    let stop = termination()?;
    let mac = options.mac.unwrap_or_else(|| Mac::for_tap(tap.name()));
    let status = format!("{}: {mac}, {} queue pair(s)", tap.name(), tap.pairs());
    tracing::info!("{status}");
    let change = ConfigChange::default();
    let mut device = Net::new(tap, mac, options.settings(mac), options.tuning(), change.clone())
        .context("making the device")?;
    if let Some(isolated) = isolated {
        isolated.lock()?;
    }
    if let Some(listener) = control {
        strata_ipc::blocking::spawn(listener, Nic::new(&device)).context("a thread for control")?;
    }
    if let Some(every) = notify.watched() {
        let threads = device.stats().iter().map(|stats| Arc::clone(&stats.thread)).collect();
        let told = Arc::clone(&notify);
        pulse::feed(every, threads, move || told.alive()).context("a thread for the watchdog")?;
    }
    notify.ready(&status);
    let served = serve(endpoint, &mut device, &stop, &change);
    notify.stopping("ending");
    report(&device);
    if let (false, Some(path)) = (sandboxed, &options.socket_path) {
        remove(path);
    }
    served?;
    Ok(())
}

/// The socket for control, if there is one.
fn control(options: &Options) -> anyhow::Result<Option<UnixListener>> {
    let Some(fd) = options.control_fd else { return Ok(None) };
    match Endpoint::inherit(fd)? {
        Endpoint::Listener(listener) => Ok(Some(listener)),
        Endpoint::Stream(_) => anyhow::bail!("--control-fd {fd}: not a listening socket"),
    }
}

/// The first half of the sandbox, unless there is to be none.
fn isolated(options: &Options) -> anyhow::Result<Option<Isolated>> {
    if options.no_sandbox {
        disabled(Role::Net);
        return Ok(None);
    }
    Ok(Some(isolate(Spec { namespaces: options.namespaces, ..Spec::new(Role::Net) })?))
}

/// Descriptors the parent left open.
#[allow(unsafe_code)] // numbers on the command line become owned descriptors
fn inherit(numbers: &[i32]) -> anyhow::Result<Vec<OwnedFd>> {
    let mut fds = Vec::with_capacity(numbers.len());
    for &number in numbers {
        // SAFETY: F_GETFD only asks about the number.
        if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
            let error = std::io::Error::last_os_error();
            return Err(error).with_context(|| format!("--tap-fd {number}"));
        }
        // SAFETY: open, as just seen; each number was given once, so it is ours alone.
        fds.push(unsafe { OwnedFd::from_raw_fd(number) });
    }
    Ok(fds)
}

/// The descriptor of the socket: named on the command line, or passed by socket activation, or none.
fn socket(options: &Options) -> anyhow::Result<Option<i32>> {
    if options.fd.is_some() || options.socket_path.is_some() {
        return Ok(options.fd);
    }
    match listeners()?.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(*one)),
        more => anyhow::bail!("{} sockets were passed (LISTEN_FDS); a backend serves one", more.len()),
    }
}

/// A descriptor that becomes readable when the process is asked to end. The signals are blocked before there is
/// a second thread, so none is ever delivered.
fn termination() -> anyhow::Result<SignalFd> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("blocking SIGTERM and SIGINT")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("a descriptor for signals")
}

/// One line per pair with everything that was counted.
fn report(device: &Net) {
    for (pair, stats) in device.stats().iter().enumerate() {
        if let Some(line) = counted::line(&stats.list()) {
            tracing::info!("pair {pair}: {line}");
        }
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("{} stays behind: {error}", path.display());
    }
}
