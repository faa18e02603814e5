//! The switch without threads: drivers in this process, a round of the switch whenever the test says so.

#[path = "fabric_test/world.rs"]
mod world;

use strata_virtio::spec::RING_FEATURES;

use super::*;
use crate::guard::{Guard, address};
use crate::limit::Rate;
use world::*;

#[test]
fn frames_go_where_their_address_was_seen_and_everywhere_until_then() {
    let mut lab = Lab::new(vec![access(0, 1), access(1, 1), access(2, 1)]);
    let hello = ethernet(mac(1), mac(0), 1, 60);
    lab.send(0, &hello);
    assert_eq!(lab.received(), [none(), vec![hello.clone()], vec![hello]], "nobody knows where 1 is");
    let answer = ethernet(mac(0), mac(1), 2, 1500);
    lab.send(1, &answer);
    assert_eq!(lab.received(), [vec![answer], none(), none()]);
    let again = ethernet(mac(1), mac(0), 3, 61);
    lab.send(0, &again);
    assert_eq!(lab.received(), [none(), vec![again], none()]);
    let all = ethernet(EVERYONE, mac(2), 4, 64);
    lab.send(2, &all);
    assert_eq!(lab.received(), [vec![all.clone()], vec![all], none()]);
    assert_eq!((lab.count(0, "tx_frames"), lab.count(0, "tx_flooded"), lab.count(0, "rx_frames")), (2, 1, 2));
    assert_eq!(lab.fabric.rows().len(), 3);
    // An address of the port's own: it has heard that already.
    lab.send(0, &ethernet(mac(0), mac(0), 5, 60));
    assert_eq!(lab.received(), [none(), none(), none()]);
    assert_eq!(lab.count(0, "tx_drop_filtered"), 1);
}

#[test]
fn vlans_are_kept_apart_and_trunks_join_them_by_tag() {
    let mut lab = Lab::new(vec![
        access(0, 10),
        access(1, 10),
        access(2, 20),
        trunk(3, None, &[10, 20]),
        trunk(4, Some(20), &[10]),
    ]);
    let all = ethernet(EVERYONE, mac(0), 1, 70);
    lab.send(0, &all);
    assert_eq!(
        lab.received(),
        [none(), vec![all.clone()], none(), vec![tagged(&all, 10)], vec![tagged(&all, 10)]]
    );
    // The same address in another VLAN is another one.
    let lost = ethernet(mac(0), mac(2), 2, 60);
    lab.send(2, &lost);
    assert_eq!(lab.received(), [none(), none(), none(), vec![tagged(&lost, 20)], vec![lost]]);
    // From a trunk by tag, priority kept on the way to another, gone for the access port.
    let high = ethernet(mac(0), mac(3), 3, 90);
    lab.send(3, &tagged(&high, 5 << 13 | 10));
    assert_eq!(lab.received(), [vec![high], none(), none(), none(), none()]);
    let native = ethernet(EVERYONE, mac(4), 4, 60);
    lab.send(4, &native);
    assert_eq!(lab.received(), [none(), none(), vec![native.clone()], vec![tagged(&native, 20)], none()]);
    let passed = tagged(&ethernet(EVERYONE, mac(3), 5, 60), 6 << 13 | 10);
    lab.send(3, &passed);
    assert_eq!(lab.received()[4], [passed]);
}

/// What a guest on VLAN 10 can try to reach VLAN 20.
#[test]
fn a_guest_cannot_cross() {
    let mut lab = Lab::new(vec![access(0, 10), access(1, 20), trunk(2, Some(10), &[20])]);
    lab.send(1, &ethernet(EVERYONE, mac(1), 0, 60));
    lab.received();
    let plain = ethernet(mac(1), mac(0), 1, 60);
    lab.send(0, &plain);
    lab.send(0, &tagged(&plain, 20));
    lab.send(0, &tagged(&tagged(&plain, 20), 10));
    lab.send(0, &tagged(&tagged(&plain, 20), 0));
    lab.send(0, &tagged(&plain, 0xfff));
    // Nor by being in VLAN 10 on the trunk, where that one has no tag.
    let [nothing, crossed, trunk] = lab.received().try_into().unwrap();
    assert_eq!((nothing, crossed), (none(), none()));
    assert_eq!(trunk, [plain], "the plain one, in its own VLAN");
    assert_eq!(lab.count(0, "tx_drop_vlan"), 4);
    // The trunk's own guest may name 20, not 30, and what has two tags keeps both.
    lab.send(2, &tagged(&ethernet(mac(1), mac(2), 2, 60), 30));
    assert_eq!(lab.received(), [none(), none(), none()]);
    assert_eq!(lab.count(2, "tx_drop_vlan"), 1);
}

#[test]
fn isolated_ports_reach_only_those_that_are_not() {
    let isolated = |number| {
        let mut port = access(number, 1);
        port.isolated = true;
        port
    };
    let mut lab = Lab::new(vec![isolated(0), isolated(1), access(2, 1)]);
    let all = ethernet(EVERYONE, mac(0), 1, 60);
    lab.send(0, &all);
    assert_eq!(lab.received(), [none(), none(), vec![all]]);
    lab.send(1, &ethernet(EVERYONE, mac(1), 2, 60));
    lab.received();
    lab.send(0, &ethernet(mac(1), mac(0), 3, 60));
    assert_eq!(lab.received(), [none(), none(), none()]);
    assert_eq!(lab.count(0, "tx_drop_filtered"), 1);
    let down = ethernet(mac(0), mac(2), 4, 60);
    lab.send(2, &down);
    assert_eq!(lab.received(), [vec![down], none(), none()]);
}

/// The rules are `guard_test`'s; here is that a port asks for them, of enough of the frame, and before it learns.
#[test]
fn a_guest_claims_to_be_another() {
    let mut guarded = access(0, 1);
    let addresses = vec![address("192.0.2.7").unwrap()];
    guarded.guard = Guard { mac: Some(guarded.mac), addresses, dhcp: true, router: false };
    let mut lab = Lab::new(vec![guarded, access(1, 1)]);
    let v4 = |source: [u8; 4], from: u16| {
        let mut frame = ethernet(EVERYONE, mac(0), 0, 60);
        frame[12..14].copy_from_slice(&[8, 0]);
        frame[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0, 0, 64, 17]);
        frame[26..30].copy_from_slice(&source);
        frame[34..38].copy_from_slice(&[from.to_be_bytes(), [0, 68]].concat());
        frame[36] = if from == 67 { 0 } else { 1 };
        frame
    };
    for (frame, counter) in [
        (v4([192, 0, 2, 8], 1000), "tx_drop_guard_ip"),
        (v4([192, 0, 2, 7], 67), "tx_drop_guard_dhcp"),
        (ethernet(EVERYONE, mac(1), 1, 60), "tx_drop_guard_mac"),
    ] {
        lab.send(0, &frame);
        assert_eq!(lab.count(0, counter), 1, "{counter}");
    }
    assert_eq!(lab.received(), [none(), none()]);
    let own = v4([192, 0, 2, 7], 1000);
    lab.send(0, &own);
    assert_eq!(lab.received(), [none(), vec![own]]);
    // The address it claimed is not taken for its own.
    let back = ethernet(mac(1), mac(0), 2, 60);
    lab.send(0, &back);
    assert_eq!(lab.count(0, "tx_drop_filtered"), 0);
}

#[test]
fn what_no_card_sends_is_dropped_and_counted() {
    let mut guarded = access(0, 1);
    guarded.guard.mac = Some(guarded.mac);
    let mut lab = Lab::new(vec![guarded, access(1, 1)]);
    for (frame, counter) in [
        (ethernet(EVERYONE, [3, 0, 0, 0, 0, 1], 1, 60), "tx_drop_source"),
        (ethernet(EVERYONE, [0; 6], 1, 60), "tx_drop_source"),
        (ethernet(EVERYONE, mac(9), 1, 60), "tx_drop_guard_mac"),
        (ethernet([0x01, 0x80, 0xc2, 0, 0, 0], mac(0), 1, 60), "tx_drop_reserved"),
        (vec![2; 13], "tx_drop_short"),
        (tagged(&ethernet(EVERYONE, mac(0), 1, 60), 0)[..17].to_vec(), "tx_drop_short"),
        (ethernet(EVERYONE, mac(0), 1, 65_555), "tx_drop_long"),
    ] {
        let before = lab.count(0, counter);
        lab.send(0, &frame);
        assert_eq!(lab.count(0, counter), before + 1, "{counter}");
    }
    let mut lie = PLAIN;
    [lie[0], lie[6], lie[7]] = [1, 0xff, 0xff];
    lab.guests[0].send(lie, &ethernet(EVERYONE, mac(0), 1, 60));
    // A sum that begins in the tag that is to be taken off.
    let mut inside = PLAIN;
    [inside[0], inside[6]] = [1, 15];
    lab.guests[0].send(inside, &tagged(&ethernet(EVERYONE, mac(0), 1, 60), 0));
    lab.run();
    assert_eq!(lab.count(0, "tx_drop_header"), 2);
    assert_eq!(lab.received(), [none(), none()]);
    assert_eq!(lab.count(0, "tx_frames"), 0);
}

/// A guest that returns no buffers loses its own frames, and gets what waited, in order, when it does.
#[test]
fn a_guest_that_hangs_is_nobody_elses_trouble() {
    let mut lab = Lab::new(vec![access(0, 1), access(1, 1), access(2, 1)]);
    for number in 1..3 {
        lab.send(number, &ethernet(EVERYONE, mac(number as u8), 0, 60));
    }
    lab.received();
    // Ten buffers are left to 1 and six to 2, who returns them.
    let mut sent = 0u32;
    for round in 0..100u32 {
        for _ in 0..16 {
            let mut frame = ethernet(mac(1), mac(0), 0, 1400);
            frame[15..19].copy_from_slice(&sent.to_be_bytes());
            sent += 1;
            lab.guests[0].send(PLAIN, &frame);
            lab.run();
        }
        let frame = ethernet(mac(2), mac(0), round as u8, 200);
        lab.send(0, &frame);
        assert_eq!(lab.guests[2].frames(), [frame], "round {round}");
        let free = usize::from(lab.guests[2].rx.free());
        lab.guests[2].post(free.min(4));
    }
    let (got, full) = (lab.count(1, "rx_frames"), lab.count(1, "rx_drop_full"));
    let waits = lab.count(1, "rx_waited");
    // The one it heard of 2 is among them.
    assert_eq!(got + waits + full, u64::from(sent) + 1);
    assert!(full > 0 && waits * 1412 <= super::super::lane::WAITING_BYTES as u64, "{got} {waits} {full}");
    let mut next = 0;
    let mut idle = 0;
    while idle < 3 {
        idle += 1;
        for frame in lab.guests[1].frames() {
            assert_eq!(u32::from_be_bytes(frame[15..19].try_into().unwrap()), next, "in order, none twice");
            (next, idle) = (next + 1, 0);
        }
        let free = usize::from(lab.guests[1].rx.free());
        lab.guests[1].post(free);
        lab.run();
    }
    assert_eq!(u64::from(next), got + waits - 1);
    assert_eq!(lab.count(1, "rx_drop_full"), full);
}

/// A TCP segment of 4000 bytes to be cut into pieces of 1000, with its header.
fn segment(to: u8, from: u8) -> ([u8; HEADER], Vec<u8>) {
    let mut frame = [&mac(to)[..], &mac(from), &[0x08, 0x00, 0x45, 0]].concat();
    frame.extend((4040u16).to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    frame.extend([0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 1, 0, 0, 0, 0, 0]);
    frame.extend((0..4000).map(|n| (n % 251) as u8));
    let mut header = PLAIN;
    header[..10].copy_from_slice(&[1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
    (header, frame)
}

/// Each port gets what its driver can take: the segment whole, whole behind a tag, or in pieces.
#[test]
fn offloads_are_each_ports_own() {
    let ports = vec![access(0, 1), access(1, 1), access(2, 1), trunk(3, None, &[1])];
    let mut lab = Lab::with(ports, |port| if port == 2 { (RING_FEATURES, 1526) } else { (FEATURES, 2048) });
    let (header, mut frame) = segment(0xff, 0);
    frame[..6].copy_from_slice(&EVERYONE);
    lab.guests[0].send(header, &frame);
    lab.run();
    assert_eq!(lab.guests[1].receive(), Some((header, frame.clone())), "whole");
    let mut moved = header;
    [moved[2], moved[6]] = [58, 38];
    assert_eq!(lab.guests[3].receive(), Some((moved, tagged(&frame, 1))), "behind a tag");
    let pieces: Vec<_> = std::iter::from_fn(|| lab.guests[2].receive()).collect();
    assert_eq!(pieces.len(), 4);
    assert!(pieces.iter().all(|(header, piece)| *header == PLAIN && piece.len() == 1054));
    let payload: Vec<u8> = pieces.iter().flat_map(|(_, piece)| piece[54..].to_vec()).collect();
    assert_eq!(payload, frame[54..]);
    assert_eq!((lab.count(2, "rx_cut"), lab.count(2, "rx_frames"), lab.count(1, "rx_cut")), (1, 4, 0));
    // A partial sum alone.
    let mut sum = PLAIN;
    [sum[0], sum[6], sum[8]] = [1, 34, 16];
    lab.guests[0].send(sum, &frame[..600]);
    lab.run();
    assert_eq!(lab.guests[1].receive(), Some((sum, frame[..600].to_vec())));
    let (header, whole) = lab.guests[2].receive().unwrap();
    assert_eq!(header, PLAIN);
    assert_ne!(whole[50..52], [0, 0], "the sum is in its place");
    assert_eq!(lab.count(2, "rx_completed"), 1);
    // What says it is TCP and is not.
    frame[14] = 0x60;
    let (header, _) = segment(0, 0);
    lab.guests[0].send(header, &frame);
    lab.run();
    assert_eq!(lab.count(2, "rx_drop_uncut"), 1);
}

#[test]
fn a_frame_too_large_for_its_receiver_stops_nothing() {
    let mut lab = Lab::with(vec![access(0, 1), access(1, 1), access(2, 1)], |port| match port {
        1 => (RING_FEATURES, 1526),
        _ => (FEATURES, 1000),
    });
    let large = ethernet(EVERYONE, mac(0), 1, 4000);
    let small = ethernet(EVERYONE, mac(0), 2, 60);
    lab.send(0, &large);
    lab.send(0, &small);
    assert_eq!(lab.received(), [none(), vec![small.clone()], vec![large, small]]);
    assert_eq!(lab.count(1, "rx_drop_no_room"), 1);
    // Larger than all its buffers together.
    for _ in 0..3 {
        let free = usize::from(lab.guests[2].rx.free());
        lab.guests[2].post(free);
        lab.send(0, &ethernet(EVERYONE, mac(0), 3, 65_000));
    }
    assert_eq!(lab.count(2, "rx_drop_no_room"), 3);
    assert_eq!(lab.received()[2], none());
}

#[test]
fn a_link_that_is_down_passes_nothing_either_way() {
    let mut lab = Lab::new(vec![access(0, 1), access(1, 1), access(2, 1)]);
    lab.send(1, &ethernet(EVERYONE, mac(1), 1, 60));
    lab.received();
    lab.ports[1].set_link(false);
    lab.send(0, &ethernet(mac(1), mac(0), 2, 60));
    lab.send(0, &ethernet(EVERYONE, mac(0), 3, 60));
    lab.send(1, &ethernet(EVERYONE, mac(1), 4, 60));
    let [zero, one, two] = lab.received().try_into().unwrap();
    assert_eq!((zero.len(), one.len(), two.len()), (0, 0, 1));
    assert_eq!((lab.count(1, "rx_drop_link"), lab.count(1, "tx_drop_link")), (1, 1));
    lab.ports[1].set_link(true);
    lab.send(1, &ethernet(EVERYONE, mac(1), 5, 60));
    assert_eq!(lab.received()[0].len(), 1);
}

#[test]
fn a_guest_over_its_rate_waits_and_one_that_is_sent_too_much_loses_it() {
    let slow = Rate { packets: Some(100), burst: Duration::from_millis(50), ..Rate::default() };
    let mut lab = Lab::new(vec![access(0, 1), access(1, 1), access(2, 1)]);
    lab.ports[0].from_guest.set(slow);
    for _ in 0..20 {
        lab.guests[0].send(PLAIN, &ethernet(EVERYONE, mac(0), 1, 60));
    }
    lab.run();
    assert!(lab.count(0, "tx_frames") < 10, "{}", lab.count(0, "tx_frames"));
    assert!(!lab.fabric.has_work() && lab.fabric.wake_after().is_some(), "it sleeps until it may");
    let deadline = Instant::now() + Duration::from_secs(60);
    while lab.count(0, "tx_frames") < 20 {
        assert!(Instant::now() < deadline);
        lab.run();
        lab.received();
        lab.guests.iter_mut().for_each(|guest| guest.post(usize::from(guest.rx.free())));
    }
    lab.ports[1].to_guest.set(slow);
    for _ in 0..20 {
        lab.send(2, &ethernet(EVERYONE, mac(2), 1, 60));
    }
    assert!(lab.count(1, "rx_drop_rate") > 5);
    assert_eq!(lab.count(0, "rx_drop_rate"), 0);
}

#[test]
fn a_ring_that_breaks_stops_alone() {
    let mut lab = Lab::new(vec![access(0, 1), access(1, 1), access(2, 1)]);
    for (port, queue) in [(0, Queue::Transmit), (1, Queue::Receive)] {
        let guest = &lab.guests[port];
        let driver = if queue == Queue::Transmit { &guest.tx } else { &guest.rx };
        guest.memory.write_obj(driver.addresses()[1] + 2, 0x7fffu16.to_le()).unwrap();
    }
    lab.run();
    assert!(lab.guests[0].tx.take_error());
    for number in 0..5 {
        let frame = ethernet(EVERYONE, mac(2), number, 60);
        lab.send(2, &frame);
        assert_eq!(lab.guests[0].frames(), [frame], "0 still receives");
        lab.guests[1].send(PLAIN, &ethernet(EVERYONE, mac(1), number, 60));
        lab.run();
        assert_eq!(lab.guests[2].frames().len(), 1, "1 still sends");
        lab.guests[0].frames();
    }
    assert!(lab.guests[1].rx.take_error());
    assert!(lab.count(1, "rx_waited") > 0);
}

#[test]
fn a_queue_comes_back_with_everything_answered() {
    let mut lab = Lab::new(vec![access(0, 1), access(1, 1)]);
    for number in 0..5 {
        lab.send(0, &ethernet(EVERYONE, mac(0), number, 60));
    }
    assert_eq!(lab.fabric.rows().len(), 1);
    let tx = lab.fabric.unplug(0, Queue::Transmit).unwrap();
    let rx = lab.fabric.unplug(1, Queue::Receive).unwrap();
    assert_eq!((tx.state().base, rx.state().base), (5, 5));
    assert!(lab.fabric.unplug(0, Queue::Transmit).is_none());
    lab.fabric.unplug(0, Queue::Receive).unwrap();
    assert!(lab.fabric.rows().is_empty(), "its address is forgotten");
    // It goes on where it was.
    lab.fabric.plug(1, Queue::Receive, rx, FEATURES);
    lab.fabric.plug(0, Queue::Transmit, tx, FEATURES);
    lab.send(0, &ethernet(EVERYONE, mac(0), 9, 60));
    assert_eq!(lab.guests[1].frames().len(), 6);
}
