//! Devices that come and go: what becomes of their processes, their files, and of what is known of the machine.
//!
//! ```text
//!   running --condemn: SIGKILL--> dead, not started again --pardon--> running
//!      |                             |
//!      +-- remove: SIGTERM, SIGKILL -+--> dead: forgotten, with its sockets, its tap and its place in machine.json
//! ```
//! [`crate::device::task`] says when; the supervisor alone does it. Refuses devices that the machine file would refuse, and
//! all while the machine ends.

use nix::sys::signal::Signal;
use strata_config::{Disk, Machine, Net, NetSource};
use strata_ipc::NewDevice;
use tokio::sync::oneshot;

use super::backend::{Backend, DRAIN, Ending};
use super::{Event, State, Supervisor};
use crate::device::task::{self, Going, Started};
use crate::device::{Request, What};
use crate::plan::{self, Planned};
use crate::preflight;
use crate::say::say;

const FOREIGN: &str = "only a disk of a file, or a NIC of a tap, bridge or macvtap can be plugged into a running machine: the \
    sandbox of its vmm shows it no other socket than those its machine file named";

impl Supervisor<'_> {
    /// Hands a request to a task, with what that needs.
    pub(super) fn device(&mut self, request: Request) {
        if self.state != State::Running {
            return request.answer(Err("the machine is ending".to_owned()));
        }
        let machine = task::Machine {
            name: self.machine.name.to_string(),
            folder: self.run_dir.path().to_owned(),
            supervisor: self.sender.clone(),
        };
        if let What::Unplug { device, force, timeout } = &request.what {
            let ours = self.find(device).is_some();
            let going = Going { device: device.clone(), force: *force, timeout: *timeout, ours };
            tokio::spawn(task::unplug(machine, going, request));
            return;
        }
        match self.start_new(&request.what) {
            Ok(started) => drop(tokio::spawn(task::plug(machine, started, request))),
            Err(why) => request.answer(Err(format!("{why:#}"))),
        }
    }

    /// Starts the process of a new device; until it is in service, its death is told to who waits for that.
    fn start_new(&mut self, what: &What) -> anyhow::Result<Started> {
        let folder = self.run_dir.path().to_owned();
        let (machine, new, planned) = match what {
            What::Disk(entry) => {
                let machine = self.machine.with_disk((**entry).clone())?;
                let disk = last(&machine.disks)?;
                let new = new_disk(&machine, disk)?;
                preflight::disk(disk)?;
                let planned = plan::disk(&machine, &folder, disk);
                (machine, new, planned)
            }
            What::Net(entry) => {
                let machine = self.machine.with_net((**entry).clone())?;
                let net = last(&machine.nets)?;
                let new = new_net(&machine, net)?;
                preflight::net(net)?;
                let planned = plan::net(&machine, &folder, net);
                (machine, new, planned)
            }
            What::Unplug { .. } => anyhow::bail!("that is no new device"),
        };
        let id = new.device.clone();
        let planned =
            planned.map_err(anyhow::Error::from).and_then(|planned| planned.ok_or(anyhow::anyhow!(FOREIGN)));
        let (tell, death) = oneshot::channel();
        let started = planned.and_then(|planned: Planned| {
            let index = self.add(Backend::new(planned).on_trial(tell));
            self.start_backend(index).inspect_err(|_| drop(self.backends.remove(&index)))?;
            Ok(())
        });
        if let Err(error) = started {
            plan::clear(&folder, &id);
            return Err(error);
        }
        self.know(machine);
        self.watch();
        Ok(Started { new, death })
    }

    /// A new device is in service: its process is started again when it dies, as any other's.
    pub(super) fn plugged(&mut self, id: &str) {
        if let Some((_, backend)) = self.find(id) {
            backend.settle();
        }
    }

    /// Ends a device's process; it is not started again. `done` is told once it has ended.
    pub(super) fn condemn(&mut self, id: &str, done: oneshot::Sender<()>) {
        match self.find(id) {
            Some((_, backend)) => backend.condemn(done),
            // Somebody else's.
            None => {
                let _ = done.send(());
            }
        }
    }

    /// A condemned one may go on.
    pub(super) fn pardon(&mut self, id: &str) {
        if let Some((index, backend)) = self.find(id)
            && backend.ending.take().is_some()
        {
            self.restart(index);
        }
    }

    /// Ends a device's process, and forgets the device once it has ended.
    pub(super) fn remove(&mut self, id: &str, done: oneshot::Sender<()>) {
        let sender = self.sender.clone();
        let Some((index, backend)) = self.find(id) else {
            self.forget_device(id);
            let _ = done.send(());
            return;
        };
        let Some(running) = &backend.running else {
            self.forget(index);
            let _ = done.send(());
            return;
        };
        running.signal(Signal::SIGTERM);
        let (id, pid) = (id.to_owned(), running.pid);
        backend.ending = Some(Ending { forget: true, done: Some(done) });
        tokio::spawn(async move {
            tokio::time::sleep(DRAIN).await;
            let _ = sender.send(Event::DrainOver(id, pid));
        });
    }

    /// A device whose process has ended, and that is no more: its descriptors are closed with it.
    pub(super) fn forget(&mut self, index: usize) {
        if let Some(backend) = self.backends.remove(&index) {
            self.forget_device(&backend.program.id);
        }
    }

    fn forget_device(&mut self, id: &str) {
        self.roster.set(id, None);
        plan::clear(self.run_dir.path(), id);
        let mut machine = self.machine.clone();
        machine.remove(id);
        self.know(machine);
        self.note();
    }

    /// What the machine is from now on.
    fn know(&mut self, machine: Machine) {
        self.machine = machine;
        if let Err(error) = self.run_dir.note(&self.machine) {
            say(format_args!("strata: {:#}", anyhow::Error::from(error)));
        }
    }
}

fn last<T>(all: &[T]) -> anyhow::Result<&T> {
    all.last().ok_or_else(|| anyhow::anyhow!("the new device is missing"))
}

fn new_disk(machine: &Machine, disk: &Disk) -> anyhow::Result<NewDevice> {
    if disk.source.foreign().is_some() {
        anyhow::bail!(FOREIGN);
    }
    let (device, queues) = (disk.id.to_string(), Some(machine.disk_queues(disk)));
    Ok(NewDevice { device, kind: "blk".to_owned(), queues, mac: None })
}

fn new_net(machine: &Machine, net: &Net) -> anyhow::Result<NewDevice> {
    let NetSource::Own(own) = &net.source else { anyhow::bail!(FOREIGN) };
    let (device, queues) = (net.id.to_string(), Some(machine.net_queues(net)));
    Ok(NewDevice { device, kind: "net".to_owned(), queues, mac: Some(own.mac.to_string()) })
}
