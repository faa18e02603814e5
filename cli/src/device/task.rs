//! One device less or more, step by step; tasks beside the supervisor, which does the ending and starting.
//!
//! ```text
//! unplug: the vmm asks the guest -> the guest lets go -> the vmm has no such device -> the backend ends -> files go
//!         not in time: the guest keeps it, and this is an error; with force the vmm takes it away
//! plug:   the backend runs -> the vmm connects to it and tells the guest
//!         it dies, or will not do: everything goes back
//! ```
//! The vmm's status says how far it is. Each step can be asked for again, so one that was cut off is made good by the next
//! attempt: a device that only the launcher knows of is ended, one that only the vmm knows of is taken away.

use std::path::PathBuf;
use std::time::Duration;

use strata_ipc::{Client, ClientError, DeviceState, DeviceStatus, NewDevice, Unplug};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Report, Request};
use crate::run_dir;
use crate::say::say;
use crate::supervise::Event;

/// How long a guest may take to let go of a device, unless it is said.
const CONSENT: Duration = Duration::from_secs(30);
/// The same before the device is taken away.
const FORCED: Duration = Duration::from_secs(5);
/// How often it is asked meanwhile: one that boots may not hear it the first time.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the vmm may take with what does not depend on its guest: a backend that hangs may have to be waited for.
const TAKEN: Duration = Duration::from_secs(75);
/// How long a new backend may take until the vmm has taken it into service.
const TRIAL: Duration = Duration::from_secs(15);
/// Between two looks at the vmm.
const LOOK: Duration = Duration::from_millis(20);
/// How long the vmm may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The machine, for a task.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) folder: PathBuf,
    pub(crate) supervisor: UnboundedSender<Event>,
}

/// A device whose backend has been started.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) new: NewDevice,
    /// Told of the process's death.
    pub(crate) death: oneshot::Receiver<String>,
}

/// What is to go, and how.
#[derive(Debug)]
pub(crate) struct Going {
    pub(crate) device: String,
    pub(crate) force: bool,
    pub(crate) timeout: Option<Duration>,
    /// Whether the launcher runs its backend.
    pub(crate) ours: bool,
}

/// Takes a device away, and answers.
pub(crate) async fn unplug(machine: Machine, going: Going, request: Request) {
    let answer = machine.unplug(&going).await;
    if let Ok(Report { device, forced, .. }) = &answer {
        let how = if *forced { " without the guest's consent" } else { "" };
        say(format_args!("strata: {device} is unplugged{how}"));
    }
    request.answer(answer);
}

/// Sees a new device into service, and answers.
pub(crate) async fn plug(machine: Machine, started: Started, request: Request) {
    let device = started.new.device.clone();
    let answer = match machine.trial(started).await {
        Ok(slot) => {
            say(format_args!("strata: {device} is plugged in"));
            machine.tell(Event::Plugged(device.clone()));
            Ok(Report { device, slot, forced: false })
        }
        Err(why) => {
            // Whatever the vmm has of it by now.
            let _ = machine.ask(&device, Unplug::Take).await;
            let _ = machine.gone(&device, TAKEN, None).await;
            let removed = machine.remove(&device).await;
            Err(removed.err().map_or(why.clone(), |error| format!("{why}; and then: {error}")))
        }
    };
    request.answer(answer);
}

impl Machine {
    async fn unplug(&self, going: &Going) -> Result<Report, String> {
        let Going { device, force, timeout, ours } = going;
        let seen = self.look(device).await?;
        let mut forced = false;
        if *force {
            self.condemn(device).await?;
        }
        let how = if *force { Unplug::Fail } else { Unplug::Ask };
        match self.ask(device, how).await {
            // It went, and its backend was left.
            Err(ClientError::NotPossible(_)) if seen.is_none() && *ours => {}
            Err(error) => {
                self.tell(Event::Pardon(device.clone()));
                return Err(error.to_string());
            }
            Ok(()) => {
                let patience = timeout.unwrap_or(if *force { FORCED } else { CONSENT });
                if !self.gone(device, patience, Some(how)).await? {
                    if !*force {
                        return Err(self.stubborn(device, patience).await);
                    }
                    forced = true;
                    self.ask(device, Unplug::Take).await.map_err(|error| error.to_string())?;
                    if !self.gone(device, TAKEN, None).await? {
                        return Err(format!(
                            "the vmm has not taken {device} away within {} s",
                            TAKEN.as_secs()
                        ));
                    }
                }
            }
        }
        self.remove(device).await?;
        let slot = seen.and_then(|seen| seen.slot);
        Ok(Report { device: device.clone(), slot, forced })
    }

    /// The guest keeps it. What to do.
    async fn stubborn(&self, device: &str, patience: Duration) -> String {
        let kept = self.ask(device, Unplug::Keep).await;
        let (seconds, name) = (patience.as_secs_f32(), &self.name);
        let and = kept.err().map_or(String::new(), |error| format!(" (and the vmm: {error})"));
        format!(
            "the guest has not let go of {device} within {seconds} s and keeps it{and}: it may still be booting, be busy \
             with the device, or have no ACPI hot-plug (CONFIG_HOTPLUG_PCI_ACPI). Try again, with a longer --timeout, or \
             take it away: strata device unplug {name} {device} --force"
        )
    }

    /// Waits until the vmm has taken a new backend into service; the device's slot.
    async fn trial(&self, started: Started) -> Result<Option<u32>, String> {
        let Started { new, mut death } = started;
        let asked = async { self.client().await?.plug(&new).await };
        asked.await.map_err(|error: ClientError| error.to_string())?;
        let start = Instant::now();
        loop {
            if let Ok(how) = death.try_recv() {
                return Err(format!("its process ended: {how}"));
            }
            match self.look(&new.device).await? {
                Some(DeviceStatus { state: DeviceState::Waiting, trouble: None, .. }) => {}
                Some(DeviceStatus { state: DeviceState::Waiting, trouble: Some(why), .. }) => {
                    return Err(why);
                }
                Some(device) => return Ok(device.slot),
                None => return Err("it was unplugged meanwhile".to_owned()),
            }
            if start.elapsed() >= TRIAL {
                return Err(format!("the vmm did not take it into service within {} s", TRIAL.as_secs()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn client(&self) -> Result<Client, ClientError> {
        Client::connect(&run_dir::control(&self.folder), ANSWER).await
    }

    async fn ask(&self, device: &str, how: Unplug) -> Result<(), ClientError> {
        self.client().await?.unplug(device, how).await
    }

    /// The device as the vmm sees it.
    async fn look(&self, device: &str) -> Result<Option<DeviceStatus>, String> {
        let status = async { self.client().await?.status().await };
        let status = status.await.map_err(|error: ClientError| error.to_string())?;
        Ok(status.devices.into_iter().find(|it| it.id == device))
    }

    /// Whether the vmm has no such device any more, after `patience` at most; what is asked of it again meanwhile.
    async fn gone(&self, device: &str, patience: Duration, again: Option<Unplug>) -> Result<bool, String> {
        let (start, mut asked) = (Instant::now(), Instant::now());
        while self.look(device).await?.is_some() {
            if start.elapsed() >= patience {
                return Ok(false);
            }
            if let Some(how) = again.filter(|_| asked.elapsed() >= AGAIN) {
                asked = Instant::now();
                // It may have gone just now, which the next look shows.
                let _ = self.ask(device, how).await;
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(true)
    }

    /// Ends the device's process, which is not started again.
    async fn condemn(&self, device: &str) -> Result<(), String> {
        let (done, ended) = oneshot::channel();
        self.tell(Event::Condemn(device.to_owned(), done));
        ended.await.map_err(|_| "the machine is ending".to_owned())
    }

    /// Ends the device's process and forgets the device.
    async fn remove(&self, device: &str) -> Result<(), String> {
        let (done, ended) = oneshot::channel();
        self.tell(Event::Remove(device.to_owned(), done));
        ended.await.map_err(|_| "the machine is ending".to_owned())
    }

    fn tell(&self, event: Event) {
        // A supervisor that has gone has ended everything.
        let _ = self.supervisor.send(event);
    }
}
