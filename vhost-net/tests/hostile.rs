//! What a guest and a tap can do wrong: refused or dropped, counted, and the honest go on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod scene;

use std::sync::atomic::{AtomicBool, Ordering};

use scene::{Guest, LONG, Scene, USUAL, frame, large_segment, namespace, until};
use strata_vhost_net::device::Tuning;
use strata_vhost_net::features as feature;
use strata_virtio::driver::Buf;

const PLAIN: [u8; 12] = [0; 12];
const DESC: u64 = 16;

fn tunings() -> [Tuning; 2] {
    [Tuning::default(), Tuning { plain: true, ..Tuning::default() }]
}

/// An honest frame each way.
fn still_works(scene: &Scene, guest: &mut Guest) {
    let wire = scene.wire();
    guest.send(0, PLAIN, &frame(5, 200));
    assert_eq!(wire.receive(LONG).unwrap(), Some(frame(5, 200)));
    guest.post(0, 1);
    wire.send(&frame(6, 200)).unwrap();
    assert_eq!(guest.receive(0).expect("a frame").1, frame(6, 200));
}

#[test]
fn headers_that_lie_are_dropped_and_counted() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL & !feature::HOST_UFO, 1, 64);
        let (good, segment) = large_segment(4000, 1000);
        let with = |changes: &[(usize, u8)]| {
            let mut header = good;
            changes.iter().for_each(|(at, value)| header[*at] = *value);
            header
        };
        let lies = [
            with(&[(4, 0), (5, 0)]),       // segments of nothing
            with(&[(2, 0xff), (3, 0xff)]), // headers beyond the frame
            with(&[(6, 0xff), (7, 0xff)]), // a checksum that starts beyond it
            with(&[(8, 0xff), (9, 0xff)]), // one that ends beyond it
            with(&[(0, 0)]),               // segments without a checksum
            with(&[(1, 3)]),               // UDP fragments, not negotiated
            with(&[(1, 5)]),               // UDP segments, neither
            with(&[(1, 2)]),               // no such thing
            with(&[(1, 0x7f)]),
            with(&[(1, 0x80)]),
        ];
        // Each between two honest ones, in one batch.
        for (number, lie) in lies.iter().enumerate() {
            guest.post_frame(0, PLAIN, &frame(number as u32, 100));
            guest.post_frame(0, *lie, &segment);
        }
        guest.post_frame(0, PLAIN, &frame(99, 100));
        guest.flush(0);
        for _ in 0..2 * lies.len() + 1 {
            assert!(guest.tx[0].wait(LONG).is_some());
        }
        for number in (0..lies.len() as u32).chain([99]) {
            assert_eq!(wire.receive(LONG).unwrap(), Some(frame(number, 100)));
        }
        let tx = &scene.stats[0].tx;
        assert_eq!(tx.lies.get(), lies.len() as u64);
        assert_eq!(tx.frames.get(), lies.len() as u64 + 1);
        still_works(&scene, &mut guest);
    }
}

/// What passes our check and not the kernel's: an error for one frame, not for the queue.
#[test]
fn what_the_kernel_refuses_is_dropped_and_counted() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 1, 64);
        let (header, mut segment) = large_segment(4000, 1000);
        // A TCP segment that is none: the protocol above IP says so.
        segment[12..14].copy_from_slice(&[0x08, 0x06]);
        for number in 0..5 {
            guest.post_frame(0, header, &segment);
            guest.post_frame(0, PLAIN, &frame(number, 100));
        }
        guest.flush(0);
        (0..10).for_each(|_| assert!(guest.tx[0].wait(LONG).is_some()));
        let mut honest = 0;
        while honest < 5 {
            let received = wire.receive(LONG).unwrap().expect("a frame");
            honest += u32::from(received == frame(honest, 100));
        }
        let tx = &scene.stats[0].tx;
        assert_eq!(tx.frames.get() + tx.refused.get(), 10);
        still_works(&scene, &mut guest);
    }
}

#[test]
fn frames_of_impossible_sizes() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 1, 64);
        let at = 0x700_0000;
        let sizes = [1, 2, 11, 12, 13, 25, 12 + 65_554 + 1, 128 * 1024, 1 << 20, 16 << 20];
        for size in sizes {
            let head = guest.tx[0].add(&[Buf::readable(at, size)]).unwrap();
            guest.flush(0);
            assert_eq!(guest.tx[0].wait(LONG), Some((head, 0)), "{size}");
        }
        // Nothing to read at all.
        let head = guest.tx[0].add(&[Buf::writable(at, 100)]).unwrap();
        guest.flush(0);
        assert_eq!(guest.tx[0].wait(LONG), Some((head, 0)));
        let tx = &scene.stats[0].tx;
        assert_eq!((tx.short.get(), tx.long.get(), tx.frames.get()), (7, 4, 0));
        // A frame in more pieces than the kernel takes, each of one byte.
        let pieces: Vec<Buf> = (0..1500).map(|n| Buf::readable(at + n, 1)).collect();
        guest.tx[0].add_indirect(0x5f0_0000, &pieces).unwrap().unwrap();
        guest.flush(0);
        assert!(guest.tx[0].wait(LONG).is_some());
        still_works(&scene, &mut guest);
        assert_eq!(wire.receive(LONG).unwrap(), Some(frame(5, 200)));
    }
}

/// Writes a descriptor as a guest that keeps to no rule.
fn set_desc(
    guest: &Guest,
    queue: &strata_virtio::driver::DriverQueue,
    index: u64,
    desc: (u64, u32, u16, u16),
) {
    let at = queue.addresses()[0] + DESC * index;
    guest.memory.write_obj(at, desc.0.to_le()).unwrap();
    guest.memory.write_obj(at + 8, desc.1.to_le()).unwrap();
    guest.memory.write_obj(at + 12, desc.2.to_le()).unwrap();
    guest.memory.write_obj(at + 14, desc.3.to_le()).unwrap();
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

#[test]
fn chains_that_make_no_sense_are_answered_empty() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let mut guest = scene.guest(USUAL, 1, 64);
        let table = 0x5f0_0000u64;
        // A table whose only entry is a table.
        guest.memory.write_obj(table, table.to_le()).unwrap();
        guest.memory.write_obj(table + 8, 16u32.to_le()).unwrap();
        guest.memory.write_obj(table + 12, INDIRECT.to_le()).unwrap();
        let chains: [(u64, u32, u16, u16); 12] = [
            (0x700_0000, 100, NEXT, 0xffff),
            (0x700_0000, 100, NEXT, 64),
            (u64::MAX, 100, 0, 0),
            (u64::MAX - 50, 100, 0, 0),
            (0x8000_0000_0000, 100, 0, 0),
            (192 << 20, 1, 0, 0),
            ((192 << 20) - 4, 100, 0, 0),
            (0x700_0000, u32::MAX, 0, 0),
            (table, 16, INDIRECT, 0),
            (table, 17, INDIRECT, 0),
            (table, 0, INDIRECT, 0),
            (table, 16, INDIRECT | NEXT, 1),
        ];
        for (queue, count) in [(1, 0), (0, 0)] {
            let mut seen = count;
            for chain in chains {
                let driver = if queue == 0 { &mut guest.rx[0] } else { &mut guest.tx[0] };
                let head = driver.add(&[Buf::readable(0x700_0000, 64)]).unwrap();
                let mut chain = chain;
                if queue == 0 && chain.2 & INDIRECT == 0 {
                    chain.2 |= WRITE;
                }
                // A loop leads back to itself.
                let driver = if queue == 0 { &guest.rx[0] } else { &guest.tx[0] };
                set_desc(&guest, driver, u64::from(head), chain);
                let driver = if queue == 0 { &mut guest.rx[0] } else { &mut guest.tx[0] };
                driver.publish();
                driver.kick();
                assert_eq!(driver.wait(LONG), Some((head, 0)), "queue {queue}, {chain:?}");
                seen += 1;
            }
            assert_eq!(seen, chains.len());
        }
        // A chain that runs in a circle.
        let head = guest.tx[0].add(&[Buf::readable(0x700_0000, 64)]).unwrap();
        set_desc(&guest, &guest.tx[0], u64::from(head), (0x700_0000, 64, NEXT, head));
        guest.flush(0);
        assert_eq!(guest.tx[0].wait(LONG), Some((head, 0)));
        still_works(&scene, &mut guest);
    }
}

#[test]
fn receive_buffers_that_are_none_are_answered_empty() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 1, Tuning::default());
    let mut guest = scene.guest(USUAL, 1, 64);
    for bufs in [
        vec![Buf::readable(0x700_0000, 2048)],
        vec![Buf::writable(0x700_0000, 1)],
        vec![Buf::writable(0x700_0000, 11)],
        vec![Buf::writable(0x700_0000, 5), Buf::writable(0x710_0000, 6)],
    ] {
        let head = guest.rx[0].add(&bufs).unwrap();
        guest.rx[0].publish();
        guest.rx[0].kick();
        assert_eq!(guest.rx[0].wait(LONG), Some((head, 0)), "{bufs:?}");
    }
    // Buffers of a header's size: a frame takes as many as it needs.
    let wire = scene.wire();
    let sent = frame(3, 100);
    let heads: Vec<u16> =
        (0..20).map(|n| guest.rx[0].add(&[Buf::writable(0x700_0000 + n * 64, 12)]).unwrap()).collect();
    guest.rx[0].publish();
    guest.rx[0].kick();
    wire.send(&sent).unwrap();
    let mut received = Vec::new();
    for expected in heads.iter().take(112usize.div_ceil(12)) {
        let (head, len) = guest.rx[0].wait(LONG).expect("a buffer");
        assert_eq!(head, *expected, "in the order they were given");
        let mut part = vec![0; len as usize];
        let index = heads.iter().position(|h| *h == head).unwrap() as u64;
        guest.memory.read_at(0x700_0000 + index * 64, &mut part).unwrap();
        received.extend(part);
    }
    assert_eq!(received[12..], sent);
    assert_eq!(received[10], 10, "buffers");
}

/// The queue that is broken stops and says so; the other one and the next client do not suffer.
#[test]
fn rings_that_make_no_sense_stop() {
    for broken in [0usize, 1] {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, Tuning::default());
        let mut guest = scene.guest(USUAL, 1, 64);
        still_works(&scene, &mut guest);
        let queue = if broken == 0 { &guest.rx[0] } else { &guest.tx[0] };
        let avail = queue.addresses()[1];
        guest.memory.write_obj(avail + 2, 0x7fffu16.to_le()).unwrap();
        let wire = scene.wire();
        // The receive queue is looked at when there is something to receive.
        strata_virtio::vring::signal(queue.kick_fd());
        wire.send(&frame(1, 100)).unwrap();
        let queue = if broken == 0 { &guest.rx[0] } else { &guest.tx[0] };
        until("the error is reported", || queue.take_error());
        if broken == 0 {
            guest.send(0, PLAIN, &frame(2, 100));
            assert_eq!(wire.receive(LONG).unwrap(), Some(frame(2, 100)));
        } else {
            guest.post(0, 1);
            assert_eq!(guest.receive(0).expect("a frame").1, frame(1, 100));
        }
        drop(guest);
        let mut guest = scene.guest(USUAL, 1, 64);
        if broken == 0 {
            // The frame nobody took is still in the tap.
            guest.post(0, 1);
            assert_eq!(guest.receive(0).expect("a frame").1, frame(1, 100));
        }
        still_works(&scene, &mut guest);
    }
}

/// Rings in the middle of the buffers that are written: nonsense, but only the guest's own.
#[test]
fn buffers_that_cover_the_ring() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 1, Tuning::default());
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 64);
    let [desc, ..] = guest.rx[0].addresses();
    for _ in 0..8 {
        guest.rx[0].add(&[Buf::writable(desc, 4096)]).unwrap();
    }
    guest.rx[0].publish();
    guest.rx[0].kick();
    for number in 0..50 {
        let _ = wire.send(&frame(number, 1500));
    }
    guest.send(0, PLAIN, &frame(2, 100));
    drop(guest);
    while wire.receive(scene::SHORT).unwrap().is_some() {}
    let mut guest = scene.guest(USUAL, 1, 64);
    guest.post(0, 60);
    // What was still in the tap comes first.
    wire.send(&frame(1234, 60)).unwrap();
    loop {
        let (_, received) = guest.receive(0).expect("a frame");
        guest.post(0, 1);
        if received == frame(1234, 60) {
            break;
        }
    }
    still_works(&scene, &mut guest);
}

#[test]
fn a_tap_that_goes_down_and_up_under_load() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 1, 64);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    let _ = wire.send(&frame(number, 500));
                    number += 1;
                }
            });
            for _ in 0..5 {
                scene.namespace.ip("link set tap0 down").unwrap();
                let before = scene.stats[0].tx.link.get();
                for number in 0..100 {
                    guest.send(0, PLAIN, &frame(number, 200));
                }
                assert_eq!(scene.stats[0].tx.link.get() - before, 100);
                scene.namespace.ip("link set tap0 up").unwrap();
                let before = scene.stats[0].tx.frames.get();
                for number in 0..100 {
                    guest.send(0, PLAIN, &frame(number, 200));
                    while guest.rx[0].poll().is_some() {}
                    let free = usize::from(guest.rx[0].free());
                    guest.post(0, free);
                }
                assert_eq!(scene.stats[0].tx.frames.get() - before, 100);
            }
            stop.store(true, Ordering::Relaxed);
        });
        let before = scene.stats[0].rx.frames.get();
        until("frames flow again", || {
            while guest.rx[0].poll().is_some() {}
            let free = usize::from(guest.rx[0].free());
            guest.post(0, free);
            let _ = wire.send(&frame(1, 100));
            scene.stats[0].rx.frames.get() > before + 20
        });
    }
}

#[test]
fn a_tap_that_is_deleted_under_load() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 2, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 2, 64);
        guest.post(0, 32);
        for number in 0..20 {
            wire.send(&frame(number, 100)).unwrap();
        }
        scene.namespace.ip("link del tap0").unwrap();
        for pair in 0..2 {
            for number in 0..100 {
                guest.send(pair, PLAIN, &frame(number, 200));
            }
        }
        assert_eq!(scene.stats.iter().map(|s| s.tx.link.get()).sum::<u64>(), 200);
        // The next client is still accepted.
        drop(guest);
        let mut guest = scene.guest(USUAL, 1, 64);
        guest.send(0, PLAIN, &frame(1, 100));
    }
}

/// A frame too large for all the buffers a guest has is dropped; it must not stop what comes after it.
#[test]
fn a_frame_larger_than_the_whole_ring() {
    for tuning in tunings() {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.namespace.wire("tap0", true).unwrap();
        let mut guest = scene.guest(USUAL, 1, 16);
        guest.post(0, 16);
        let (header, segment) = large_segment(60_000, 1448);
        for _ in 0..3 {
            wire.send(&[&header[..10], &segment].concat()).unwrap();
        }
        wire.send(&[&PLAIN[..10], &frame(1, 100)].concat()).unwrap();
        assert_eq!(guest.receive(0).expect("a frame").1, frame(1, 100));
        assert_eq!(scene.stats[0].rx.no_room.get(), 3);
        until("the link is fine", || wire.send(&[&PLAIN[..10], &frame(2, 100)].concat()).is_ok());
        assert_eq!(guest.receive(0).expect("a frame").1, frame(2, 100));
    }
}
