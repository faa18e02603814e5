//! `load-vmm`: takes the place of the vmm under `strata run`, without KVM and guest. It has the vmm's own vhost-user
//! frontends and control socket; in place of a guest's drivers, threads of ours put a verified load on disks and carry
//! the frames of cards between the backend and a tap in another network namespace.
//!
//! In the environment: `LOAD_DIR` (ledgers, reports), `LOAD_TAP` (namespace's path, colon, tap, for the first card),
//! `LOAD_PROXY` (connect to `ID.proxy` in LOAD_DIR instead of the launcher's socket). What is found wrong - a wrong
//! block, an answer that does not come - ends it with exit status 1 and a line that says so.

mod disk;
mod nic;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use strata_config::{DiskSource, Machine};
use strata_faults::Report;
use strata_virtio::memory::Memory;
use strata_vmm::control::{Facts, Remote, serve};
use strata_vmm::frontend::{Handle, Kind, Settings, connect};
use strata_vmm::machine::{Command, Event, Member, Shared};
use strata_vmm::pci::PciDevice;

/// Guest memory of one device.
const MEMORY: u64 = 32 << 20;
/// How long a backend may take at the start; a proxy that breaks connections is asked again within it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the main thread wants of the devices' threads.
#[derive(Debug, Default)]
struct Wanted {
    /// Counts resets asked for.
    resets: AtomicU64,
    /// No more requests; finish.
    stop: AtomicBool,
}

/// A device's thread, at its end.
enum Ended {
    Disk(anyhow::Result<strata_faults::Disk>),
    Nic(anyhow::Result<strata_faults::Nic>),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .with_ansi(false)
        .init();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load-vmm: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    // Signals are for one thread; before there is a second.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let args: Vec<String> = std::env::args().collect();
    let value = |key: &str| args.iter().skip_while(|arg| *arg != key).nth(1).context(key.to_owned());
    let machine = Machine::from_file(Path::new(value("--machine")?))?;
    let run_dir = PathBuf::from(value("--run-dir")?);
    let dir = PathBuf::from(std::env::var_os("LOAD_DIR").context("LOAD_DIR")?);
    let listener = UnixListener::bind(run_dir.join("control.sock")).context("the control socket")?;

    let (ended, ends) = channel();
    let (owner, events) = channel();
    let wanted = Arc::new(Wanted::default());
    let mut handles = Vec::new();
    let mut devices = 0;
    let look = machine.backend.hung_after.map_or(Duration::from_secs(1), |time| time / 4);
    let settings = |id: &str, kind, queues| {
        let proxy = std::env::var_os("LOAD_PROXY").map(|_| dir.join(format!("{id}.proxy")));
        let path = proxy.unwrap_or_else(|| run_dir.join(format!("{id}.sock")));
        let give_up = machine.backend.reset_after;
        Settings { id: id.to_owned(), path, kind, queues, queue_size: 128, give_up, look, hook: None }
    };
    for disk in &machine.disks {
        let DiskSource::File { .. } = disk.source else { bail!("{}: only images", disk.id) };
        let (device, memory, handle) =
            reach(settings(disk.id.as_str(), Kind::Blk, Some(machine.disk_queues(disk))))?;
        handles.push(handle.clone());
        devices += 1;
        let (wanted, ended) = (Arc::clone(&wanted), ended.clone());
        let load = disk::Load::new(disk.id.as_str(), device, memory, &dir)?;
        std::thread::spawn(move || drop(ended.send(Ended::Disk(load.run(&wanted, &handle)))));
    }
    for net in &machine.nets {
        let own = net.source.own().with_context(|| format!("{}: not of our own", net.id))?;
        let kind = Kind::Net { mac: Some(own.mac.bytes()) };
        let (device, memory, handle) = reach(settings(net.id.as_str(), kind, Some(1)))?;
        handles.push(handle.clone());
        devices += 1;
        let tap = std::env::var("LOAD_TAP").context("LOAD_TAP")?;
        let (wanted, ended, id) = (Arc::clone(&wanted), ended.clone(), net.id.to_string());
        std::thread::spawn(move || {
            let run = nic::Load::new(&id, device, memory, &tap).and_then(|load| load.run(&wanted, &handle));
            drop(ended.send(Ended::Nic(run)));
        });
    }
    let facts = Facts {
        name: machine.name.to_string(),
        cpus: machine.cpus.into(),
        memory: machine.memory.size,
        backing: "none: no guest".to_owned(),
    };
    let shared = Arc::new(Shared::default());
    handles.into_iter().for_each(|handle| shared.devices.add(Member::served(handle)));
    serve(listener, Remote::new(facts, shared, owner.clone(), None))?;
    std::thread::spawn(move || watch_signals(signals, &owner));
    let report = attend(&events, &ends, &wanted, devices)?;
    std::fs::write(dir.join("report.json"), serde_json::to_vec_pretty(&report)?)?;
    Ok(())
}

/// Connects, again and again if the connection is broken on the way: only the first connection of a vmm may fail.
fn reach(settings: Settings) -> anyhow::Result<(PciDevice, Arc<Memory>, Handle)> {
    let start = std::time::Instant::now();
    loop {
        let memory = Arc::new(Memory::anonymous(MEMORY)?);
        match connect(settings.clone(), &memory, PATIENCE) {
            Ok((device, handle)) => return Ok((device, memory, handle)),
            Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn watch_signals(signals: SigSet, owner: &Sender<Event>) {
    while let Ok(signal) = signals.wait() {
        if owner.send(Event::Signal(signal)).is_err() {
            return;
        }
    }
}

/// Until it is told to stop and all devices have finished, or one found something wrong.
fn attend(
    events: &Receiver<Event>,
    ends: &Receiver<Ended>,
    wanted: &Wanted,
    mut devices: usize,
) -> anyhow::Result<Report> {
    let mut report = Report::default();
    while devices > 0 {
        match ends.try_recv() {
            Ok(Ended::Disk(disk)) => report.disks.push(disk?),
            Ok(Ended::Nic(nic)) => report.nics.push(nic?),
            Err(_) => {
                match events.recv_timeout(Duration::from_millis(20)) {
                    Ok(Event::Command(command, answer)) => {
                        match command {
                            Command::PowerOff => wanted.stop.store(true, Ordering::Release),
                            Command::Reboot => drop(wanted.resets.fetch_add(1, Ordering::AcqRel)),
                            Command::Quit => bail!("told to quit"),
                            Command::Pause | Command::Resume | Command::Restart => {}
                        }
                        let _ = answer.send(Ok(()));
                    }
                    Ok(Event::Signal(_)) => wanted.stop.store(true, Ordering::Release),
                    _ => {}
                }
                continue;
            }
        }
        devices -= 1;
    }
    Ok(report)
}
