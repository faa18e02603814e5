//! Devices that are to go, and whose backends are gone.

use strata_virtio::driver::{Buf, DriverQueue};

use super::reference_test::{Backend, FEATURES, Filler, LIMIT, Rig, eventually, fill};
use super::*;

/// A driver's queue 0 on a device whose backend has died with one request in hand and one not taken.
fn dead(rig: &Rig) -> (Box<dyn Device>, Handle, DriverQueue) {
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
    let (PciDevice { mut device, .. }, handle) = rig.connect(None).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    fill(&rig.memory, &mut queue);
    backend.filler.fall_asleep();
    queue.add(&[Buf::readable(0x8000, 16), Buf::writable(0x9000, 512), Buf::writable(0xa000, 1)]).unwrap();
    queue.kick();
    backend.kill();
    eventually("loss", || handle.state() == State::Lost);
    (device, handle, queue)
}

fn status_at(rig: &Rig, at: u64) -> u8 {
    let mut byte = [0xff];
    rig.memory.read_at(at, &mut byte).unwrap();
    byte[0]
}

#[test]
fn what_waits_is_answered_with_errors_once_nobody_comes() {
    let rig = Rig::new();
    let (mut device, handle, mut queue) = dead(&rig);
    rig.memory.write_at(0xa000, &[0xff]).unwrap();
    // The listening socket is open, so the monitor waits for whoever answers there. It hears this all the same.
    let asked = Instant::now();
    handle.leave(false);
    assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(513));
    assert!(asked.elapsed() >= Duration::from_secs(1), "a backend that returns has some time for it");
    assert_eq!(status_at(&rig, 0xa000), 1, "VIRTIO_BLK_S_IOERR");
    // And what is asked afterwards; a request without room for a status is answered, too.
    queue.add(&[Buf::readable(0x8000, 16), Buf::writable(0xb000, 1)]).unwrap();
    queue.add(&[Buf::readable(0x8000, 16)]).unwrap();
    queue.kick();
    let mut lengths: Vec<_> = (0..2).filter_map(|_| queue.wait(LIMIT).map(|answer| answer.1)).collect();
    lengths.sort_unstable();
    assert_eq!(lengths, [0, 1]);
    assert_eq!(device.stop_queue(0).map(|state| state.base), Some(4));
}

#[test]
fn a_device_that_stays_after_all_is_served_again() {
    let rig = Rig::new();
    let (device, handle, mut queue) = dead(&rig);
    handle.leave(false);
    handle.stay();
    // Each of these takes one connection, and the first may be the one that was given up.
    let backend = loop {
        let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
        let ended = || backend.thread.as_ref().is_none_or(JoinHandle::is_finished);
        eventually("an end or a return", || ended() || handle.state() == State::Connected);
        if handle.state() == State::Connected {
            break backend;
        }
    };
    // All of it is the new one's to fill.
    assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(513));
    assert_eq!(status_at(&rig, 0xa000), 0x5a);
    eventually("return", || handle.state() == State::Connected);
    fill(&rig.memory, &mut queue);
    drop(device);
    backend.thread.unwrap().join().unwrap();
}

#[test]
fn by_force_nobody_is_waited_for_and_the_backend_is_left() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
    let (PciDevice { mut device, .. }, handle) = rig.connect(None).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    backend.filler.fall_asleep();
    queue.add(&[Buf::writable(0xa000, 1)]).unwrap();
    queue.kick();
    handle.leave(true);
    assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(1));
    assert_eq!((status_at(&rig, 0xa000), handle.state()), (1, State::Lost));
    backend.thread.unwrap().join().unwrap();
    drop(device);
}
