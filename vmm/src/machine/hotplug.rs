//! Devices that come and go while the machine lives.
//!
//! ```text
//!  Plug: Coming --its backend answers--> on the bus, the guest is told --Unplug(ask)--> leaving --the guest lets go--> gone
//!           |  it will not do: trouble          |          \______________ keep ____________/  |
//!           +--- Unplug ---> gone               +--- Unplug(take), or a reboot while leaving --+--> gone
//! ```
//!
//! Part of the owner ([`super::life`]), which alone changes the bus and the roster. Nothing here waits: not for the guest,
//! which may never answer, nor for a new backend, which has a thread of its own until it has. A guest that reboots has let
//! go of everything, so what is leaving does not come back.
//!
//! Refuses ids that are taken or not there, the machine's own console, a full bus, and to ask a guest that stands.

use std::sync::mpsc::SyncSender;

use strata_config::{DeviceId, Mac};
use strata_ipc::{MachineState, NewDevice, Refused, Unplug};

use super::Event;
use super::board::Board;
use super::life::Life;
use super::roster::{Backend, Member};
use crate::frontend::{self, FrontendError, Handle, Kind, Settings};
use crate::pci::{DEVICES_MAX, PciDevice, causes};

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Change {
    /// A device is to go.
    Unplug(String, Unplug),
    /// A device is to come.
    Plug(NewDevice),
}

/// A backend that has answered, or will not do.
#[derive(Debug)]
pub struct Arrival {
    id: String,
    attempt: u64,
    result: Result<(PciDevice, Handle), FrontendError>,
}

impl Life {
    /// Does what is asked for, as far as it can be done at once.
    pub(super) fn change(&mut self, change: Change, board: &Board) -> Result<(), Refused> {
        match change {
            Change::Unplug(id, how) => self.unplug(&id, how, board),
            Change::Plug(new) => self.plug(&new, board),
        }
    }

    /// The same, for who waits for the answer.
    pub(super) fn answer(&mut self, change: Change, reply: &SyncSender<Result<(), Refused>>, board: &Board) {
        let answer = self.change(change, board);
        // Whoever asked may have gone.
        let _ = reply.send(answer);
    }

    fn unplug(&mut self, id: &str, how: Unplug, board: &Board) -> Result<(), Refused> {
        let member = self.shared.devices.find(id).ok_or_else(|| self.unknown(id))?;
        let Member { slot: Some(slot), backend: Backend::There(handle), .. } = member else {
            // Not on the bus: whatever its backend answers from now on is for nobody.
            if how != Unplug::Keep {
                self.shared.devices.remove(id);
            }
            return Ok(());
        };
        match how {
            // One that stands because of a lost backend goes on for this.
            Unplug::Ask if self.shared.state() == MachineState::Paused && !self.held => {
                return Err(Refused::new(
                    "the machine is paused, and its guest can let go of nothing; resume it first, or take the \
                     device away with --force",
                ));
            }
            Unplug::Ask | Unplug::Fail => {
                tracing::info!(device = id, slot, "the guest is asked to let go of a device");
                self.shared.devices.change(id, |member| member.leaving = true);
                handle.leave(how == Unplug::Fail);
                board.ask_for(slot);
                self.hold(board);
            }
            Unplug::Keep => {
                self.shared.devices.change(id, |member| member.leaving = false);
                handle.stay();
                board.withdraw(slot);
                self.hold(board);
            }
            Unplug::Take => {
                tracing::warn!(device = id, slot, "a device is taken away without the guest's consent");
                handle.leave(true);
                drop(board.tear(slot));
                self.gone(id, board);
            }
        }
        Ok(())
    }

    /// The guest has let go of slots that it was asked for.
    pub(super) fn let_go(&mut self, slots: u32, board: &Board) {
        for slot in (1..=DEVICES_MAX as u8).filter(|slot| slots >> slot & 1 != 0) {
            let leaves = |member: &Member| member.leaving && member.slot == Some(slot);
            match self.shared.devices.all().into_iter().find(leaves) {
                Some(Member { id, .. }) => {
                    tracing::info!(device = id, slot, "the guest has let go of a device");
                    drop(board.take(slot));
                    self.gone(&id, board);
                }
                // It has learnt that something was taken away.
                None => board.exorcise(slot),
            }
        }
    }

    /// A device that is not on the bus any more: name and slot are free.
    fn gone(&mut self, id: &str, board: &Board) {
        self.shared.devices.remove(id);
        // It may have been what the vCPUs were held for.
        self.hold(board);
    }

    fn unknown(&self, id: &str) -> Refused {
        if id == "console" {
            return Refused::new("the console is the machine's own; it stays");
        }
        let ids: Vec<String> = self.shared.devices.all().into_iter().map(|member| member.id).collect();
        let there = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        Refused::new(format!("there is no device {id}; those that can go: {there}"))
    }

    fn plug(&mut self, new: &NewDevice, board: &Board) -> Result<(), Refused> {
        let id: DeviceId = new
            .device
            .parse()
            .map_err(|allowed| Refused::new(format!("device = {:?}: {allowed}", new.device)))?;
        let id = id.to_string();
        if self.shared.devices.find(&id).is_some() {
            return Err(Refused::new(format!(
                "there is a device {id} already; unplug it first, or choose another id"
            )));
        }
        let coming = self.shared.devices.all().iter().filter(|member| member.slot.is_none()).count();
        if board.free_slots() <= coming {
            return Err(Refused::new(format!("all {DEVICES_MAX} slots are taken; unplug a device first")));
        }
        let settings = Settings {
            hook: Some(self.hook.clone()),
            ..self.parts.place.settings(&id, kind(new)?, new.queues)
        };
        self.attempts += 1;
        let (attempt, kind) = (self.attempts, settings.kind);
        let (memory, events, name) = (self.ram.memory.clone(), self.events.clone(), id.clone());
        let connect = move || {
            let result = frontend::connect(settings, &memory, super::backends::PATIENCE);
            // A machine that has ended has no use for it.
            let _ = events.send(Event::Arrived(Box::new(Arrival { id: name, attempt, result })));
        };
        std::thread::Builder::new()
            .name(format!("plug-{id}"))
            .spawn(connect)
            .map_err(|error| Refused::new(format!("no thread for the device: {error}")))?;
        let backend = Backend::Coming { kind, attempt, trouble: None };
        self.shared.devices.add(Member { id, slot: None, leaving: false, backend });
        Ok(())
    }

    /// A backend has answered: its device is put on the bus, and the guest is told.
    pub(super) fn arrived(&mut self, arrival: Arrival, board: &Board) {
        let Arrival { id, attempt, result } = arrival;
        let wanted =
            |member: &Member| matches!(member.backend, Backend::Coming { attempt: it, .. } if it == attempt);
        // Whoever asked for it may have thought better of it.
        let Some(_) = self.shared.devices.find(&id).filter(wanted) else { return };
        let placed = result.map_err(|error| causes(&error)).and_then(|(device, handle)| {
            board.insert(device).map(|slot| (slot, handle)).map_err(|error| causes(&error))
        });
        match placed {
            Ok((slot, handle)) => {
                tracing::info!(device = id, slot, "a device is plugged in");
                let backend = Backend::There(handle);
                self.shared
                    .devices
                    .change(&id, |member| (member.slot, member.backend) = (Some(slot), backend));
                board.tell(slot);
            }
            Err(why) => {
                tracing::warn!(device = id, why, "a device cannot be plugged in");
                self.shared.devices.change(&id, |member| {
                    if let Backend::Coming { trouble, .. } = &mut member.backend {
                        *trouble = Some(why);
                    }
                });
            }
        }
    }

    /// Between two lives: what the guest was asked for goes.
    pub(super) fn forget_leaving(&mut self) {
        for member in self.shared.devices.all().iter().filter(|member| member.leaving) {
            tracing::info!(device = member.id, "a device that was leaving goes with the reboot");
            self.devices.retain(|device| device.id != member.id);
            self.shared.devices.remove(&member.id);
        }
    }

    /// Notes where the devices are on a new board.
    pub(super) fn note_slots(&self, board: &Board) {
        for member in self.shared.devices.all() {
            let slot = board.slot_of(&member.id);
            self.shared.devices.change(&member.id, |member| member.slot = slot);
        }
    }
}

fn kind(new: &NewDevice) -> Result<Kind, Refused> {
    let NewDevice { kind, mac, .. } = new;
    match (kind.as_str(), mac) {
        ("blk", None) => Ok(Kind::Blk),
        ("blk", Some(_)) => Err(Refused::new("a disk has no mac")),
        ("net", None) => Ok(Kind::Net { mac: None }),
        ("net", Some(text)) => {
            let mac: Mac =
                text.parse().map_err(|allowed| Refused::new(format!("mac = {text:?}: {allowed}")))?;
            Ok(Kind::Net { mac: Some(mac.bytes()) })
        }
        (other, _) => Err(Refused::new(format!("kind = {other:?}: must be blk or net"))),
    }
}

#[cfg(test)]
#[path = "hotplug_test.rs"]
mod hotplug_test;
