//! One backend's lives: started, found dead or hung, started again, replaced by another version.
//!
//! ```text
//!              died: judged, then RestartDue after a wait (restarts.rs)
//!            +-----------------------------------------------------+
//!            v                                                     |
//!         running --hung: SIGKILL---------------------------> dead-+
//!            |  replace: SIGTERM, SIGKILL when it takes too long    ^
//!            +--> leaving --died--> the next program runs, on trial-+ (its death is told to who replaced it)
//! ```
//! One whose device is to go (`devices.rs`) is not started again.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use strata_ipc::{Client, ClientError, DeviceState};
use tokio::sync::oneshot;

use super::pulse::Sign;
use super::record::{self, Record};
use super::{ANSWER, Event, Failure, Replaced, State, Supervisor};
use crate::attach::Attachment;
use crate::child::{self, Death, Program, Running};
use crate::plan::Planned;
use crate::restarts::Restarts;
use crate::run_dir;
use crate::say::say;
use crate::upgrade;

/// How long a backend that is replaced may take to finish what it holds, on a disk that may be slow. What a killed one
/// held is done again.
pub(super) const DRAIN: Duration = Duration::from_secs(10);

/// A backend and its process, if it has one.
pub(super) struct Backend {
    pub(super) program: Program,
    pub(super) running: Option<Running>,
    since: Instant,
    restarts: Restarts,
    /// Whether the vmm was ever seen to have reached it.
    served: bool,
    record: record::Entry,
    next: Option<Next>,
    /// Who replaced or plugged it in, and wants to know if it dies.
    trial: Option<oneshot::Sender<String>>,
    /// Its device is to go.
    pub(super) ending: Option<Ending>,
    /// What it is plugged into, for as long as there is a device.
    _attachment: Option<Attachment>,
}

/// A process that is not started again.
pub(super) struct Ending {
    /// The device is forgotten once it has ended.
    pub(super) forget: bool,
    /// Who waits for its end.
    pub(super) done: Option<oneshot::Sender<()>>,
}

/// What comes when the running one has ended.
struct Next {
    program: Program,
    asked: Instant,
    killed: bool,
    done: oneshot::Sender<Result<Replaced, String>>,
}

impl Backend {
    pub(super) fn new((program, attachment): Planned) -> Self {
        Self {
            program,
            running: None,
            since: Instant::now(),
            restarts: Restarts::default(),
            served: false,
            record: record::Entry::default(),
            next: None,
            trial: None,
            ending: None,
            _attachment: attachment,
        }
    }

    /// One whose device the guest does not have yet.
    pub(super) fn on_trial(self, tell: oneshot::Sender<String>) -> Self {
        Self { trial: Some(tell), ..self }
    }

    /// The guest has its device.
    pub(super) fn settle(&mut self) {
        (self.trial, self.served) = (None, true);
    }

    /// Kills it, for good unless its device stays after all.
    pub(super) fn condemn(&mut self, done: oneshot::Sender<()>) {
        let waits = self.running.as_ref().map(|running| running.signal(Signal::SIGKILL)).is_some();
        let done = if waits {
            Some(done)
        } else {
            let _ = done.send(());
            None
        };
        self.ending = Some(Ending { forget: false, done });
    }
}

impl Supervisor<'_> {
    /// Takes in another one; its number.
    pub(super) fn add(&mut self, backend: Backend) -> usize {
        let index = self.next;
        self.next += 1;
        self.backends.insert(index, backend);
        index
    }

    pub(super) fn start_backend(&mut self, index: usize) -> Result<(), Failure> {
        let sender = self.sender.clone();
        let Some(backend) = self.backends.get_mut(&index) else { return Ok(()) };
        let running =
            child::spawn(&backend.program, move |death| drop(sender.send(Event::BackendDied(index, death))))?;
        let (id, pid) = (backend.program.id.clone(), running.pid);
        backend.running = Some(running);
        backend.since = Instant::now();
        backend.record.waits_milliseconds = None;
        self.roster.set(&id, Some(pid));
        self.note_pid(&id, pid);
        self.note();
        Ok(())
    }

    /// Leaves what is known of the backends for `strata ps`.
    pub(super) fn note(&self) {
        let entry = |backend: &Backend| (backend.program.id.clone(), backend.record.clone());
        let record: Record = self.backends.values().map(entry).collect();
        if let Err(error) = record::write(self.run_dir.path(), &record) {
            say(format_args!("strata: cannot note the backends' state: {error}"));
        }
    }

    pub(super) fn find(&mut self, id: &str) -> Option<(usize, &mut Backend)> {
        let mut all = self.backends.iter_mut().map(|(index, backend)| (*index, backend));
        all.find(|(_, backend)| backend.program.id == id)
    }

    /// A dead backend is started again if the vmm ever reached it. The vmm knows.
    pub(super) fn backend_died(&mut self, index: usize, death: Death) {
        let Some(backend) = self.backends.get_mut(&index) else { return };
        backend.running = None;
        let id = backend.program.id.clone();
        self.roster.set(&id, None);
        let Some(backend) = self.backends.get_mut(&index) else { return };
        if let Some(ending) = &mut backend.ending {
            let (forget, done) = (ending.forget, ending.done.take());
            if forget {
                self.forget(index);
            }
            if let Some(done) = done {
                let _ = done.send(());
            }
            return;
        }
        if let Some(next) = backend.next.take() {
            return self.put_in_place(index, next);
        }
        if let Some(trial) = backend.trial.take()
            && trial.send(death.describe()).is_ok()
        {
            return;
        }
        if backend.served {
            drop(self.sender.send(Event::Judged(index, death, true)));
            return;
        }
        let control = run_dir::control(self.run_dir.path());
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let status = async { Client::connect(&control, ANSWER).await?.status().await };
            let served = match status.await {
                Ok(status) => {
                    let device = status.devices.iter().find(|device| device.id == id);
                    device.is_some_and(|it| matches!(it.state, DeviceState::Connected | DeviceState::Lost))
                }
                // A vmm too busy to answer is past its start; one without a socket is not.
                Err(ClientError::Timeout { .. }) => true,
                Err(_) => false,
            };
            let _ = sender.send(Event::Judged(index, death, served));
        });
    }

    pub(super) fn judged(&mut self, index: usize, death: &Death, served: bool) -> Result<(), Failure> {
        let Some(backend) = self.backends.get_mut(&index) else { return Ok(()) };
        if matches!(self.state, State::Killing { .. }) || backend.ending.is_some() {
            return Ok(());
        }
        let (id, program, how) = (backend.program.id.clone(), backend.program.name(), death.describe());
        if !served && !backend.served && backend.restarts.total() == 0 {
            return Err(Failure::Backend { id, program, how });
        }
        backend.served |= served;
        let delay = backend.restarts.died(backend.since.elapsed());
        if delay.is_zero() {
            say(format_args!("strata: {id}: {program} died ({how}); starting it again"));
        } else {
            let seconds = delay.as_secs_f32();
            say(format_args!(
                "strata: {id}: {program} died ({how}) soon after its start; starting it again in {seconds} s"
            ));
        }
        backend.record.restarts = backend.restarts.total();
        backend.record.last_death = Some(how);
        backend.record.waits_milliseconds = u64::try_from(delay.as_millis()).ok();
        let sender = self.sender.clone();
        if delay.is_zero() {
            self.restart(index);
            return Ok(());
        }
        self.note();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = sender.send(Event::RestartDue(index));
        });
        Ok(())
    }

    /// Starts it again, unless it has been meanwhile.
    pub(super) fn restart(&mut self, index: usize) {
        let Some(backend) = self.backends.get_mut(&index) else { return };
        if backend.running.is_some()
            || backend.ending.is_some()
            || matches!(self.state, State::Killing { .. })
        {
            return;
        }
        if let Err(failure) = self.start_backend(index) {
            let Some(backend) = self.backends.get_mut(&index) else { return };
            let (id, delay) = (backend.program.id.clone(), backend.restarts.died(Duration::ZERO));
            let delay = delay.max(Duration::from_millis(100));
            let seconds = delay.as_secs_f32();
            let why = anyhow::Error::from(failure);
            say(format_args!("strata: {id}: {why:#}; trying again in {seconds} s"));
            backend.record.last_death = Some(format!("{why:#}"));
            backend.record.waits_milliseconds = u64::try_from(delay.as_millis()).ok();
            self.note();
            let sender = self.sender.clone();
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = sender.send(Event::RestartDue(index));
            });
        }
    }

    /// A process that hangs is killed; the rest is as after any death.
    pub(super) fn hung(&mut self, id: &str, pid: u32, sign: Sign) {
        let Some((_, backend)) = self.find(id) else { return };
        let Some(running) = backend.running.as_ref().filter(|running| running.pid == pid) else { return };
        running.signal(Signal::SIGKILL);
        backend.record.hangs = backend.record.hangs.saturating_add(1);
        let (program, does) = (backend.program.name(), sign.as_str());
        say(format_args!("strata: {id}: {program} (process {pid}) hangs: it {does}; killing it"));
        self.note();
    }

    /// Hands a request to a task that asks for one replacement after the other.
    pub(super) fn upgrade(&mut self, request: upgrade::Request) {
        if self.state != State::Running {
            return request.refuse("the machine is ending");
        }
        let programs = self.backends.values().map(|backend| backend.program.clone()).collect();
        let (folder, sender) = (self.run_dir.path().to_owned(), self.sender.clone());
        tokio::spawn(async move { upgrade::task::run(&folder, programs, sender, request).await });
    }

    /// Ends the running process; the next program takes its place when it has.
    pub(super) fn replace(
        &mut self,
        id: &str,
        program: Program,
        done: oneshot::Sender<Result<Replaced, String>>,
    ) {
        let sender = self.sender.clone();
        let Some((index, backend)) = self.find(id) else {
            drop(done.send(Err(format!("there is no backend {id}"))));
            return;
        };
        if backend.next.is_some() {
            drop(done.send(Err(format!("{id} is being replaced already"))));
            return;
        }
        let next = Next { program, asked: Instant::now(), killed: false, done };
        let Some(running) = &backend.running else { return self.put_in_place(index, next) };
        running.signal(Signal::SIGTERM);
        let (id, pid) = (id.to_owned(), running.pid);
        backend.next = Some(next);
        backend.trial = None;
        tokio::spawn(async move {
            tokio::time::sleep(DRAIN).await;
            let _ = sender.send(Event::DrainOver(id, pid));
        });
    }

    pub(super) fn drain_over(&mut self, id: &str, pid: u32) {
        let Some((_, backend)) = self.find(id) else { return };
        let Some(running) = backend.running.as_ref().filter(|running| running.pid == pid) else { return };
        if let Some(next) = &mut backend.next {
            running.signal(Signal::SIGKILL);
            next.killed = true;
        } else if backend.ending.is_some() {
            running.signal(Signal::SIGKILL);
        }
    }

    fn put_in_place(&mut self, index: usize, next: Next) {
        let Some(backend) = self.backends.get_mut(&index) else { return };
        let old = std::mem::replace(&mut backend.program, next.program);
        let drained = next.asked.elapsed();
        let (tell, death) = oneshot::channel();
        backend.trial = Some(tell);
        backend.restarts = Restarts::default();
        backend.record.upgrades = backend.record.upgrades.saturating_add(1);
        if let Err(failure) = self.start_backend(index) {
            let why = format!("{:#}", anyhow::Error::from(failure));
            if let Some(backend) = self.backends.get_mut(&index) {
                backend.program = old;
                backend.trial = None;
            }
            self.restart(index);
            drop(next.done.send(Err(why)));
            return;
        }
        if next.done.send(Ok(Replaced { drained, killed: next.killed, death })).is_err()
            && let Some(backend) = self.backends.get_mut(&index)
        {
            backend.trial = None;
        }
    }
}
