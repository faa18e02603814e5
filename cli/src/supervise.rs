//! The machine's processes from their start to their end.
//!
//! ```text
//!            signal, Ctrl-] q              time-out, second signal, Ctrl-] k
//!  Running ───────────────────> Stopping ───────────────────> Killing
//!     │ vmm ends                   │ vmm ends                     │ vmm ends
//!     └────────────────────────────┴──────────────> ended: backends SIGTERM, then SIGKILL; all reaped
//! ```
//! A backend's death does not change the state: it is started again on the same listener, where the vmm's
//! reconnect finds it, and for ever (`restarts.rs`). One that hangs is killed first (`supervise/pulse.rs` says when).
//! One that fails before the vmm ever reached it ends the machine.

mod backend;
mod devices;
mod pulse;
pub(crate) mod record;
mod vitals;
mod watch;

use std::collections::BTreeMap;
use std::time::Duration;

use nix::sys::signal::Signal;
use strata_config::Machine;
use strata_ipc::{Client, ClientError};
use tokio::sync::{mpsc, oneshot};

use self::backend::Backend;
use self::pulse::Sign;
use self::watch::Roster;
use crate::child::{self, Death, Program, Running, StartError};
use crate::device;
use crate::escape::Key;
use crate::launcher;
use crate::orphans;
use crate::plan::Planned;
use crate::run_dir::{self, RunDir};
use crate::say::say;
use crate::signals::{self, WatchError};
use crate::upgrade;

/// How long a backend may take to end when told to.
const GRACE: Duration = Duration::from_secs(3);

/// How long the vmm may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Why the machine did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Signals(#[from] WatchError),
    #[error("{id}: {program} failed: {how}")]
    Backend { id: String, program: String, how: String },
    #[error("the machine failed: vmm: {0}")]
    Vmm(String),
    #[error("the guest did not power off within {} s; killed", .0.as_secs_f32())]
    NotStopped(Duration),
    #[error("killed before the guest had powered off")]
    Killed,
}

/// Something happened.
#[derive(Debug)]
pub(crate) enum Event {
    Key(Key),
    Signal,
    VmmDied(Death),
    BackendDied(usize, Death),
    /// Whether the dead backend had ever served.
    Judged(usize, Death, bool),
    RestartDue(usize),
    /// A backend's process does nothing although it should.
    Hung(String, u32, Sign),
    /// Somebody asks for other versions of backends.
    Upgrade(upgrade::Request),
    /// A backend is to be replaced by this program; it is answered once that runs.
    Replace(String, Program, oneshot::Sender<Result<Replaced, String>>),
    /// Somebody asks for a device less or more.
    Device(device::Request),
    /// The process of this device is to end, and is not started again; who asks is told once it has ended.
    Condemn(String, oneshot::Sender<()>),
    /// It may go on after all.
    Pardon(String),
    /// The device is no more; who asks is told once its process has ended.
    Remove(String, oneshot::Sender<()>),
    /// A new device is in service.
    Plugged(String),
    /// A backend that is to end has had its time.
    DrainOver(String, u32),
    /// The vmm was asked to press the power button.
    Pressed(Result<(), ClientError>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Stopping,
    Killing { timed_out: bool },
}

/// How a backend was replaced.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// From being told to end to its end.
    pub(crate) drained: Duration,
    /// It did not end by itself and was killed.
    pub(crate) killed: bool,
    /// Told of the new process's death, if it dies before this is dropped.
    pub(crate) death: oneshot::Receiver<String>,
}

/// The launcher's view of a running machine.
pub(crate) struct Supervisor<'a> {
    /// As it is now: devices come and go.
    machine: Machine,
    run_dir: &'a RunDir,
    /// By a number that is never given again.
    backends: BTreeMap<usize, Backend>,
    next: usize,
    vmm: Option<Running>,
    state: State,
    deadline: Option<tokio::time::Instant>,
    events: mpsc::UnboundedReceiver<Event>,
    sender: mpsc::UnboundedSender<Event>,
    roster: Roster,
    watching: bool,
}

impl<'a> Supervisor<'a> {
    /// Nothing is started yet. The sender is for keys.
    pub(crate) fn new(machine: &Machine, run_dir: &'a RunDir) -> (Self, mpsc::UnboundedSender<Event>) {
        let (sender, events) = mpsc::unbounded_channel();
        let keys = sender.clone();
        let this = Self {
            machine: machine.clone(),
            run_dir,
            backends: BTreeMap::new(),
            next: 0,
            vmm: None,
            state: State::Running,
            deadline: None,
            events,
            sender,
            roster: Roster::default(),
            watching: false,
        };
        (this, keys)
    }

    /// Starts everything and stays until nothing of it is left.
    pub(crate) async fn run(mut self, backends: Vec<Planned>, vmm: Program) -> Result<(), Failure> {
        orphans::adopt();
        let ended = match self.start(backends, vmm) {
            Ok(()) => self.attend().await,
            Err(failure) => Err(failure),
        };
        self.end_all().await;
        orphans::end_all().await;
        ended
    }

    fn start(&mut self, backends: Vec<Planned>, vmm: Program) -> Result<(), Failure> {
        let sender = self.sender.clone();
        signals::watch(move || sender.send(Event::Signal).is_ok())?;
        for planned in backends {
            let index = self.add(Backend::new(planned));
            self.start_backend(index)?;
        }
        let sender = self.sender.clone();
        let running = child::spawn(&vmm, move |death| drop(sender.send(Event::VmmDied(death))))?;
        self.note_pid("vmm", running.pid);
        self.vmm = Some(running);
        self.watch();
        let sender = self.sender.clone();
        let ask = move |request| {
            let event = match request {
                launcher::Request::Upgrade(request) => Event::Upgrade(request),
                launcher::Request::Device(request) => Event::Device(request),
            };
            sender.send(event).is_ok()
        };
        if let Err(error) = launcher::serve(self.run_dir.path(), ask) {
            say(format_args!(
                "strata: `strata upgrade` and `strata device` will not reach this machine: {error:#}"
            ));
        }
        Ok(())
    }

    fn note_pid(&self, id: &str, pid: u32) {
        if let Err(error) = self.run_dir.write_pid(id, pid) {
            say(format_args!("strata: cannot write the pid file of {id}: {error}"));
        }
    }

    /// Until the vmm ends or a backend cannot be helped.
    async fn attend(&mut self) -> Result<(), Failure> {
        loop {
            let event = match self.deadline {
                Some(deadline) => match tokio::time::timeout_at(deadline, self.events.recv()).await {
                    Ok(event) => event,
                    Err(_) => {
                        self.kill(true);
                        continue;
                    }
                },
                None => self.events.recv().await,
            };
            match event {
                // Cannot happen while `self.sender` lives; if it did, nobody could tell us anything any more.
                None => return Err(Failure::Killed),
                Some(Event::VmmDied(death)) => return self.vmm_died(&death),
                Some(Event::Signal | Event::Key(Key::Quit)) => self.stop(),
                Some(Event::Key(Key::Kill)) => self.kill(false),
                Some(Event::Key(Key::Asked | Key::Detach)) | Some(Event::Pressed(Ok(()))) => {}
                Some(Event::Pressed(Err(error))) if self.state == State::Stopping => {
                    say(format_args!("strata: cannot press the power button: {error}; ending the machine"));
                    self.kill(false);
                }
                Some(Event::Pressed(Err(_))) => {}
                Some(Event::BackendDied(index, death)) => self.backend_died(index, death),
                Some(Event::Judged(index, death, served)) => self.judged(index, &death, served)?,
                Some(Event::RestartDue(index)) => self.restart(index),
                Some(Event::Hung(id, pid, sign)) => self.hung(&id, pid, sign),
                Some(Event::Upgrade(request)) => self.upgrade(request),
                Some(Event::Replace(id, program, done)) => self.replace(&id, program, done),
                Some(Event::DrainOver(id, pid)) => self.drain_over(&id, pid),
                Some(Event::Device(request)) => self.device(request),
                Some(Event::Condemn(id, done)) => self.condemn(&id, done),
                Some(Event::Pardon(id)) => self.pardon(&id),
                Some(Event::Remove(id, done)) => self.remove(&id, done),
                Some(Event::Plugged(id)) => self.plugged(&id),
            }
        }
    }

    fn vmm_died(&mut self, death: &Death) -> Result<(), Failure> {
        self.vmm = None;
        match self.state {
            _ if death.status.success() => Ok(()),
            State::Killing { timed_out: true } => Err(Failure::NotStopped(self.machine.stop_timeout)),
            State::Killing { timed_out: false } => Err(Failure::Killed),
            State::Running | State::Stopping => Err(Failure::Vmm(death.describe())),
        }
    }

    fn stop(&mut self) {
        if self.state != State::Running {
            return self.kill(false);
        }
        self.state = State::Stopping;
        let timeout = self.machine.stop_timeout;
        self.deadline = Some(tokio::time::Instant::now() + timeout);
        say(format_args!(
            "strata: pressing the power button; the guest has {} s, a second signal kills",
            timeout.as_secs_f32()
        ));
        let (control, sender) = (run_dir::control(self.run_dir.path()), self.sender.clone());
        tokio::spawn(async move {
            let press = async { Client::connect(&control, ANSWER).await?.power_off().await };
            let _ = sender.send(Event::Pressed(press.await));
        });
    }

    fn kill(&mut self, timed_out: bool) {
        self.deadline = None;
        self.state = State::Killing { timed_out };
        if let Some(vmm) = &self.vmm {
            vmm.signal(Signal::SIGKILL);
        }
    }

    /// Ends what still runs and waits for it.
    async fn end_all(&mut self) {
        if let Some(vmm) = &self.vmm {
            vmm.signal(Signal::SIGKILL);
        }
        for (signal, patience) in [(Signal::SIGTERM, GRACE), (Signal::SIGKILL, GRACE)] {
            for running in self.backends.values().filter_map(|backend| backend.running.as_ref()) {
                running.signal(signal);
            }
            let deadline = tokio::time::Instant::now() + patience;
            while self.vmm.is_some() || self.backends.values().any(|backend| backend.running.is_some()) {
                match tokio::time::timeout_at(deadline, self.events.recv()).await {
                    Err(_) | Ok(None) => break,
                    Ok(Some(Event::VmmDied(_))) => self.vmm = None,
                    Ok(Some(Event::BackendDied(index, _))) => {
                        if let Some(backend) = self.backends.get_mut(&index) {
                            backend.running = None;
                        }
                    }
                    Ok(Some(_)) => {}
                }
            }
        }
    }
}
