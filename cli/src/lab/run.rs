//! A lab from its start to its end. Each switch and each machine is a `strata` of its own: this one starts them, passes
//! on what they say, and tells them to end.
//!
//! ```text
//!   switches started --> all ready --> machines started --> all ended, or a signal: power buttons, then killed
//!                                                                                 --> switches told to end
//! ```
//! A machine that fails does not end the others; the lab says so at its end. A switch that fails ends the lab.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use serde::Serialize;
use strata_config::Lab;
use tokio::sync::mpsc;

use crate::child::{self, Death, Program, Running};
use crate::orphans;
use crate::run_dir::base;
use crate::say::say;
use crate::signals;
use crate::switch::is_ready;

/// How long a switch may take to be there.
const START: Duration = Duration::from_secs(30);
/// How long a launcher may take to end once it was told to, beyond what its guest may.
const GRACE: Duration = Duration::from_secs(10);

/// Something happened.
#[derive(Debug)]
enum Event {
    Signal,
    SwitchDied(usize, Death),
    MachineDied(usize, Death),
}

struct Part {
    name: String,
    running: Option<Running>,
}

impl Part {
    fn signal(&self, signal: Signal) {
        if let Some(running) = &self.running {
            running.signal(signal);
        }
    }
}

struct Run {
    switches: Vec<Part>,
    machines: Vec<Part>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    failures: Vec<String>,
}

/// Runs a lab to its end.
///
/// # Errors
/// What failed and why, for exit status 1.
pub(crate) fn run(lab: &Lab) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        orphans::adopt();
        let (sender, events) = mpsc::unbounded_channel();
        let mut run =
            Run { switches: Vec::new(), machines: Vec::new(), events, sender, failures: Vec::new() };
        let ended = run.attend(lab).await;
        run.end().await;
        orphans::end_all().await;
        ended?;
        match run.failures.as_slice() {
            [] => Ok(()),
            failures => bail!("{}", failures.join("; ")),
        }
    })
}

/// A `strata` that reads its file from a descriptor.
fn program(id: &str, words: &[&str], file: &impl Serialize) -> anyhow::Result<Program> {
    let memory = memfd_create(c"strata-lab", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?;
    let mut memory = File::from(memory);
    memory.write_all(&serde_json::to_vec(file)?)?;
    let memory: OwnedFd = memory.into();
    let mut args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    args.push(format!("/dev/fd/{}", memory.as_raw_fd()));
    let path: PathBuf = std::env::current_exe().context("our own path is unknown")?;
    Ok(Program { id: id.to_owned(), path, version: None, args, descriptors: vec![Arc::new(memory)] })
}

impl Run {
    async fn attend(&mut self, lab: &Lab) -> anyhow::Result<()> {
        let sender = self.sender.clone();
        signals::watch(move || sender.send(Event::Signal).is_ok())?;
        for (index, switch) in lab.switches.iter().enumerate() {
            let name = switch.name.to_string();
            let program = program(&name, &["switch", "run"], switch)?;
            let sender = self.sender.clone();
            let died = move |death| drop(sender.send(Event::SwitchDied(index, death)));
            let running = child::spawn(&program, died).with_context(|| name.clone())?;
            self.switches.push(Part { name, running: Some(running) });
        }
        if !self.ready(lab).await? {
            return Ok(());
        }
        for (index, machine) in lab.machines.iter().enumerate() {
            let name = machine.name.to_string();
            let program = program(&name, &["run"], machine)?;
            let sender = self.sender.clone();
            let died = move |death| drop(sender.send(Event::MachineDied(index, death)));
            let running = child::spawn_heard(&program, died).with_context(|| name.clone())?;
            self.machines.push(Part { name, running: Some(running) });
        }
        let mut told = 0;
        while self.machines.iter().any(|machine| machine.running.is_some()) {
            match self.events.recv().await {
                None => break,
                Some(Event::Signal) => {
                    told += 1;
                    if told == 1 {
                        say("strata: pressing all power buttons; a second signal kills");
                    }
                    self.machines.iter().for_each(|machine| machine.signal(Signal::SIGTERM));
                }
                Some(Event::SwitchDied(index, death)) => self.switch_died(index, &death)?,
                Some(Event::MachineDied(index, death)) => self.machine_died(index, &death),
            }
        }
        Ok(())
    }

    /// Waits until machines can be plugged in; false if a signal came first.
    async fn ready(&mut self, lab: &Lab) -> anyhow::Result<bool> {
        let base = base();
        let deadline = tokio::time::Instant::now() + START;
        loop {
            let waited_for = lab.switches.iter().find(|switch| !is_ready(&base, &switch.name));
            let Some(switch) = waited_for else { return Ok(true) };
            let look = tokio::time::Instant::now() + Duration::from_millis(20);
            match tokio::time::timeout_at(look, self.events.recv()).await {
                Ok(Some(Event::SwitchDied(index, death))) => self.switch_died(index, &death)?,
                Ok(Some(Event::Signal)) => return Ok(false),
                Ok(_) => {}
                Err(_) if tokio::time::Instant::now() > deadline => {
                    bail!("the switch {} is not there after {} s", switch.name, START.as_secs())
                }
                Err(_) => {}
            }
        }
    }

    fn switch_died(&mut self, index: usize, death: &Death) -> anyhow::Result<()> {
        let Some(switch) = self.switches.get_mut(index) else { return Ok(()) };
        switch.running = None;
        bail!("switch {}: {}", switch.name, death.describe())
    }

    fn machine_died(&mut self, index: usize, death: &Death) {
        let Some(machine) = self.machines.get_mut(index) else { return };
        machine.running = None;
        if death.status.success() {
            say(format_args!("strata: {} has ended", machine.name));
        } else {
            let failure = format!("machine {}: {}", machine.name, death.describe());
            say(format_args!("strata: {failure}"));
            self.failures.push(failure);
        }
    }

    /// Ends what still runs, machines first, and waits for it.
    async fn end(&mut self) {
        for _ in 0..2 {
            // Twice: what presses the power button the first time kills the second.
            self.machines.iter().for_each(|machine| machine.signal(Signal::SIGTERM));
            self.wait(|run| run.machines.iter().any(|machine| machine.running.is_some())).await;
        }
        self.switches.iter().for_each(|switch| switch.signal(Signal::SIGTERM));
        self.wait(|run| run.switches.iter().any(|switch| switch.running.is_some())).await;
        self.machines.iter().chain(&self.switches).for_each(|part| part.signal(Signal::SIGKILL));
        self.wait(|run| run.machines.iter().chain(&run.switches).any(|part| part.running.is_some())).await;
    }

    async fn wait(&mut self, more: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + GRACE;
        while more(self) {
            match tokio::time::timeout_at(deadline, self.events.recv()).await {
                Err(_) | Ok(None) => return,
                Ok(Some(Event::MachineDied(index, _))) => {
                    if let Some(machine) = self.machines.get_mut(index) {
                        machine.running = None;
                    }
                }
                Ok(Some(Event::SwitchDied(index, _))) => {
                    if let Some(switch) = self.switches.get_mut(index) {
                        switch.running = None;
                    }
                }
                Ok(Some(Event::Signal)) => {}
            }
        }
    }
}
