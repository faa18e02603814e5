//! Backends that are there and do nothing, and none at all for too long.

use std::sync::atomic::Ordering;

use strata_virtio::driver::{Buf, DriverQueue};

use super::reference_test::{Backend, FEATURES, Filler, LIMIT, Rig, eventually, fill, settings};
use super::*;

#[test]
fn a_ring_that_stands_is_seen_and_its_kick_rung() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 2));
    let (PciDevice { mut device, .. }, handle) = rig.connect(Some(2)).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(1, 0).unwrap()).unwrap();
    fill(&rig.memory, &mut queue);
    assert_eq!(handle.stall(), None);
    backend.filler.fall_asleep();
    queue.add(&[Buf::writable(0x8000, 512)]).unwrap();
    queue.kick();
    eventually("a stall", || handle.stall().is_some_and(|stall| stall.time >= Duration::from_millis(100)));
    assert_eq!(handle.stall().map(|stall| stall.queue), Some(1));
    assert_eq!(handle.state(), State::Connected, "slow is not lost");
    // The first kick was taken for nothing; the next one is the monitor's.
    backend.filler.asleep.store(false, Ordering::SeqCst);
    assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(512));
    eventually("the end of the stall", || handle.stall().is_none());
    drop(device);
    backend.thread.unwrap().join().unwrap();
}

#[test]
fn a_device_without_a_backend_asks_for_a_reset_and_the_driver_recovers_it() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
    let called = Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = Arc::clone(&called);
    let hook = Hook(Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    }));
    let bound = Duration::from_millis(200);
    let settings =
        Settings { give_up: Some(bound), hook: Some(hook), ..settings(&rig.path, Kind::Blk, None) };
    let (PciDevice { mut device, notifier, .. }, handle) = connect(settings, &rig.memory, LIMIT).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    fill(&rig.memory, &mut queue);
    let lost = Instant::now();
    // Nobody listens, so that no connection is left for a backend that takes one only.
    let elsewhere = rig.path.with_extension("gone");
    std::fs::rename(&rig.path, &elsewhere).unwrap();
    backend.kill();
    eventually("NEEDS_RESET", || notifier.take().broken);
    assert!(lost.elapsed() >= bound);
    assert_eq!((handle.state(), called.load(Ordering::SeqCst)), (State::Lost, 1));
    // The driver resets the device, and waits anew; as long again, and it is asked again.
    device.stop_queue(0);
    device.reset();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    eventually("NEEDS_RESET again", || notifier.take().broken);
    std::fs::rename(&elsewhere, &rig.path).unwrap();
    let _next = Backend::serve(&rig.listener, Filler::new(2048, 1));
    fill(&rig.memory, &mut queue);
    eventually("return", || handle.state() == State::Connected);
    assert_eq!(called.load(Ordering::SeqCst), 2);
    let (all, longest) = handle.outages();
    assert!(all == longest && Duration::from_micros(all) >= bound, "{all} {longest}");
    drop(device);
}
