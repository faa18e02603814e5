//! The control queue, the configuration space, the link: what a driver asks of its card, and what it sees.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod scene;

use std::io::Read;

use scene::{Guest, LONG, MAC, SHORT, Scene, USUAL, frame, large_segment, namespace, until};
use strata_vhost_net::device::Tuning;
use strata_vhost_net::features as feature;
use strata_vhost_net::host::Wire;
use strata_vhost_net::mac::Mac;

const OK: u8 = 0;
const REFUSED: u8 = 1;

fn card(pairs: usize) -> Option<(Scene, Guest)> {
    let scene = Scene::new(namespace()?, pairs, Tuning::default());
    let mut guest = scene.guest(USUAL, pairs, 64);
    guest.start_control(pairs);
    guest.post(0, 60);
    Some((scene, guest))
}

fn to(mac: [u8; 6], number: u32) -> Vec<u8> {
    let mut frame = frame(number, 100);
    frame[..6].copy_from_slice(&mac);
    frame
}

/// Whether the guest gets a frame to `mac`. A frame that passes any filter follows it, so that no time is waited.
fn gets(guest: &mut Guest, wire: &Wire, mac: [u8; 6], passing: [u8; 6]) -> bool {
    // The kernel reports a frame it filters out as one it had no room for.
    let _ = wire.send(&to(mac, 1));
    wire.send(&to(passing, 2)).unwrap();
    let (_, first) = guest.receive(0).expect("a frame");
    guest.post(0, 1);
    if first == to(passing, 2) {
        return false;
    }
    assert_eq!(first, to(mac, 1));
    assert_eq!(guest.receive(0).expect("a frame").1, to(passing, 2));
    guest.post(0, 1);
    true
}

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 7];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 5];
const EVERYONE: [u8; 6] = [0xff; 6];

fn addresses(unicast: &[[u8; 6]], multicast: &[[u8; 6]]) -> Vec<u8> {
    let mut command = vec![1, 0];
    for table in [unicast, multicast] {
        command.extend((table.len() as u32).to_le_bytes());
        table.iter().for_each(|mac| command.extend(mac));
    }
    command
}

#[test]
fn the_kernel_filters_by_destination() {
    let Some((scene, mut guest)) = card(1) else { return };
    let wire = scene.wire();
    let own = MAC.bytes();
    // Until the driver says what it wants, it gets all.
    assert!(gets(&mut guest, &wire, OTHER, own));
    assert_eq!(guest.command(&[0, 0, 0]), OK);
    assert!(!gets(&mut guest, &wire, OTHER, own));
    assert!(!gets(&mut guest, &wire, GROUP, own));
    assert!(gets(&mut guest, &wire, EVERYONE, own));
    assert_eq!(guest.command(&addresses(&[OTHER], &[GROUP])), OK);
    assert!(gets(&mut guest, &wire, OTHER, own));
    assert!(gets(&mut guest, &wire, GROUP, own));
    assert!(!gets(&mut guest, &wire, [2, 0, 0, 0, 0, 8], own));
    assert_eq!(guest.command(&addresses(&[], &[])), OK);
    assert!(!gets(&mut guest, &wire, OTHER, own));
    assert_eq!(guest.command(&[0, 1, 1]), OK, "all groups");
    assert!(gets(&mut guest, &wire, [1, 2, 3, 4, 5, 6], own));
    // The address itself can be changed.
    assert_eq!(guest.command(&[1, 1, 2, 0, 0, 0, 0, 7]), OK);
    assert_eq!(guest.frontend.config(0, 6).unwrap(), OTHER);
    assert!(gets(&mut guest, &wire, OTHER, EVERYONE));
    assert!(!gets(&mut guest, &wire, own, EVERYONE));
    assert_eq!(guest.command(&[0, 0, 1]), OK, "promiscuous");
    assert!(gets(&mut guest, &wire, own, EVERYONE));
    // More cards than the kernel compares: all pass rather than some be lost.
    let many: Vec<[u8; 6]> = (0..20).map(|n| [2, 0, 0, 1, 0, n]).collect();
    assert_eq!(guest.command(&[0, 0, 0]), OK);
    assert_eq!(guest.command(&addresses(&many, &[])), OK);
    for mac in many {
        assert!(gets(&mut guest, &wire, mac, EVERYONE), "{mac:?}");
    }
}

#[test]
fn vlans_are_filtered_once_one_is_named() {
    let Some((scene, mut guest)) = card(1) else { return };
    let wire = scene.wire();
    let tagged = |id: u16| {
        let mut frame = frame(9, 100);
        frame.splice(12..12, [0x81, 0, (id >> 8) as u8, id as u8]);
        frame
    };
    // A burst, so that filtered frames lie among others in a batch.
    let burst = |guest: &mut Guest| {
        for number in 0..30 {
            wire.send(&tagged(number % 3)).unwrap();
        }
        wire.send(&frame(77, 90)).unwrap();
        let mut seen = Vec::new();
        loop {
            let (_, frame) = guest.receive(0).expect("a frame");
            guest.post(0, 1);
            if frame == scene::frame(77, 90) {
                return seen;
            }
            seen.push(u16::from_be_bytes([frame[14], frame[15]]));
        }
    };
    assert_eq!(burst(&mut guest), (0..30).map(|n| n % 3).collect::<Vec<u16>>());
    assert_eq!(guest.command(&[2, 0, 1, 0]), OK);
    assert_eq!(burst(&mut guest), vec![1; 10]);
    assert_eq!(guest.command(&[2, 0, 2, 0]), OK);
    assert_eq!(burst(&mut guest), [1, 2].repeat(10));
    assert_eq!(guest.command(&[2, 1, 1, 0]), OK);
    assert_eq!(burst(&mut guest), vec![2; 10]);
    assert_eq!(scene.stats[0].rx.vlan.get(), 20 + 10 + 20);
    assert_eq!(guest.command(&[2, 0, 0, 0x10]), REFUSED, "VLAN 4096");
}

#[test]
fn offloads_can_be_switched_while_running() {
    let Some((scene, mut guest)) = card(1) else { return };
    let wire = scene.namespace.wire("tap0", true).unwrap();
    let (header, segment) = large_segment(4000, 1000);
    let sent = [&header[..10], &segment].concat();
    wire.send(&sent).unwrap();
    assert_eq!(guest.receive(0).expect("a frame").1.len(), segment.len());
    let set = |offloads: u64| [&[5, 0][..], &offloads.to_le_bytes()].concat();
    assert_eq!(guest.command(&set(0)), OK);
    wire.send(&sent).unwrap();
    for _ in 0..4 {
        assert_eq!(guest.receive(0).expect("a piece").1.len(), 54 + 1000);
    }
    assert_eq!(guest.command(&set(feature::GUEST_CSUM | feature::GUEST_TSO4)), OK);
    wire.send(&sent).unwrap();
    assert_eq!(guest.receive(0).expect("a frame").1.len(), segment.len());
    assert_eq!(guest.command(&set(feature::GUEST_USO4)), REFUSED, "not negotiated");
    assert_eq!(guest.command(&set(u64::MAX)), REFUSED);
}

#[test]
fn what_is_no_command_is_refused() {
    let Some((scene, mut guest)) = card(2) else { return };
    let commands: [&[u8]; 9] = [
        &[0],
        &[0, 0],
        &[0, 0, 2],
        &[0, 2, 1],
        &[9, 9, 9],
        &[4, 0, 0, 0],
        &[4, 0, 3, 0],
        &[1, 0, 0xff, 0xff, 0xff, 0xff],
        &[1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    ];
    for command in commands {
        assert_eq!(guest.command(command), REFUSED, "{command:?}");
    }
    assert_eq!(guest.command(&[4, 0, 2, 0]), OK);
    drop(guest);
    // Without the feature there is no such command.
    let mut guest = scene.guest(USUAL & !feature::CTRL_RX & !feature::MQ, 1, 64);
    guest.start_control(2);
    assert_eq!(guest.command(&[0, 0, 1]), REFUSED);
    assert_eq!(guest.command(&[4, 0, 1, 0]), REFUSED);
    assert_eq!(guest.command(&[2, 0, 1, 0]), OK);
}

#[test]
fn the_configuration_space_and_the_link() {
    let Some((scene, mut guest)) = card(2) else { return };
    let wire = scene.wire();
    let mtu = 1500u16.to_le_bytes();
    let expected = [&MAC.bytes()[..], &[1, 0, 2, 0], &mtu].concat();
    assert_eq!(guest.frontend.config(0, 12).unwrap(), expected);
    let mut channel = guest.frontend.channel().unwrap();
    channel.set_read_timeout(Some(LONG)).unwrap();
    let mut message = [0; 12];
    scene.card.set_link(false);
    channel.read_exact(&mut message).expect("a notice that the configuration changed");
    assert_eq!(u32::from_ne_bytes([message[0], message[1], message[2], message[3]]), 2, "CONFIG_CHANGE_MSG");
    assert_eq!(guest.frontend.config(6, 2).unwrap(), [0, 0]);
    // The host's end has no carrier, and what the guest sends goes nowhere.
    guest.send(0, [0; 12], &frame(1, 100));
    assert_eq!(scene.stats[0].tx.link.get(), 1);
    assert_eq!(wire.receive(SHORT).ok().flatten(), None);
    scene.card.set_link(true);
    channel.read_exact(&mut message).expect("a second notice");
    assert_eq!(guest.frontend.config(6, 2).unwrap(), [3, 0], "up, and asked to announce itself");
    assert_eq!(guest.command(&[3, 0]), OK);
    assert_eq!(guest.frontend.config(6, 2).unwrap(), [1, 0]);
    guest.send(0, [0; 12], &frame(2, 100));
    assert_eq!(wire.receive(LONG).unwrap(), Some(frame(2, 100)));
    until("the host's end is up again", || wire.send(&frame(3, 100)).is_ok());
    assert_eq!(guest.receive(0).expect("a frame").1, frame(3, 100));
}

#[test]
fn the_next_driver_finds_a_card_as_new() {
    let Some((scene, mut guest)) = card(1) else { return };
    let wire = scene.wire();
    assert_eq!(guest.command(&[1, 1, 2, 0, 0, 0, 0, 7]), OK);
    assert_eq!(guest.command(&[0, 0, 0]), OK);
    assert_eq!(guest.command(&[2, 0, 5, 0]), OK);
    drop(guest);
    let mut guest = scene.guest(USUAL, 1, 64);
    assert_eq!(guest.frontend.config(0, 6).unwrap(), MAC.bytes());
    guest.post(0, 60);
    assert!(gets(&mut guest, &wire, OTHER, MAC.bytes()));
    let mut tagged = frame(9, 100);
    tagged.splice(12..12, [0x81, 0, 0, 9]);
    wire.send(&tagged).unwrap();
    assert_eq!(guest.receive(0).expect("a frame").1, tagged);
    assert_eq!(Mac::new(MAC.bytes()), MAC);
}
