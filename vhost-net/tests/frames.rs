//! Frames both ways, through a real socket, real rings and a real tap.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod scene;

use scene::{Guest, LONG, SHORT, Scene, USUAL, datagram, frame, large_segment, namespace, until};
use strata_vhost_net::device::Tuning;
use strata_vhost_net::features as feature;
use strata_vhost_net::host::Wire;
use strata_virtio::driver::Buf;

const PLAIN: [u8; 12] = [0; 12];

/// Both ways into the kernel.
fn both(test: impl Fn(Tuning)) {
    for plain in [false, true] {
        test(Tuning { plain, ..Tuning::default() });
    }
}

fn exchange(guest: &mut Guest, wire: &Wire, frames: u32) {
    let sizes = [60, 64, 1500, 1514, 100, 2035, 2036, 2037, 2048];
    for number in 0..frames {
        let size = sizes[number as usize % sizes.len()];
        let sent = frame(number, size);
        guest.send(0, PLAIN, &sent);
        assert_eq!(wire.receive(LONG).unwrap(), Some(sent), "frame {number} of {size} bytes");
    }
    for number in 0..frames {
        let size = sizes[number as usize % sizes.len()].min(1514);
        let sent = frame(number, size);
        guest.post(0, 1);
        wire.send(&sent).unwrap();
        let (header, received) = guest.receive(0).expect("a frame");
        assert_eq!(received, sent, "frame {number} of {size} bytes");
        assert_eq!(header[10..], [1, 0]);
    }
}

#[test]
fn equal_both_ways() {
    both(|tuning| {
        let Some(namespace) = namespace() else { return };
        namespace.ip("link set lo up").unwrap();
        let scene = Scene::new(namespace, 1, tuning);
        scene.namespace.ip("link set tap0 mtu 9000").unwrap();
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 1, 256);
        exchange(&mut guest, &wire, 100);
        drop(guest);
        let stats = scene.stats[0].clone();
        scene.end();
        assert_eq!((stats.tx.frames.get(), stats.rx.frames.get()), (100, 100));
    });
}

#[test]
fn bursts_keep_their_order() {
    both(|tuning| {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 1, 256);
        for round in 0..20 {
            for number in 0..200 {
                guest.post_frame(0, PLAIN, &frame(round * 1000 + number, 60 + number as usize));
            }
            guest.flush(0);
            for number in 0..200 {
                let sent = frame(round * 1000 + number, 60 + number as usize);
                assert_eq!(wire.receive(LONG).unwrap(), Some(sent));
                assert!(guest.tx[0].wait(LONG).is_some());
            }
        }
        for round in 0..20 {
            guest.post(0, 200);
            for number in 0..200 {
                wire.send(&frame(round * 1000 + number, 60 + number as usize)).unwrap();
            }
            for number in 0..200 {
                let (_, received) = guest.receive(0).expect("a frame");
                assert_eq!(received, frame(round * 1000 + number, 60 + number as usize));
            }
        }
    });
}

/// A mixture of frames that fit a buffer and frames that do not, arriving in one burst.
#[test]
fn large_frames_in_the_middle_of_a_burst() {
    both(|tuning| {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.namespace.wire("tap0", true).unwrap();
        let mut guest = scene.guest(USUAL, 1, 256);
        guest.rx_size = 1536;
        let mut sent = Vec::new();
        for number in 0..60u32 {
            if number % 7 == 3 {
                let (header, segment) = large_segment(3000 + 900 * number as usize, 1000);
                sent.push((header, segment));
            } else {
                sent.push((PLAIN, frame(number, 60 + 20 * number as usize)));
            }
        }
        // All are in the tap's queue before the guest has a buffer, so batches form.
        for (header, frame) in &sent {
            wire.send(&[&header[..10], frame].concat()).unwrap();
        }
        until("the queue is starved", || scene.stats[0].rx.starved.get() > 0);
        guest.post(0, 250);
        for (number, (header, sent)) in sent.iter().enumerate() {
            let (got, received) = guest.receive(0).expect("a frame");
            assert!(received == *sent, "frame {number}: {} bytes instead of {}", received.len(), sent.len());
            assert_eq!(got[..2], header[..2], "frame {number}");
            assert_eq!(usize::from(got[10]), (12 + sent.len()).div_ceil(1536), "frame {number}");
            while guest.rx[0].free() > 60 {
                guest.post(0, 40);
            }
        }
    });
}

#[test]
fn segments_both_ways() {
    both(|tuning| {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.namespace.wire("tap0", true).unwrap();
        let mut guest = scene.guest(USUAL, 1, 256);
        for (payload, size) in [(1000, 300), (3000, 1448), (20_000, 1448), (65_000, 1448)] {
            let (header, segment) = large_segment(payload, size);
            guest.send(0, header, &segment);
            let received = wire.receive(LONG).unwrap().expect("a segment");
            // The length of the headers (2..4) is a hint, which the kernel gives its own value.
            assert_eq!((&received[..2], &received[4..10]), (&header[..2], &header[4..10]));
            assert!(received[10..] == segment, "{payload}");
            let free = usize::from(guest.rx[0].free());
            guest.post(0, free.min(100));
            wire.send(&[&header[..10], &segment].concat()).unwrap();
            let (got, received) = guest.receive(0).expect("a segment");
            assert!(received == segment, "{payload}");
            assert_eq!((&got[..2], &got[4..10]), (&header[..2], &header[4..10]));
        }
    });
}

#[test]
fn without_offloads_the_kernel_cuts_segments() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 1, Tuning::default());
    let wire = scene.namespace.wire("tap0", true).unwrap();
    let none = USUAL & !feature::GUEST_OFFLOADS;
    let mut guest = scene.guest(none, 1, 256);
    guest.post(0, 100);
    let (header, segment) = large_segment(10_000, 1000);
    wire.send(&[&header[..10], &segment].concat()).unwrap();
    for _ in 0..10 {
        let (header, received) = guest.receive(0).expect("a piece");
        assert_eq!(received.len(), 54 + 1000);
        assert_eq!(header[..10], [0; 10], "nothing is left for the guest to do");
    }
    assert!(guest.receive_within(0, SHORT).is_none());
}

#[test]
fn without_mergeable_buffers_one_buffer_takes_all_or_nothing() {
    both(|tuning| {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.namespace.wire("tap0", true).unwrap();
        let mut guest = scene.guest(USUAL & !feature::MRG_RXBUF, 1, 256);
        let (header, segment) = large_segment(20_000, 1448);
        let send = |number: u32, large: bool| {
            let (header, frame) = if large { (header, segment.clone()) } else { (PLAIN, frame(number, 300)) };
            wire.send(&[&header[..10], &frame].concat()).unwrap();
        };
        (0..40).for_each(|number| send(number, number % 5 == 2));
        until("the queue is starved", || scene.stats[0].rx.starved.get() > 0);
        guest.post(0, 100);
        for number in (0..40).filter(|number| number % 5 != 2) {
            let (header, received) = guest.receive(0).expect("a frame");
            assert_eq!(received, frame(number, 300));
            assert_eq!(header[10..], [1, 0]);
        }
        assert_eq!(scene.stats[0].rx.no_room.get(), 8);
    });
}

#[test]
fn a_frame_may_be_in_many_pieces() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 1, Tuning::default());
    scene.namespace.ip("link set tap0 mtu 9000").unwrap();
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 256);
    for (len, piece) in [(100, 1), (1514, 13), (5000, 50), (5000, 5)] {
        let sent = frame(7, len);
        let all = [&PLAIN[..], &sent].concat();
        let base = 0x600_0000;
        let bufs: Vec<Buf> = all
            .chunks(piece)
            .enumerate()
            .map(|(i, bytes)| {
                let gpa = base + 0x400 * i as u64;
                guest.memory.write_at(gpa, bytes).unwrap();
                Buf::readable(gpa, bytes.len() as u32)
            })
            .collect();
        guest.tx[0].add_indirect(0x5f0_0000, &bufs).unwrap().expect("a descriptor");
        guest.flush(0);
        assert_eq!(wire.receive(LONG).unwrap(), Some(sent), "{len} bytes in pieces of {piece}");
        assert!(guest.tx[0].wait(LONG).is_some());
    }
}

#[test]
fn the_next_client_is_served() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 1, Tuning::default());
    let wire = scene.wire();
    for _ in 0..5 {
        let mut guest = scene.guest(USUAL, 1, 64);
        guest.post(0, 30);
        wire.send(&frame(1, 200)).unwrap();
        assert_eq!(guest.receive(0).expect("a frame").1, frame(1, 200));
        guest.send(0, PLAIN, &frame(2, 90));
        assert_eq!(wire.receive(LONG).unwrap(), Some(frame(2, 90)));
    }
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    both(|tuning| {
        let Some(namespace) = namespace() else { return };
        let scene = Scene::new(namespace, 1, tuning);
        let wire = scene.wire();
        let mut guest = scene.guest(USUAL, 1, 64);
        let mut number = 0;
        for round in 0..20u16 {
            guest.post(0, 40);
            for _ in 0..30 {
                wire.send(&frame(number, 100)).unwrap();
                assert_eq!(guest.receive(0).expect("a frame").1, frame(number, 100));
                guest.post(0, 1);
                number += 1;
            }
            let base = guest.frontend.stop(0).unwrap();
            // Every buffer before the base has been used; forty are left, plus one for each used.
            assert_eq!(base, (number as u16), "round {round}");
            guest.frontend.start(0, &guest.rx[0], base).unwrap();
            for _ in 0..40 {
                wire.send(&frame(number, 100)).unwrap();
                assert_eq!(guest.receive(0).expect("a frame").1, frame(number, 100));
                number += 1;
            }
        }
    });
}

#[test]
fn the_tap_is_not_read_without_buffers() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 1, Tuning::default());
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 64);
    for number in 0..100 {
        wire.send(&frame(number, 100)).unwrap();
    }
    until("the queue is starved", || scene.stats[0].rx.starved.get() > 0);
    assert_eq!(scene.stats[0].rx.frames.get(), 0);
    // Nothing was lost by waiting.
    for number in 0..100 {
        guest.post(0, 1);
        assert_eq!(guest.receive(0).expect("a frame").1, frame(number, 100));
    }
}

#[test]
fn pairs_work_side_by_side() {
    let Some(namespace) = namespace() else { return };
    let scene = Scene::new(namespace, 4, Tuning::default());
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 4, 64);
    guest.start_control(4);
    assert_eq!(guest.command(&[4, 0, 4, 0]), 0);
    for pair in 0..4 {
        guest.send(pair, PLAIN, &frame(pair as u32, 100));
        assert_eq!(wire.receive(LONG).unwrap(), Some(frame(pair as u32, 100)));
    }
    (0..4).for_each(|pair| guest.post(pair, 60));
    // The kernel steers by flow: enough of them reach every queue.
    let total = 100u32;
    for number in 0..total {
        wire.send(&datagram(number as u16, 100)).unwrap();
    }
    let received = || scene.stats.iter().map(|s| s.rx.frames.get()).sum::<u64>();
    until("all frames are there", || received() == u64::from(total));
    // One pair again: what comes goes to the first.
    assert_eq!(guest.command(&[4, 0, 1, 0]), 0);
    let before = scene.stats[0].rx.frames.get();
    while guest.rx[0].poll().is_some() {}
    guest.post(0, 20);
    for number in 0..20 {
        wire.send(&datagram(number as u16, 100)).unwrap();
    }
    until("the first pair has them", || scene.stats[0].rx.frames.get() == before + 20);
}
