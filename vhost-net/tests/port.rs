//! What a port does beside passing frames: guard, rate limits, captures. Real socket, rings and tap.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod scene;

use std::time::Duration;

use scene::{Guest, LONG, MAC, SHORT, Scene, TAP, USUAL, frame, large_segment, namespace, until};
use strata_vhost_net::capture::{Direction, WHOLE};
use strata_vhost_net::device::Tuning;
use strata_vhost_net::guard::Guard;
use strata_vhost_net::limit::Rate;
use strata_vhost_net::port::Settings;
use strata_vhost_net::tap::Tap;

const PLAIN: [u8; 12] = [0; 12];

fn scene(settings: Settings) -> Option<Scene> {
    let namespace = namespace()?;
    let tap = namespace.run(|| Tap::open(TAP, 1, true)).unwrap().unwrap();
    namespace.ip(&format!("link set {TAP} up")).unwrap();
    Some(Scene::with_settings(namespace, tap, settings, Tuning::default()))
}

/// A frame from the guest's own address.
fn own(number: u32, len: usize) -> Vec<u8> {
    let mut frame = frame(number, len);
    frame[6..12].copy_from_slice(&MAC.bytes());
    frame
}

#[test]
fn a_guest_can_be_held_to_its_address() {
    let guard = Guard { mac: Some(MAC), ..Guard::default() };
    let Some(scene) = scene(Settings { guard, ..Settings::default() }) else { return };
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 64);
    guest.start_control(1);
    // `frame` is from somebody else.
    guest.send(0, PLAIN, &frame(1, 100));
    guest.send(0, PLAIN, &own(2, 100));
    // A long one, of which only the beginning is looked at.
    let (header, mut segment) = large_segment(9000, 1000);
    guest.send(0, header, &segment);
    segment[6..12].copy_from_slice(&MAC.bytes());
    assert_eq!(wire.receive(LONG).unwrap(), Some(own(2, 100)));
    assert_eq!(scene.stats[0].tx.guard.mac.get(), 2);
    // It cannot take another address either, but may say its own again.
    let set = |mac: [u8; 6]| [&[1, 1][..], &mac].concat();
    assert_eq!(guest.command(&set([0x52, 0x54, 0, 7, 7, 7])), 1);
    assert_eq!(guest.command(&set(MAC.bytes())), 0);
}

#[test]
fn frames_over_a_limit_wait_and_none_is_lost() {
    let Some(scene) = scene(Settings::default()) else { return };
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 128);
    let port = scene.card.port().clone();
    // 50 frames at once, then one each millisecond.
    let rate = Rate { packets: Some(1000), burst: Duration::from_millis(50), ..Rate::default() };
    port.tx.set(rate);
    port.rx.set(rate);
    for number in 0..120 {
        guest.post_frame(0, PLAIN, &own(number, 100));
    }
    guest.flush(0);
    for number in 0..120 {
        assert_eq!(wire.receive(LONG).unwrap(), Some(own(number, 100)));
    }
    for _ in 0..120 {
        assert!(guest.tx[0].wait(LONG).is_some());
    }
    assert!(scene.stats[0].tx.throttled.get() > 0);
    guest.post(0, 120);
    for number in 0..120 {
        wire.send(&frame(number, 100)).unwrap();
    }
    for number in 0..120 {
        assert_eq!(guest.receive(0).expect("a frame").1, frame(number, 100));
    }
    assert!(scene.stats[0].rx.throttled.get() > 0);
    // Lifted, it is gone.
    port.tx.set(Rate::default());
    guest.send(0, PLAIN, &own(7, 60));
    assert_eq!(wire.receive(LONG).unwrap(), Some(own(7, 60)));
}

#[test]
fn a_limit_below_one_frame_lets_one_pass_at_a_time() {
    let bits = Rate { bits: Some(200_000), burst: Duration::from_millis(5), ..Rate::default() };
    let Some(scene) = scene(Settings { tx: bits, ..Settings::default() }) else { return };
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 64);
    for number in 0..4 {
        guest.post_frame(0, PLAIN, &own(number, 1500));
    }
    guest.flush(0);
    for number in 0..4 {
        assert_eq!(wire.receive(LONG).unwrap(), Some(own(number, 1500)));
    }
    assert!(scene.stats[0].tx.throttled.get() > 0);
}

fn captured(guest: &mut Guest, scene: &Scene) {
    let wire = scene.namespace.wire(TAP, true).unwrap();
    let captures = &scene.card.port().captures;
    let (whole, heads) = (captures.start(WHOLE).unwrap(), captures.start(20).unwrap());
    let (header, segment) = large_segment(20_000, 1000);
    guest.send(0, PLAIN, &own(1, 100));
    guest.send(0, header, &segment);
    guest.post(0, 60);
    wire.send(&[&PLAIN[..10], &frame(2, 200)].concat()).unwrap();
    assert_eq!(guest.receive(0).expect("a frame").1, frame(2, 200));
    wire.send(&[&header[..10], &segment].concat()).unwrap();
    assert!(guest.receive(0).expect("a frame").1 == segment);
    until("all frames are counted", || whole.counts().0 == 4);
    let sent = [
        (Direction::Outbound, own(1, 100)),
        (Direction::Outbound, segment.clone()),
        (Direction::Inbound, frame(2, 200)),
        (Direction::Inbound, segment),
    ];
    for (direction, frame) in sent {
        let (long, short) = (whole.take().unwrap(), heads.take().unwrap());
        assert_eq!((long.direction, long.length), (direction, frame.len()));
        assert!(long.data == frame);
        assert_eq!((short.length, &short.data[..]), (frame.len(), &frame[..20]));
    }
    assert_eq!((whole.counts(), whole.take().is_none()), ((4, 0), true));
}

#[test]
fn a_capture_sees_both_ways_whole() {
    let Some(scene) = scene(Settings::default()) else { return };
    let mut guest = scene.guest(USUAL, 1, 128);
    captured(&mut guest, &scene);
    // Again, with nobody looking in between.
    guest.send(0, PLAIN, &own(9, 100));
    captured(&mut guest, &scene);
}

#[test]
fn nothing_passes_a_cut_cable() {
    let Some(scene) = scene(Settings::default()) else { return };
    let wire = scene.wire();
    let mut guest = scene.guest(USUAL, 1, 64);
    scene.card.set_link(false);
    guest.send(0, PLAIN, &own(1, 100));
    assert_eq!(wire.receive(SHORT).unwrap(), None);
    scene.card.set_link(true);
    guest.send(0, PLAIN, &own(2, 100));
    assert_eq!(wire.receive(LONG).unwrap(), Some(own(2, 100)));
}
