//! `vhost-blk`: one disk image, served over vhost-user from inside a sandbox.
//!
//! Everything that needs a right happens before the first client is heard, in this order: command line, image,
//! socket, sandbox. Afterwards the process has descriptors and nothing else.

mod options;

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use options::Options;
use strata_sandbox::{Role, Spec, close_inherited, disabled, isolate, remove_at_end};
use strata_vhost_blk::device::Block;
use strata_vhost_blk::disk::Disk;
use strata_vhost_blk::image::Image;
use strata_virtio::session::{ConfigChange, Endpoint, serve};

/// What the conventions ask `--print-capabilities` to say (QEMU docs/interop/vhost-user.rst).
const CAPABILITIES: &str = r#"{"type":"block","features":["read-only","blk-file"]}"#;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
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
    close_inherited(options.fd.as_slice());
    let sandboxed = !options.no_sandbox;
    let image = Image::open(&image)?;
    let endpoint = match (options.fd, &options.socket_path) {
        (Some(fd), _) => Endpoint::inherit(fd)?,
        (None, Some(path)) => {
            let endpoint = Endpoint::listen(path)?;
            if sandboxed {
                remove_at_end(path, Role::Blk)?;
            }
            endpoint
        }
        (None, None) => anyhow::bail!("no socket"),
    };
    let isolated = if sandboxed {
        Some(isolate(Spec::new(Role::Blk))?)
    } else {
        disabled(Role::Blk);
        None
    };
    let stop = termination()?;
    let disk = Disk::new(image, options.engine(), usize::from(options.num_queues), &options.serial)?;
    announce(&disk, options);
    let mut device = Block::new(disk, options.num_queues, options.tuning());
    if let Some(isolated) = isolated {
        isolated.lock()?;
    }
    let served = serve(endpoint, &mut device, &stop, &ConfigChange::default());
    if let (false, Some(path)) = (sandboxed, &options.socket_path) {
        remove(path);
    }
    served?;
    Ok(())
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

fn announce(disk: &Disk, options: &Options) {
    let image = &disk.image;
    tracing::info!(
        "{}: {} MiB{}, {}, {} queue(s), {}",
        disk.name(),
        image.geometry().capacity / 2048,
        if image.read_only() { ", read-only" } else { "" },
        if image.direct().is_some() { "direct I/O" } else { "page cache" },
        options.num_queues,
        if disk.rings.is_empty() { "system calls" } else { "io_uring" },
    );
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("{} stays behind: {error}", path.display());
    }
}
