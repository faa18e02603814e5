//! `vhost-blk`: one disk image, served over vhost-user from inside a sandbox.
//!
//! Everything that needs a right happens before the first client is heard, in this order: command line, image,
//! socket, sandbox. Afterwards the process has descriptors and nothing else.

mod options;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{CommandFactory, Parser};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use options::Options;
use strata_sandbox::{Notify, Role, Spec, close_inherited, disabled, isolate, listeners, remove_at_end};
use strata_vhost_blk::control;
use strata_vhost_blk::device::Block;
use strata_vhost_blk::disk::Disk;
use strata_vhost_blk::image::{Files, Format, Given, Image, ImageOptions};
use strata_vhost_blk::layers::Layers;
use strata_virtio::pulse;
use strata_virtio::session::{ConfigChange, Endpoint, serve};

/// What the conventions ask `--print-capabilities` to say (QEMU docs/interop/vhost-user.rst).
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

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
            eprintln!("vhost-blk: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> anyhow::Result<()> {
    let image = options.image().context("no image")?;
    // Before anything else is opened, which could get a number that was meant for one of these.
    let given = given(options)?;
    let fd = socket(options)?;
    close_inherited(&options.kept(fd));
    let notify = Arc::new(Notify::from_environment());
    let sandboxed = !options.no_sandbox;
    let (files, layers) = open(&image, given, usize::from(options.num_queues))?;
    let endpoint = match (fd, &options.socket_path) {
        (Some(fd), _) => Endpoint::inherit(fd)?,
        (None, Some(path)) => {
            let endpoint = Endpoint::listen(path)?;
            if sandboxed {
                remove_at_end(path, Role::Blk)?;
            }
            endpoint
        }
        (None, None) => anyhow::bail!("LISTEN_FDS is set, but no socket was passed to this process"),
    };
    let control = match options.control_fd {
        Some(fd) => match Endpoint::inherit(fd)? {
            Endpoint::Listener(listener) => Some(listener),
            Endpoint::Stream(_) => anyhow::bail!("--control-fd {fd}: not a listening socket"),
        },
        None => None,
    };
    let isolated = if sandboxed {
        Some(isolate(Spec { namespaces: options.namespaces, ..Spec::new(Role::Blk) })?)
    } else {
        disabled(Role::Blk);
        None
    };
    let stop = termination()?;
    let queues = usize::from(options.num_queues);
    let disk = Disk::new(files, layers, options.engine(), queues, &options.serial, options.on_error())?;
    disk.limiter.set(&options.rates());
    let status = announce(&disk, options);
    let change = ConfigChange::default();
    let mut device = Block::new(Arc::clone(&disk), options.num_queues, options.tuning());
    if let Some(isolated) = isolated {
        isolated.lock()?;
    }
    if let Some(listener) = control {
        control::spawn(listener, Arc::downgrade(&disk), change.clone()).context("a thread for control")?;
    }
    if let Some(every) = notify.watched() {
        let threads = disk.tallies.iter().map(|tally| Arc::clone(&tally.thread)).collect();
        let told = Arc::clone(&notify);
        pulse::feed(every, threads, move || told.alive()).context("a thread for the watchdog")?;
    }
    notify.ready(&status);
    let served = serve(endpoint, &mut device, &stop, &change);
    notify.stopping("ending");
    if let (false, Some(path)) = (sandboxed, &options.socket_path) {
        remove(path);
    }
    served?;
    Ok(())
}

/// The image, if who started this process has opened it.
fn given(options: &Options) -> anyhow::Result<Option<Given>> {
    let Some((image, direct)) = options.given() else { return Ok(None) };
    let given = Given::inherit(image, direct)
        .with_context(|| format!("--image-fd {image} --direct-fd {direct}: no open file came with them"))?;
    Ok(Some(given))
}

/// The files of the disk: a raw image, or a qcow2 image and all that is behind it.
fn open(
    options: &ImageOptions,
    given: Option<Given>,
    queues: usize,
) -> anyhow::Result<(Files, Option<Layers>)> {
    let image = match (given, options.format) {
        (Some(_), Format::Qcow2) => {
            anyhow::bail!("--image-fd: a qcow2 image is opened by its path, as are those behind it")
        }
        (None, Format::Qcow2) => {
            let (files, layers) = Layers::open(options, queues)?;
            return Ok((files, Some(layers)));
        }
        (Some(given), _) => Image::given(given, options)?,
        (None, _) => Image::open(options)?,
    };
    Ok((Files::one(image), None))
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
    let mut blocked = signals;
    // A write beyond RLIMIT_FSIZE is the guest's error (EFBIG), not our end.
    blocked.add(Signal::SIGXFSZ);
    blocked.thread_block().context("blocking signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("a descriptor for signals")
}

/// Says what is served; the same line is the service's status.
fn announce(disk: &Disk, options: &Options) -> String {
    let image = &disk.image;
    let line = format!(
        "{}: {} MiB{}, {}, {} queue(s), {}",
        disk.name(),
        disk.limits().capacity / 2048,
        if image.read_only() { ", read-only" } else { "" },
        if image.direct().is_some() { "direct I/O" } else { "page cache" },
        options.num_queues,
        if disk.rings.is_empty() { "system calls" } else { "io_uring" },
    );
    tracing::info!("{line}");
    line
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("{} stays behind: {error}", path.display());
    }
}
