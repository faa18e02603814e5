use std::sync::mpsc::{self, Receiver};

use super::*;

fn rig() -> (Reasons, Box<dyn BusDevice>, Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    let reasons = Reasons::default();
    let device = reasons.device(sender);
    (reasons, device, events)
}

fn read(device: &mut dyn BusDevice, offset: u16) -> u32 {
    let mut data = [0xff; 4];
    device.read(offset.into(), &mut data);
    u32::from_le_bytes(data)
}

#[test]
fn what_there_is_to_tell_is_told_once() {
    let (reasons, mut device, _) = rig();
    assert_eq!((read(&mut *device, CHECK), read(&mut *device, EJECT)), (0, 0));
    reasons.press();
    reasons.changed(3);
    reasons.ask(31);
    assert_eq!((read(&mut *device, CHECK), read(&mut *device, EJECT)), (1 | 1 << 3, 1 << 31));
    assert_eq!((read(&mut *device, CHECK), read(&mut *device, EJECT)), (0, 0));
    // No slots: the button is not pressed by them, and nothing wraps around.
    for slot in [0, 32, 33, 255] {
        reasons.changed(slot);
        reasons.ask(slot);
    }
    assert_eq!((read(&mut *device, CHECK), read(&mut *device, EJECT)), (0, 0));
}

#[test]
fn a_slot_is_let_go_of_once_and_only_when_asked_for() {
    let (reasons, mut device, events) = rig();
    let mut write = |slots: u32| device.write(EJECT.into(), &slots.to_le_bytes());
    write(u32::MAX);
    assert!(events.try_recv().is_err(), "nobody asked");
    reasons.ask(4);
    reasons.ask(7);
    write(1 << 5);
    assert!(events.try_recv().is_err());
    for _ in 0..1000 {
        write(1 << 4 | 1 << 9);
    }
    assert!(matches!(events.try_recv(), Ok(Event::LetGo(slots)) if slots == 1 << 4));
    assert!(events.try_recv().is_err(), "one request, one event");
    // What is withdrawn, or taken without asking, is no longer the guest's to give.
    reasons.withdraw(7);
    write(1 << 7);
    reasons.ask(8);
    reasons.changed(8);
    write(1 << 8);
    assert!(events.try_recv().is_err());
    // Asked for again.
    reasons.ask(7);
    write(u32::MAX);
    assert!(matches!(events.try_recv(), Ok(Event::LetGo(slots)) if slots == 1 << 7));
}

#[test]
fn a_request_that_is_withdrawn_before_the_guest_looks_is_not_seen() {
    let (reasons, mut device, _) = rig();
    reasons.ask(2);
    reasons.withdraw(2);
    assert_eq!(read(&mut *device, EJECT), 0);
}

#[test]
fn other_widths_and_places_do_nothing() {
    let (reasons, mut device, events) = rig();
    reasons.press();
    reasons.ask(1);
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (4, 1), (4, 2), (1, 4), (2, 4), (6, 2), (u64::MAX, 4)] {
        let mut data = vec![0xff; width];
        device.read(offset, &mut data);
        assert!(data.iter().all(|byte| *byte == 0), "{width} bytes at {offset}");
        device.write(offset, &vec![0xff; width]);
    }
    device.write(CHECK.into(), &[0xff; 4]);
    assert!(events.try_recv().is_err());
    assert_eq!((read(&mut *device, CHECK), read(&mut *device, EJECT)), (1, 2), "nothing was lost by that");
}
