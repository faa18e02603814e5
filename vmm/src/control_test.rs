use std::sync::mpsc::channel;

use strata_ipc::MachineState;

use super::*;
use crate::console::hub::Terminal;
use crate::kvm::run::Exits;
use crate::machine::Meters;

fn remote(owner: Sender<Event>) -> Remote {
    let facts = Facts { name: "web".into(), cpus: 2, memory: 512 << 20, backing: "memfd".into() };
    let hub = Arc::new(Hub::new(Terminal::default()).unwrap());
    Remote::new(facts, Arc::default(), owner, Some(hub))
}

#[test]
fn requests_reach_the_owner_and_its_answer_comes_back() {
    let (sender, inbox) = channel();
    let remote = remote(sender);
    let owner = thread::spawn(move || {
        let mut seen = Vec::new();
        while let Ok(Event::Command(command, reply)) = inbox.recv() {
            let answer = if command == Command::Pause { Err(Refused::new("no")) } else { Ok(()) };
            reply.send(answer).unwrap();
            seen.push(command);
        }
        seen
    });
    assert_eq!(remote.pause(), Err(Refused::new("no")));
    assert_eq!(remote.resume(), Ok(()));
    assert_eq!(remote.power_off(), Ok(()));
    assert_eq!(remote.reboot(), Ok(()));
    assert_eq!(remote.quit(), Ok(()));
    drop(remote);
    let all = [Command::Pause, Command::Resume, Command::PowerOff, Command::Reboot, Command::Quit];
    assert_eq!(owner.join().unwrap(), all);
}

#[test]
fn an_owner_that_is_gone_refuses() {
    let (sender, inbox) = channel();
    let remote = remote(sender);
    drop(inbox);
    assert_eq!(remote.pause(), Err(Refused::new("the machine is ending")));
}

#[test]
fn state_and_counters_are_the_machines() {
    let (sender, _inbox) = channel();
    let remote = remote(sender);
    let exits = Exits::default();
    exits.ports.store(5, Ordering::Relaxed);
    *remote.shared.meters() = Meters { vm: None, vcpus: vec![(None, Arc::new(exits))] };
    let status = remote.status();
    assert_eq!((status.state, status.cpus, status.reboots), (MachineState::Booting, 2, 0));
    assert_eq!(status.devices.len(), 1);
    let statistics = remote.statistics();
    assert_eq!(statistics.vcpus[0].counters["user_ports"], 5);
    assert_eq!(statistics.devices[0].id, "console");
    assert!(remote.console().is_ok());
}
