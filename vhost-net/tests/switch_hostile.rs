//! What a guest and its frontend can do wrong at a port of a switch: refused or dropped, counted, and the guests at the
//! other ports go on as if nothing were.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod lab;
mod scene;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use lab::{EVERYONE, Lab, PLAIN, crosses, ethernet, mac};
use scene::{Guest, LONG, USUAL, until};
use strata_virtio::driver::{Buf, DriverQueue, Frontend};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Three ports; the guest at 0 misbehaves, those at 1 and 2 do not.
struct Scene {
    lab: Lab,
    one: Guest,
    two: Guest,
    number: u32,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new(3);
        let (one, two) = (lab.guest(1), lab.guest(2));
        let mut scene = Self { lab, one, two, number: 0 };
        scene.others_go_on();
        scene
    }

    /// Both ways between the other two.
    fn others_go_on(&mut self) {
        self.number += 2;
        crosses(&mut self.one, &mut self.two, (1, 2), self.number);
        crosses(&mut self.two, &mut self.one, (2, 1), self.number + 1);
    }

    /// And an honest guest at the port is served again.
    fn so_does_the_next(&mut self) {
        let mut next = self.lab.guest(0);
        crosses(&mut next, &mut self.one, (0, 1), 1);
        crosses(&mut self.one, &mut next, (1, 0), 2);
        self.others_go_on();
    }
}

/// Writes a descriptor as a guest that keeps to no rule.
fn set_desc(guest: &Guest, queue: &DriverQueue, index: u64, desc: (u64, u32, u16, u16)) {
    let at = queue.addresses()[0] + 16 * index;
    guest.memory.write_obj(at, desc.0.to_le()).unwrap();
    guest.memory.write_obj(at + 8, desc.1.to_le()).unwrap();
    guest.memory.write_obj(at + 12, desc.2.to_le()).unwrap();
    guest.memory.write_obj(at + 14, desc.3.to_le()).unwrap();
}

#[test]
fn frames_of_impossible_sizes_and_headers_that_lie() {
    let mut scene = Scene::new();
    let mut bad = scene.lab.guest(0);
    let at = 0x700_0000;
    for size in [1, 2, 11, 12, 13, 25, 12 + 65_554 + 1, 128 * 1024, 1 << 20, 16 << 20] {
        let head = bad.tx[0].add(&[Buf::readable(at, size)]).unwrap();
        bad.flush(0);
        assert_eq!(bad.tx[0].wait(LONG), Some((head, 0)), "{size}");
    }
    let head = bad.tx[0].add(&[Buf::writable(at, 100)]).unwrap();
    bad.flush(0);
    assert_eq!(bad.tx[0].wait(LONG), Some((head, 0)), "nothing to read at all");
    let dropped = |scene: &Scene| scene.lab.count(0, "tx_drop_short") + scene.lab.count(0, "tx_drop_long");
    assert_eq!(dropped(&scene), 11);
    let (good, mut segment) = scene::large_segment(4000, 1000);
    segment[..6].copy_from_slice(&EVERYONE);
    segment[6..12].copy_from_slice(&mac(0));
    let lies: [&[(usize, u8)]; 9] = [
        &[(4, 0), (5, 0)],
        &[(2, 0xff), (3, 0xff)],
        &[(6, 0xff), (7, 0xff)],
        &[(8, 0xff), (9, 0xff)],
        &[(0, 0)],
        &[(1, 3)],
        &[(1, 5)],
        &[(1, 0x7f)],
        &[(1, 0x80)],
    ];
    for lie in lies {
        let mut header = good;
        lie.iter().for_each(|(at, value)| header[*at] = *value);
        bad.send(0, header, &segment);
    }
    assert_eq!(scene.lab.count(0, "tx_drop_header"), lies.len() as u64);
    scene.others_go_on();
    bad.send(0, PLAIN, &ethernet(mac(1), mac(0), 7, 100));
    until("an honest one passes", || scene.lab.count(0, "tx_frames") == 1);
}

#[test]
fn chains_that_make_no_sense_are_answered_empty() {
    let mut scene = Scene::new();
    let mut bad = Guest::new(&scene.lab.paths[0], USUAL, 1, 64);
    let table = 0x5f0_0000u64;
    bad.memory.write_obj(table, table.to_le()).unwrap();
    bad.memory.write_obj(table + 8, 16u32.to_le()).unwrap();
    bad.memory.write_obj(table + 12, INDIRECT.to_le()).unwrap();
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
    for queue in [1, 0] {
        for mut chain in chains {
            let driver = if queue == 0 { &mut bad.rx[0] } else { &mut bad.tx[0] };
            let head = driver.add(&[Buf::readable(0x700_0000, 64)]).unwrap();
            if queue == 0 && chain.2 & INDIRECT == 0 {
                chain.2 |= WRITE;
            }
            let driver = if queue == 0 { &bad.rx[0] } else { &bad.tx[0] };
            set_desc(&bad, driver, u64::from(head), chain);
            let driver = if queue == 0 { &mut bad.rx[0] } else { &mut bad.tx[0] };
            driver.publish();
            driver.kick();
            if queue == 0 {
                // A receive buffer is looked at when there is something to put into it.
                scene.one.send(0, PLAIN, &ethernet(EVERYONE, mac(1), 1, 60));
            }
            let driver = if queue == 0 { &mut bad.rx[0] } else { &mut bad.tx[0] };
            assert_eq!(driver.wait(LONG), Some((head, 0)), "queue {queue}, {chain:?}");
        }
    }
    let head = bad.tx[0].add(&[Buf::readable(0x700_0000, 64)]).unwrap();
    set_desc(&bad, &bad.tx[0], u64::from(head), (0x700_0000, 64, NEXT, head));
    bad.flush(0);
    assert_eq!(bad.tx[0].wait(LONG), Some((head, 0)), "a chain that runs in a circle");
    assert_eq!(scene.lab.count(0, "tx_malformed"), 13);
    scene.others_go_on();
    drop(bad);
    scene.so_does_the_next();
}

#[test]
fn rings_that_make_no_sense_stop_alone() {
    for broken in [0usize, 1] {
        let mut scene = Scene::new();
        let mut bad = scene.lab.guest(0);
        let queue = if broken == 0 { &bad.rx[0] } else { &bad.tx[0] };
        bad.memory.write_obj(queue.addresses()[1] + 2, 0x7fffu16.to_le()).unwrap();
        strata_virtio::vring::signal(queue.kick_fd());
        // As many as there are buffers posted before, and one more.
        for number in 0..65 {
            scene.one.send(0, PLAIN, &ethernet(EVERYONE, mac(1), number, 60));
        }
        let queue = if broken == 0 { &bad.rx[0] } else { &bad.tx[0] };
        until("the error is reported", || queue.take_error());
        if broken == 0 {
            bad.send(0, PLAIN, &ethernet(EVERYONE, mac(0), 2, 100));
        } else {
            assert!(bad.receive(0).is_some());
        }
        scene.others_go_on();
        drop(bad);
        scene.so_does_the_next();
    }
}

/// Rings in the middle of the buffers that are written: nonsense, but only the guest's own.
#[test]
fn buffers_that_cover_the_ring() {
    let mut scene = Scene::new();
    let mut bad = Guest::new(&scene.lab.paths[0], USUAL, 1, 64);
    let [desc, ..] = bad.rx[0].addresses();
    for _ in 0..8 {
        bad.rx[0].add(&[Buf::writable(desc, 4096)]).unwrap();
    }
    bad.rx[0].publish();
    for number in 0..50 {
        scene.one.send(0, PLAIN, &ethernet(EVERYONE, mac(1), number, 1500));
    }
    bad.send(0, PLAIN, &ethernet(EVERYONE, mac(0), 1, 100));
    scene.others_go_on();
    drop(bad);
    scene.so_does_the_next();
}

/// A guest that never returns a buffer: what is for it is dropped and counted after a bounded wait in memory.
#[test]
fn a_guest_that_never_returns_its_buffers() {
    let mut scene = Scene::new();
    let bad = scene.lab.guest(0);
    for number in 0..3000 {
        scene.one.send(0, PLAIN, &ethernet(EVERYONE, mac(1), number, 1400));
        let free = usize::from(scene.two.rx[0].free());
        if free > 32 {
            while scene.two.rx[0].poll().is_some() {}
            let free = usize::from(scene.two.rx[0].free());
            scene.two.post(0, free);
        }
    }
    until("the frames are counted", || {
        let [got, waited, full] =
            ["rx_frames", "rx_waited", "rx_drop_full"].map(|name| scene.lab.count(0, name));
        got + waited + full >= 3000 && full > 0
    });
    while scene.two.rx[0].poll().is_some() {}
    let free = usize::from(scene.two.rx[0].free());
    scene.two.post(0, free);
    scene.others_go_on();
    drop(bad);
    scene.so_does_the_next();
}

/// Frontends that say nonsense, half of it, or nothing, and come back again and again.
#[test]
fn messages_that_make_no_sense() {
    let mut scene = Scene::new();
    let path = scene.lab.paths[0].clone();
    let header = |code: u32, flags: u32, size: u32| -> Vec<u8> {
        [code, flags, size].iter().flat_map(|word| word.to_ne_bytes()).collect()
    };
    let mut attacks = vec![Vec::new(), vec![0; 5], vec![0xff; 5000], header(1, 1, u32::MAX), header(1, 2, 0)];
    for code in 0..48 {
        for size in [0, 1, 8, 40, 4096] {
            let mut message = header(code, 9, size);
            message.extend(vec![0xff; size as usize]);
            attacks.push(message);
        }
    }
    for (number, attack) in attacks.iter().enumerate() {
        let mut client = UnixStream::connect(&path).unwrap();
        let _ = client.write_all(attack);
        drop(client);
        if number % 32 == 0 {
            scene.others_go_on();
        }
    }
    // One that stays and says half a message holds its own port alone.
    let mut half = UnixStream::connect(&path).unwrap();
    half.write_all(&header(1, 1, 8)).unwrap();
    scene.others_go_on();
    drop(half);
    scene.so_does_the_next();
}

/// Queues started and stopped, features changed, memory taken away, in the middle of traffic.
#[test]
fn a_frontend_that_never_rests() {
    let mut scene = Scene::new();
    for round in 0..40u32 {
        let mut bad = scene.lab.guest(0);
        for number in 0..10 {
            bad.post_frame(0, PLAIN, &ethernet(EVERYONE, mac(0), number, 300));
        }
        bad.flush(0);
        match round % 4 {
            0 => drop(bad.frontend.stop(1).unwrap()),
            1 => drop(bad.frontend.stop(0).unwrap()),
            2 => bad.frontend.reset().unwrap(),
            _ => bad.frontend.set_memory(&bad.memory).unwrap(),
        }
        scene.one.send(0, PLAIN, &ethernet(EVERYONE, mac(1), round, 300));
        drop(bad);
        while scene.one.rx[0].poll().is_some() {}
        let free = usize::from(scene.one.rx[0].free());
        scene.one.post(0, free);
        while scene.two.rx[0].poll().is_some() {}
        let free = usize::from(scene.two.rx[0].free());
        scene.two.post(0, free);
    }
    scene.so_does_the_next();
}

/// A peer whose call descriptor is full to the brim loses its calls and holds up nobody.
#[test]
fn a_call_that_would_block() {
    let mut scene = Scene::new();
    let bad = scene.lab.guest(0);
    // As full as it gets, and a writer would wait; the flag says so again, though the switch has set it otherwise.
    let full = u64::MAX - 1;
    nix::unistd::write(bad.rx[0].call_fd(), &full.to_ne_bytes()).unwrap();
    for number in 0..20 {
        scene.one.send(0, PLAIN, &ethernet(EVERYONE, mac(1), number, 60));
        scene.two.receive(0).unwrap();
    }
    scene.others_go_on();
}

/// A guest that invents an address per frame takes nobody else's place in the table.
#[test]
fn addresses_without_end() {
    let mut scene = Scene::new();
    let mut bad = scene.lab.guest(0);
    let start = Instant::now();
    for number in 0..2000u32 {
        let [a, b, c, d] = number.to_be_bytes();
        bad.send(0, PLAIN, &ethernet(mac(9), [2, 9, a, b, c, d], number, 60));
        if number % 20 == 0 {
            for guest in [&mut scene.one, &mut scene.two] {
                while guest.rx[0].poll().is_some() {}
                let free = usize::from(guest.rx[0].free());
                guest.post(0, free);
            }
        }
    }
    assert!(scene.lab.count(0, "table_full") > 0 || start.elapsed() > Duration::from_secs(300));
    let before = scene.lab.count(1, "tx_flooded");
    scene.others_go_on();
    assert_eq!(scene.lab.count(1, "tx_flooded"), before, "2 is still known");
}

/// Nobody is there who could say so, but the port can be used all the same.
#[test]
fn a_driver_without_any_feature() {
    let mut scene = Scene::new();
    let mut frontend = Frontend::connect(&scene.lab.paths[0], 0).unwrap();
    assert_eq!(frontend.features, 0);
    let _ = frontend.config(0, 12).unwrap();
    drop(frontend);
    scene.so_does_the_next();
}
