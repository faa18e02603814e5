//! The owner: takes events one at a time and decides what becomes of the machine.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, SyncSender};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use strata_config::Ready;
use strata_config::WhenLost;
use strata_ipc::{MachineState, Refused};
use strata_sandbox::Namespaces;

use super::board::{Board, Keep};
use super::parts::Parts;
use super::shared::Shared;
use super::terminals::Terminals;
use super::{Arrival, Change, MachineError, Member, Said, backends, ready, signals};
use crate::control::{self, Facts, Remote};
use crate::frontend::Hook;
use crate::kvm::kick;
use crate::kvm::run::End;
use crate::memory::Ram;
use crate::pci::{PciDevice, Shadow};
use crate::x86::cmdline;

/// How long a guest that panicked may go on: to print its last words, or to reset itself if it said it would.
const LAST_WORDS: Duration = Duration::from_secs(2);
const LATE_RESET: Duration = Duration::from_secs(10);

/// What happens to a machine.
#[derive(Debug)]
pub enum Event {
    /// The guest reset itself. Its vCPUs stand.
    Reset,
    /// The guest powered off. Its vCPUs stand.
    PowerOff,
    /// The guest's kernel panicked.
    Panicked {
        /// It goes on into a crash kernel.
        crash_kernel: bool,
    },
    /// A vCPU stopped by itself.
    VcpuEnded {
        /// Which.
        index: u8,
        /// Why.
        end: End,
    },
    /// A backend is lost or back.
    Backends,
    /// The guest has let go of devices in these slots, as it was asked to.
    LetGo(u32),
    /// The backend of a device that is to be plugged in has answered, or will not do.
    Arrived(Box<Arrival>),
    /// Somebody wants the machine to end.
    Signal(Signal),
    /// Somebody asks and waits for no answer.
    Asked(Command),
    /// The guest says how it is.
    Guest(Said),
    /// Somebody asks over the control socket, and waits for the answer.
    Command(Command, SyncSender<Result<(), Refused>>),
    /// The same, for a device to come or go.
    Change(Change, SyncSender<Result<(), Refused>>),
}

/// What can be asked for over the control socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stop the vCPUs.
    Pause,
    /// Let them run.
    Resume,
    /// Press the power button.
    PowerOff,
    /// Press the power button, and start again when the guest is off; reset it if it does not heed.
    Restart,
    /// Reset the machine.
    Reboot,
    /// End at once.
    Quit,
}

/// How a machine fails while it runs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The guest's kernel gave up.
    #[error("the guest panicked")]
    Panicked,
    /// A vCPU met a triple fault.
    #[error("the guest crashed: vCPU {index} met a triple fault; {place}")]
    TripleFault {
        /// Which vCPU.
        index: u8,
        /// Its registers.
        place: String,
    },
    /// KVM cannot go on.
    #[error("vCPU {index} failed: {why}")]
    Vcpu {
        /// Which vCPU.
        index: u8,
        /// What KVM said.
        why: String,
    },
    /// It was ended from outside before the guest powered off.
    #[error("ended by {0} before the guest powered off")]
    Killed(&'static str),
    /// The guest did not heed the power button.
    #[error("the guest did not power off within {} s", .0.as_secs())]
    Stubborn(Duration),
    /// A vCPU does not leave a device.
    #[error("a vCPU hangs inside a device and cannot be stopped")]
    Hung,
}

/// How a life of the board ends.
enum Outcome {
    Again,
    Well,
    Badly(Failure),
}

/// The machine.
pub(super) struct Life {
    pub(super) parts: Parts,
    pub(super) ram: Ram,
    shadow: Arc<Shadow>,
    terminals: Terminals,
    pub(super) devices: Vec<PciDevice>,
    pub(super) events: Sender<Event>,
    inbox: Receiver<Event>,
    pub(super) shared: Arc<Shared>,
    // When patience with the guest ends, and what it ends as.
    deadline: Option<(Instant, Failure)>,
    panicked: bool,
    asked_to_end: bool,
    /// Tells this of backends that are lost or back.
    pub(super) hook: Hook,
    /// How many devices were to be plugged in.
    pub(super) attempts: u64,
    /// The vCPUs stand because a backend is gone.
    pub(super) held: bool,
    // The guest was told to power off in order to boot again.
    comes_back: bool,
}

impl Life {
    /// Connects the backends and starts everything that is not a vCPU.
    /// `manager`: whether a service manager runs this.
    pub(super) fn new(
        mut parts: Parts,
        ram: Ram,
        shadow: Arc<Shadow>,
        manager: Namespaces,
    ) -> Result<Self, MachineError> {
        let thread = || MachineError::system("start a thread");
        kick::install().map_err(MachineError::system("install a signal handler"))?;
        let (events, inbox) = mpsc::channel();
        signals::watch(events.clone(), manager).map_err(thread())?;
        let (terminals, console) =
            Terminals::new(parts.console.take(), parts.serial.take()).map_err(thread())?;
        let told = events.clone();
        let hook = Hook(Arc::new(move || drop(told.send(Event::Backends))));
        let ready = parts.machine.ready;
        let shared = Arc::new(Shared::new(std::mem::take(&mut parts.notify), ready));
        let facts = Facts {
            name: parts.machine.name.to_string(),
            cpus: parts.machine.cpus.into(),
            memory: ram.size,
            backing: ram.backing.to_string(),
        };
        // Before a backend is waited for: the launcher asks whether one that has died was ever reached.
        let remote = Remote::new(facts, Arc::clone(&shared), events.clone(), terminals.main_hub());
        if let Some(listener) = parts.control.take() {
            control::serve(listener, remote).map_err(thread())?;
        }
        let backends = backends::connect(&parts.backends, &ram.memory, &hook)?;
        let (devices, handles): (Vec<_>, Vec<_>) = backends.into_iter().unzip();
        let notify = (ready == Ready::Guest).then(|| ready::device(events.clone()).map_err(thread()));
        // The console comes first: its place does not depend on how many disks there are. The one for readiness comes
        // last, so that it moves no other.
        let devices = console.into_iter().chain(devices).chain(notify.transpose()?).collect();
        handles.into_iter().for_each(|handle| shared.devices.add(Member::served(handle)));
        Ok(Self {
            parts,
            ram,
            shadow,
            terminals,
            devices,
            events,
            inbox,
            shared,
            deadline: None,
            panicked: false,
            asked_to_end: false,
            hook,
            attempts: 0,
            held: false,
            comes_back: false,
        })
    }

    /// Lives until the machine ends.
    pub(super) fn run(mut self) -> Result<(), MachineError> {
        loop {
            let board = self.build()?;
            let outcome = self.live(&board);
            self.shared.set_state(MachineState::Stopping);
            let left = board.dismantle();
            match (outcome, left) {
                (Outcome::Again, Some(left)) => self.devices = left,
                (outcome, _) => {
                    self.terminals.flush();
                    let failure = match outcome {
                        Outcome::Well => {
                            self.shared.say_goodbye("the guest is off");
                            return Ok(());
                        }
                        Outcome::Badly(failure) => failure,
                        Outcome::Again => Failure::Hung,
                    };
                    self.shared.say_goodbye(&failure.to_string());
                    return Err(failure.into());
                }
            }
            tracing::info!("the guest reboots");
            self.shared.count_reboot();
            // What the old life still had to say does not concern the next.
            self.drain();
            self.forget_leaving();
        }
    }

    fn build(&mut self) -> Result<Board, MachineError> {
        let devices = std::mem::take(&mut self.devices);
        self.shared.set_state(MachineState::Booting);
        (self.deadline, self.panicked, self.comes_back) = (None, false, false);
        let keep = Keep {
            parts: &self.parts,
            ram: &self.ram,
            shadow: &self.shadow,
            serial: self.terminals.line(),
            events: &self.events,
        };
        let (board, meters) = Board::build(&keep, devices)?;
        *self.shared.meters() = meters;
        self.note_slots(&board);
        if self.held {
            self.shared.set_state(MachineState::Paused);
        } else {
            board.open();
            self.shared.set_state(MachineState::Running);
        }
        Ok(board)
    }

    fn drain(&mut self) {
        let mut kept = Vec::new();
        while let Ok(event) = self.inbox.try_recv() {
            if !of_the_guest(&event) {
                kept.push(event);
            }
        }
        for event in kept {
            let _ = self.events.send(event);
        }
    }

    fn live(&mut self, board: &Board) -> Outcome {
        loop {
            let outcome = match self.next() {
                Some(event) => self.handle(event, board),
                None if self.comes_back => {
                    tracing::warn!("the guest does not power off; it is reset");
                    Some(Outcome::Again)
                }
                None => self.deadline.take().map(|(_, failure)| Outcome::Badly(failure)),
            };
            if let Some(outcome) = outcome {
                return outcome;
            }
        }
    }

    /// The next event; `None`: patience with the guest has ended. This thread is the one that everything depends on, so
    /// it is the one that says that the machine lives.
    fn next(&self) -> Option<Event> {
        let watched = self.shared.watched();
        loop {
            let left = self.deadline.as_ref().map(|(end, _)| end.saturating_duration_since(Instant::now()));
            let event = match left.into_iter().chain(watched).min() {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => self.inbox.recv_timeout(wait),
            };
            if watched.is_some() {
                self.shared.tell_alive();
            }
            match event {
                Ok(event) => return Some(event),
                Err(RecvTimeoutError::Timeout)
                    if left.is_none_or(|left| watched.is_some_and(|it| it < left)) => {}
                Err(_) => return None,
            }
        }
    }

    fn handle(&mut self, event: Event, board: &Board) -> Option<Outcome> {
        match event {
            Event::Reset if !self.parts.machine.no_reboot => Some(Outcome::Again),
            Event::Reset if self.panicked => Some(Outcome::Badly(Failure::Panicked)),
            Event::PowerOff if self.comes_back && !self.asked_to_end => Some(Outcome::Again),
            Event::Reset | Event::PowerOff => Some(Outcome::Well),
            Event::Panicked { crash_kernel: true } => {
                tracing::warn!("the guest panicked and goes on into its crash kernel");
                None
            }
            Event::Panicked { crash_kernel: false } => {
                tracing::error!("the guest panicked");
                (self.panicked, self.comes_back) = (true, false);
                let patience = match cmdline::panic_timeout(&self.parts.machine.cmdline) {
                    0 => LAST_WORDS,
                    seconds => LATE_RESET + Duration::from_secs(seconds.max(0).unsigned_abs()),
                };
                self.deadline = Some((Instant::now() + patience, Failure::Panicked));
                None
            }
            Event::VcpuEnded { index, end } => Some(Outcome::Badly(match end {
                End::TripleFault(place) => Failure::TripleFault { index, place },
                End::Failed(why) => Failure::Vcpu { index, why },
                End::Halted | End::SentHome => Failure::Vcpu { index, why: "it halted for good".to_owned() },
            })),
            Event::Backends => {
                self.hold(board);
                None
            }
            Event::LetGo(slots) => {
                self.let_go(slots, board);
                None
            }
            Event::Arrived(arrival) => {
                self.arrived(*arrival, board);
                None
            }
            Event::Change(change, reply) => {
                self.answer(change, &reply, board);
                None
            }
            Event::Signal(signal) => self.signal(signal, board),
            Event::Asked(command) => self.obey(command, board).1,
            Event::Guest(said) => {
                self.shared.hear(&said);
                None
            }
            Event::Command(command, reply) => {
                let (answer, outcome) = self.obey(command, board);
                // Whoever asked may have gone.
                let _ = reply.send(answer);
                outcome
            }
        }
    }

    /// A backend is lost or back: the vCPUs stand, or run again, if the machine file wants that.
    pub(super) fn hold(&mut self, board: &Board) {
        let lost = self.shared.devices.is_one_lost();
        let wanted = self.parts.machine.backend.lost == WhenLost::Pause && lost;
        if wanted && !self.held && self.shared.state() == MachineState::Running {
            if board.close() {
                tracing::warn!("the vCPUs stand until all backends are back");
                self.held = true;
                self.shared.set_state(MachineState::Paused);
            } else {
                board.open();
                tracing::warn!(
                    "a vCPU does not leave a device it is in; the guest runs on without a backend"
                );
            }
        } else if !lost && std::mem::take(&mut self.held) {
            board.open();
            self.shared.set_state(MachineState::Running);
        }
    }

    fn signal(&mut self, signal: Signal, board: &Board) -> Option<Outcome> {
        if self.asked_to_end {
            return Some(Outcome::Badly(Failure::Killed(signal.as_str())));
        }
        tracing::info!("{signal}: pressing the power button");
        (self.asked_to_end, self.comes_back, self.held) = (true, false, false);
        if self.shared.state() == MachineState::Paused {
            // A guest that stands cannot power off.
            board.open();
            self.shared.set_state(MachineState::Running);
        }
        board.press_power_button();
        let patience = self.parts.machine.stop_timeout;
        self.deadline.get_or_insert((Instant::now() + patience, Failure::Stubborn(patience)));
        None
    }

    fn obey(&mut self, command: Command, board: &Board) -> (Result<(), Refused>, Option<Outcome>) {
        let mut answer = Ok(());
        let mut outcome = None;
        match command {
            Command::Pause => {
                // From here on it stands because it was asked to, whatever becomes of backends.
                self.held = false;
                if board.close() {
                    self.shared.set_state(MachineState::Paused);
                } else {
                    board.open();
                    answer = Err(Refused::new("a vCPU does not leave a device it is in; still running"));
                }
            }
            Command::Resume => {
                self.held = false;
                board.open();
                self.shared.set_state(MachineState::Running);
            }
            Command::PowerOff | Command::Restart if self.shared.state() == MachineState::Paused => {
                answer = Err(Refused::new("the machine is paused; resume it first"));
            }
            Command::PowerOff => board.press_power_button(),
            Command::Restart if self.asked_to_end => {
                answer = Err(Refused::new("the machine is ending"));
            }
            Command::Restart => {
                tracing::info!("pressing the power button, to start again");
                self.comes_back = true;
                board.press_power_button();
                let patience = self.parts.machine.stop_timeout;
                self.deadline.get_or_insert((Instant::now() + patience, Failure::Stubborn(patience)));
            }
            Command::Reboot => outcome = Some(Outcome::Again),
            Command::Quit => outcome = Some(Outcome::Well),
        }
        (answer, outcome)
    }
}

/// Whether it is about a guest that may be no more.
fn of_the_guest(event: &Event) -> bool {
    match event {
        Event::Reset | Event::PowerOff | Event::Panicked { .. } | Event::VcpuEnded { .. } => true,
        Event::Guest(_) | Event::LetGo(_) => true,
        Event::Signal(_) | Event::Asked(_) | Event::Command(..) | Event::Change(..) => false,
        Event::Backends | Event::Arrived(_) => false,
    }
}

#[cfg(test)]
#[path = "life_test.rs"]
pub(super) mod life_test;
