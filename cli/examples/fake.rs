#![allow(unsafe_code)] // descriptors come by number
#![allow(clippy::unwrap_used, clippy::panic)] // stands in for the other programs in tests only

//! Stands in for vmm, vhost-blk and vhost-net in the launcher's tests, under whichever of these names it is
//! called. How it behaves is in the environment:
//!
//! - `FAKE_VMM`: `serve` (the default), `deaf` (no power button; its guest lets go of nothing), `fail:TEXT` (says TEXT,
//!   exit status 1), `mute` (stays, but has no control socket).
//! - `FAKE_BACKEND`: `serve` (the default), `fail:TEXT`, `refuse:TEXT` (as for a wrong flag), `flap` (serves a client, then exits with 3).
//! - `FAKE_ARGS`: a folder to write the arguments to, one file per process.
//! - Files beside the program's own: `PROGRAM.capabilities` is what --print-capabilities prints, `PROGRAM.smaller` has
//!   a backend that the fake vmm refuses.
//! - `FAKE_GRANDCHILD`: the vmm starts a process of its own that would outlive it.

use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use strata_config::{DiskSource, Machine};
use strata_ipc::{
    Control, DeviceState, DeviceStatistics, DeviceStatus, MachineState, NewDevice, Refused, Statistics,
    Status, Unplug,
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let name = Path::new(args.first().unwrap()).file_name().unwrap().to_str().unwrap().to_owned();
    if let Some(folder) = std::env::var_os("FAKE_ARGS") {
        let file = PathBuf::from(folder).join(format!("{name}.{}", std::process::id()));
        std::fs::write(file, args.get(1..).unwrap().join("\n")).unwrap();
    }
    if args.iter().any(|arg| arg == "--version") {
        return println!("{name} {}", beside("version").unwrap_or_else(|| "1".to_owned()));
    }
    if args.iter().any(|arg| arg == "--print-capabilities") {
        let usual = r#"{"type":"block","features":["read-only","blk-file"]}"#;
        return println!("{}", beside("capabilities").unwrap_or_else(|| usual.to_owned()));
    }
    let value = |key: &str| args.iter().skip_while(|arg| *arg != key).nth(1).cloned();
    match name.as_str() {
        "vmm" => {
            vmm(&value("--machine").unwrap(), value("--run-dir").unwrap().as_ref(), value("--console-fd"))
        }
        "vhost-net" if args.iter().any(|arg| arg == "--switch") => switch(),
        _ => backend(value("--fd").unwrap().parse().unwrap()),
    }
}

/// What a file beside the program's own holds.
fn beside(suffix: &str) -> Option<String> {
    let own = std::env::current_exe().unwrap();
    std::fs::read_to_string(format!("{}.{suffix}", own.display())).ok()
}

fn mode(variable: &str) -> String {
    let mode = std::env::var(variable).unwrap_or_else(|_| "serve".to_owned());
    if let Some(text) = mode.strip_prefix("fail:") {
        eprintln!("{text}");
        exit(1);
    }
    if let Some(text) = mode.strip_prefix("refuse:") {
        eprintln!("error: {text}\n\nFor more information, try '--help'.");
        exit(2);
    }
    mode
}

/// A switch that does nothing, and ends when it is told to.
fn switch() {
    let mode = mode("FAKE_BACKEND");
    if mode == "flap" {
        std::thread::sleep(Duration::from_secs(3));
        exit(3);
    }
    loop {
        std::thread::park();
    }
}

fn backend(fd: i32) {
    let mode = mode("FAKE_BACKEND");
    // SAFETY: the launcher gave us this descriptor and nothing else here uses it.
    let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(fd) });
    for client in listener.incoming() {
        let mut client = client.unwrap();
        client.write_all(if beside("smaller").is_some() { b"s" } else { b"k" }).unwrap();
        if mode == "flap" {
            // Until the vmm has noted that it was served.
            let _ = client.read(&mut [0]);
            eprintln!("\x1b[31mfake crash");
            exit(3);
        }
        std::thread::spawn(move || while client.read(&mut [0]).is_ok_and(|bytes| bytes > 0) {});
    }
}

struct Fake {
    folder: PathBuf,
    machine: Machine,
    deaf: bool,
    state: Mutex<MachineState>,
    devices: Mutex<Vec<DeviceStatus>>,
    losses: Mutex<std::collections::BTreeMap<String, u64>>,
    own: std::sync::Weak<Self>,
}

fn exit_soon() {
    std::thread::spawn(|| {
        std::thread::sleep(Duration::from_millis(50));
        exit(0);
    });
}

impl Control for Fake {
    fn status(&self) -> Status {
        Status {
            name: self.machine.name.to_string(),
            state: *self.state.lock().unwrap(),
            cpus: self.machine.cpus.into(),
            memory_bytes: self.machine.memory.size,
            memory_backing: "fake".into(),
            reboots: 0,
            devices: self.devices.lock().unwrap().clone(),
        }
    }
    fn pause(&self) -> Result<(), Refused> {
        *self.state.lock().unwrap() = MachineState::Paused;
        Ok(())
    }
    fn resume(&self) -> Result<(), Refused> {
        *self.state.lock().unwrap() = MachineState::Running;
        Ok(())
    }
    fn power_off(&self) -> Result<(), Refused> {
        if !self.deaf {
            exit_soon();
        }
        Ok(())
    }
    fn reboot(&self) -> Result<(), Refused> {
        Err(Refused::new("the fake does not reboot"))
    }
    fn quit(&self) -> Result<(), Refused> {
        exit_soon();
        Ok(())
    }
    fn console(&self) -> Result<OwnedFd, Refused> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || console(ours));
        Ok(theirs.into())
    }
    fn unplug(&self, device: &str, how: Unplug) -> Result<(), Refused> {
        let mut devices = self.devices.lock().unwrap();
        let Some(index) = devices.iter().position(|it| it.id == device) else {
            return Err(Refused::new(format!("there is no device {device}")));
        };
        let stays = match how {
            Unplug::Ask | Unplug::Fail => self.deaf,
            Unplug::Take => false,
            Unplug::Keep => true,
        };
        if stays {
            devices.get_mut(index).unwrap().leaving = how != Unplug::Keep;
        } else {
            devices.remove(index);
        }
        Ok(())
    }
    fn plug(&self, new: &NewDevice) -> Result<(), Refused> {
        let NewDevice { device, kind, .. } = new;
        let status =
            DeviceStatus { slot: Some(9), ..DeviceStatus::new(device, kind, DeviceState::Waiting, 1) };
        self.devices.lock().unwrap().push(status);
        let (fake, id) = (self.own.upgrade().unwrap(), device.clone());
        std::thread::spawn(move || frontend(&fake, &id));
        Ok(())
    }
    fn statistics(&self) -> Statistics {
        let losses = self.losses.lock().unwrap();
        let device = |(id, count): (&String, &u64)| DeviceStatistics {
            id: id.clone(),
            counters: [("backend_losses".to_owned(), *count)].into(),
        };
        let devices = losses.iter().map(device).collect();
        Statistics { vm: [("exits".to_owned(), 7)].into(), devices, ..Statistics::default() }
    }
}

/// Shouts back what is typed; ends the machine on `poweroff`.
fn console(mut stream: UnixStream) {
    stream.write_all(b"fake console\n").unwrap();
    let mut typed = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).is_ok_and(|bytes| bytes > 0) {
        if stream.write_all(&byte.map(|byte| byte.to_ascii_uppercase())).is_err() {
            return;
        }
        typed.extend(byte);
        if typed.ends_with(b"poweroff\n") {
            exit(0);
        }
    }
    // The end of the input is not the end of the machine.
    loop {
        std::thread::park();
    }
}

fn vmm(machine: &str, run_dir: &Path, console_fd: Option<String>) {
    let mode = mode("FAKE_VMM");
    if std::env::var_os("FAKE_GRANDCHILD").is_some() {
        let mut command = Command::new("sleep");
        let mut child = command.arg("1000").process_group(0).spawn().unwrap();
        std::fs::write(run_dir.join("grandchild.pid"), child.id().to_string()).unwrap();
        std::thread::spawn(move || child.wait());
    }
    if mode == "mute" {
        loop {
            std::thread::park();
        }
    }
    let machine = Machine::from_file(Path::new(machine)).unwrap();
    // First of all, like the vmm: a backend's death is judged by what is said there.
    let listener = UnixListener::bind(run_dir.join("control.sock")).unwrap();
    let disks = machine.disks.iter().filter(|disk| matches!(disk.source, DiskSource::File { .. }));
    let nets = machine.nets.iter().filter(|net| net.source.own().is_some());
    let ids = disks.map(|disk| (&disk.id, "block")).chain(nets.map(|net| (&net.id, "net")));
    let devices: Vec<_> =
        ids.map(|(id, kind)| DeviceStatus::new(id.as_ref(), kind, DeviceState::Waiting, 1)).collect();
    let ids: Vec<_> = devices.iter().map(|device| device.id.clone()).collect();
    let deaf = mode == "deaf";
    let state = Mutex::new(MachineState::Running);
    let (folder, devices) = (run_dir.to_owned(), Mutex::new(devices));
    let fake = Arc::new_cyclic(|own| Fake {
        folder,
        machine,
        deaf,
        state,
        devices,
        losses: Mutex::default(),
        own: own.clone(),
    });
    for id in ids {
        let fake = Arc::clone(&fake);
        std::thread::spawn(move || frontend(&fake, &id));
    }
    if let Some(fd) = console_fd {
        // SAFETY: the launcher gave us this descriptor and nothing else here uses it.
        let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd.parse().unwrap()) });
        std::thread::spawn(move || console(stream));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(strata_ipc::serve(listener, fake)).unwrap();
}

/// Connects for as long as there is the device; the backend says `k` when it serves.
fn frontend(fake: &Fake, id: &str) {
    let set = |state, trouble: Option<&str>| {
        let mut devices = fake.devices.lock().unwrap();
        if let Some(device) = devices.iter_mut().find(|device| device.id == id) {
            (device.state, device.trouble) = (state, trouble.map(str::to_owned));
        }
    };
    loop {
        let there = fake.devices.lock().unwrap().iter().any(|device| device.id == id);
        let Ok(mut stream) = UnixStream::connect(fake.folder.join(format!("{id}.sock"))) else { return };
        if !there {
            return;
        }
        let mut word = [0];
        match stream.read(&mut word) {
            Ok(1) if word == *b"k" => {
                set(DeviceState::Connected, None);
                let _ = stream.write_all(b"n");
                let _ = stream.read(&mut [0]);
                set(DeviceState::Lost, None);
                *fake.losses.lock().unwrap().entry(id.to_owned()).or_default() += 1;
            }
            Ok(1) => {
                let first = fake
                    .devices
                    .lock()
                    .unwrap()
                    .iter()
                    .any(|it| it.id == id && it.state == DeviceState::Waiting);
                let state = if first { DeviceState::Waiting } else { DeviceState::Lost };
                set(state, Some("the backend that returned is smaller"));
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => {}
        }
    }
}
