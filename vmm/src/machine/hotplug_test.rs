//! Devices come and go under guests of a few instructions, with the backend of another make behind them. They need only a
//! /dev/kvm that runs small programs.

use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use super::super::life::life_test::{Ended, ask, machine_in, start, wait_for};
use super::super::{Command, Shared};
use super::*;
use crate::frontend::reference_test::{Backend as Process, Filler};

/// mov dx, 0x614; again: in eax, dx; out dx, eax; jmp again: gives back whatever it is asked for, and more.
const GIVES_BACK: [u8; 8] = [0x66, 0xba, 0x14, 0x06, 0xed, 0xef, 0xeb, 0xfc];
/// again: hlt; jmp again
const IS_DEAF: [u8; 3] = [0xf4, 0xeb, 0xfd];

/// A living machine and the folder its backends listen in.
struct Scene {
    folder: tempfile::TempDir,
    ended: Option<Ended>,
    events: Sender<Event>,
    shared: Arc<Shared>,
}

impl Scene {
    fn new(code: &[u8], extra: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let (ended, events, shared, _) = start(machine_in(folder.path(), code, extra)?);
        let scene = Self { folder, ended: Some(ended), events, shared };
        wait_for("the machine", || scene.shared.state() == MachineState::Running);
        Some(scene)
    }

    fn listener(&self, id: &str) -> UnixListener {
        let path = self.folder.path().join(format!("{id}.sock"));
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    fn change(&self, change: Change) -> Result<(), Refused> {
        let (reply, answer) = sync_channel(1);
        self.events.send(Event::Change(change, reply)).unwrap();
        answer.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    fn unplug(&self, id: &str, how: Unplug) -> Result<(), Refused> {
        self.change(Change::Unplug(id.into(), how))
    }

    fn plug(&self, id: &str, kind: &str, mac: Option<&str>) -> Result<(), Refused> {
        let mac = mac.map(str::to_owned);
        self.change(Change::Plug(NewDevice { device: id.into(), kind: kind.into(), queues: None, mac }))
    }

    /// Plugs in a disk with a process behind it; its slot.
    fn disk(&self, id: &str) -> (Process, Option<u8>) {
        let process = Process::serve(&self.listener(id), Filler::new(2048, 1));
        self.plug(id, "blk", None).unwrap();
        wait_for("the disk", || self.find(id).is_some_and(|member| member.handle().is_some()));
        (process, self.find(id).unwrap().slot)
    }

    fn find(&self, id: &str) -> Option<Member> {
        self.shared.devices.find(id)
    }

    fn gone(&self, id: &str) {
        wait_for("it to be gone", || self.find(id).is_none());
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = ask(&self.events, Command::Quit);
        let ended = self.ended.take().map(|ended| ended.join().unwrap());
        assert!(std::thread::panicking() || ended.is_some_and(|ended| ended.is_ok()));
    }
}

fn said(answer: Result<(), Refused>) -> String {
    answer.unwrap_err().to_string()
}

#[test]
fn a_device_comes_and_the_guest_gives_it_back_again_and_again() {
    let Some(scene) = Scene::new(&GIVES_BACK, "") else { return };
    for _ in 0..3 {
        let (one, slot) = scene.disk("disk0");
        let (other, next) = scene.disk("disk1");
        assert_eq!((slot, next), (Some(1), Some(2)));
        assert!(said(scene.plug("disk0", "blk", None)).contains("there is a device disk0 already"));
        scene.unplug("disk0", Unplug::Ask).unwrap();
        scene.gone("disk0");
        one.thread.unwrap().join().unwrap();
        assert_eq!(
            said(scene.unplug("disk0", Unplug::Ask)),
            "there is no device disk0; those that can go: disk1"
        );
        // Its name and its slot are the next one's.
        let (one, slot) = scene.disk("disk0");
        assert_eq!(slot, Some(1));
        for id in ["disk0", "disk1"] {
            scene.unplug(id, Unplug::Fail).unwrap();
            scene.gone(id);
        }
        one.thread.unwrap().join().unwrap();
        other.thread.unwrap().join().unwrap();
    }
    assert_eq!(
        said(scene.unplug("disk0", Unplug::Take)),
        "there is no device disk0; those that can go: none"
    );
    assert!(said(scene.unplug("console", Unplug::Ask)).contains("it stays"));
}

#[test]
fn a_guest_that_gives_nothing_back_is_asked_and_left_alone_and_asked_no_more() {
    let Some(scene) = Scene::new(&IS_DEAF, "") else { return };
    let (process, slot) = scene.disk("disk0");
    for _ in 0..2 {
        scene.unplug("disk0", Unplug::Ask).unwrap();
        scene.unplug("disk0", Unplug::Ask).unwrap();
        assert!(scene.find("disk0").unwrap().leaving);
        scene.unplug("disk0", Unplug::Keep).unwrap();
        assert!(!scene.find("disk0").unwrap().leaving);
    }
    // An answer to a question that was taken back, and one to none at all.
    scene.events.send(Event::LetGo(1 << slot.unwrap() | 1 << 30 | 1)).unwrap();
    ask(&scene.events, Command::Pause).unwrap();
    assert!(said(scene.unplug("disk0", Unplug::Ask)).contains("the machine is paused"));
    assert!(scene.find("disk0").is_some_and(|member| !member.leaving));
    scene.unplug("disk0", Unplug::Take).unwrap();
    assert!(scene.find("disk0").is_none());
    process.thread.unwrap().join().unwrap();
    // What comes while the guest stands is there when it goes on.
    let (process, _) = scene.disk("disk0");
    ask(&scene.events, Command::Resume).unwrap();
    scene.unplug("disk0", Unplug::Take).unwrap();
    process.thread.unwrap().join().unwrap();
}

#[test]
fn a_reboot_brings_back_what_was_plugged_in_and_not_what_was_leaving() {
    let Some(scene) = Scene::new(&IS_DEAF, "") else { return };
    let processes = ["a", "b", "c"].map(|id| scene.disk(id).0);
    scene.unplug("a", Unplug::Take).unwrap();
    scene.unplug("b", Unplug::Ask).unwrap();
    for reboots in 1..=2 {
        ask(&scene.events, Command::Reboot).unwrap();
        wait_for("the reboot", || {
            scene.shared.reboots() == reboots && scene.shared.state() == MachineState::Running
        });
        assert!(scene.find("b").is_none());
        assert_eq!(scene.find("c").unwrap().slot, Some(3));
    }
    let (process, slot) = scene.disk("d");
    assert_eq!(slot, Some(1));
    drop(scene);
    for process in processes.into_iter().chain([process]) {
        process.thread.unwrap().join().unwrap();
    }
}

#[test]
fn a_backend_that_will_not_do_is_said_and_leaves_no_slot_taken() {
    let Some(scene) = Scene::new(&IS_DEAF, "") else { return };
    let listener = scene.listener("disk0");
    scene.plug("disk0", "blk", None).unwrap();
    // It hangs up.
    drop(listener.accept().unwrap());
    let trouble = |id: &str| match scene.find(id)?.backend {
        Backend::Coming { trouble, .. } => trouble,
        Backend::There(_) => None,
    };
    wait_for("trouble", || trouble("disk0").is_some());
    assert!(trouble("disk0").unwrap().contains("cannot be used"), "{:?}", trouble("disk0"));
    scene.unplug("disk0", Unplug::Keep).unwrap();
    scene.unplug("disk0", Unplug::Take).unwrap();
    assert!(scene.find("disk0").is_none());
    drop(listener);
    assert_eq!(scene.disk("disk0").1, Some(1));
}

#[test]
fn what_is_said_of_a_new_device_is_checked() {
    let Some(scene) = Scene::new(&IS_DEAF, "") else { return };
    for (id, kind, mac, why) in [
        ("../disk0", "blk", None, "must be 1 to 32 characters"),
        ("vmm", "blk", None, "is taken by Strata's own files"),
        ("", "blk", None, "must be 1 to 32 characters"),
        ("disk0", "fs", None, "must be blk or net"),
        ("disk0", "blk", Some("02:00:00:00:00:01"), "a disk has no mac"),
        ("net0", "net", Some("02:00"), "must be six bytes"),
    ] {
        let said = said(scene.plug(id, kind, mac));
        assert!(said.contains(why), "{id} {kind} {mac:?}: {said}");
    }
    assert!(scene.shared.devices.all().is_empty());
}

#[test]
fn vcpus_that_stand_for_a_lost_backend_go_on_to_give_it_back() {
    let Some(scene) = Scene::new(&GIVES_BACK, "[backend]\nlost = \"pause\"") else { return };
    let (process, _) = scene.disk("disk0");
    // Nobody listens there any more, so nobody returns.
    std::fs::remove_file(scene.folder.path().join("disk0.sock")).unwrap();
    process.kill();
    wait_for("the vCPUs to stand", || scene.shared.state() == MachineState::Paused);
    scene.unplug("disk0", Unplug::Ask).unwrap();
    scene.gone("disk0");
    assert_eq!(scene.shared.state(), MachineState::Running);
}
