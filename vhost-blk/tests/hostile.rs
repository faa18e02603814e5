//! Guests and frontends that mean harm. Whatever they do, the process lives, an honest client is served
//! afterwards, and memory stays small.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use strata_virtio::driver::{Buf, DriverQueue, Frontend};
use strata_virtio::memory::Memory;
use strata_virtio::spec::{DESC_INDIRECT, DESC_NEXT, DESC_WRITE, F_PROTOCOL_FEATURES, RING_FEATURES};
use support::*;

/// A ring to write nonsense into.
struct Raw<'a> {
    disk: &'a mut Disk,
    next: u16,
}

const AT: u64 = 1 << 20;
const DATA: u64 = AT + 8192;

impl Raw<'_> {
    fn memory(&self) -> &Memory {
        &self.disk.memory
    }

    fn desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        self.desc_at(self.disk.queues[0].addresses()[0], index, addr, len, flags, next);
    }

    fn desc_at(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.memory().write_obj(at, addr).unwrap();
        self.memory().write_obj(at + 8, len).unwrap();
        self.memory().write_obj(at + 12, flags).unwrap();
        self.memory().write_obj(at + 14, next).unwrap();
    }

    /// A good chain in descriptors 0, 1, 2.
    fn good(&self, kind: u32, sector: u64, len: u32) {
        self.disk.write_header(AT, kind, sector);
        let data = if kind == IN { DESC_WRITE } else { 0 };
        self.desc(0, AT, 16, DESC_NEXT, 1);
        self.desc(1, DATA, len, DESC_NEXT | data, 2);
        self.desc(2, AT + 64, 1, DESC_WRITE, 0);
    }

    fn offer(&mut self, head: u16) {
        let avail = self.disk.queues[0].addresses()[1];
        let at = avail + 4 + 2 * u64::from(self.next % QUEUE_SIZE);
        self.memory().write_obj(at, head).unwrap();
        self.next = self.next.wrapping_add(1);
    }

    fn publish(&self, index: u16) {
        let avail = self.disk.queues[0].addresses()[1];
        self.memory().write_obj(avail + 2, index).unwrap();
        strata_virtio::vring::signal(self.disk.queues[0].kick_fd());
    }

    fn go(&mut self, head: u16) {
        self.offer(head);
        self.publish(self.next);
    }
}

type Case = (&'static str, fn(&mut Raw<'_>));

/// Nonsense in rings and chains.
const RINGS: &[Case] = &[
    ("a loop of one", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(1, DATA, 512, DESC_NEXT | DESC_WRITE, 1);
        raw.go(0);
    }),
    ("a loop of all", |raw| {
        for index in 0..QUEUE_SIZE {
            raw.desc(index, DATA, 512, DESC_NEXT, (index + 1) % QUEUE_SIZE);
        }
        raw.go(0);
    }),
    ("next outside the table", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(1, DATA, 512, DESC_NEXT | DESC_WRITE, 60000);
        raw.go(0);
    }),
    ("a head outside the table", |raw| raw.go(QUEUE_SIZE)),
    ("the last head there is", |raw| raw.go(u16::MAX)),
    ("an index that jumps", |raw| raw.publish(30000)),
    ("an index that goes back", |raw| raw.publish(u16::MAX)),
    ("one head many times", |raw| {
        raw.good(IN, 0, 512);
        for _ in 0..QUEUE_SIZE {
            raw.offer(0);
        }
        raw.publish(raw.next);
    }),
    ("an address outside memory", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(1, MEMORY - 256, 512, DESC_NEXT | DESC_WRITE, 2);
        raw.go(0);
    }),
    ("an address at the end of the world", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(1, u64::MAX - 100, 512, DESC_NEXT | DESC_WRITE, 2);
        raw.go(0);
    }),
    ("a length of 4 GiB", |raw| {
        raw.good(IN, 0, u32::MAX);
        raw.go(0);
    }),
    ("lengths that add up beyond 4 GiB", |raw| {
        raw.disk.write_header(AT, IN, 0);
        raw.desc(0, AT, 16, DESC_NEXT, 1);
        for index in 1..QUEUE_SIZE {
            raw.desc(index, 0, MEMORY as u32, DESC_NEXT | DESC_WRITE, index + 1);
        }
        raw.desc(QUEUE_SIZE - 1, AT, 1, DESC_WRITE, 0);
        raw.go(0);
    }),
    ("a read of all memory into itself", |raw| {
        raw.disk.write_header(AT, IN, 0);
        raw.desc(0, AT, 16, DESC_NEXT, 1);
        for index in 1..15 {
            raw.desc(index, 0, 16 << 20, DESC_NEXT | DESC_WRITE, index + 1);
        }
        raw.desc(15, AT + 64, 1, DESC_WRITE, 0);
        raw.go(0);
    }),
    ("the rings themselves as data", |raw| {
        let [desc, ..] = raw.disk.queues[0].addresses();
        raw.good(IN, 0, 8192);
        raw.desc(1, desc, 8192, DESC_NEXT | DESC_WRITE, 2);
        raw.go(0);
    }),
    ("the status byte inside the used ring", |raw| {
        let [_, _, used] = raw.disk.queues[0].addresses();
        raw.good(IN, 0, 512);
        raw.desc(2, used + 2, 1, DESC_WRITE, 0);
        raw.go(0);
    }),
    ("readable behind writable", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(2, AT + 64, 16, 0, 0);
        raw.go(0);
    }),
    ("nothing but a status", |raw| {
        raw.desc(0, AT + 64, 1, DESC_WRITE, 0);
        raw.go(0);
    }),
    ("nothing writable", |raw| {
        raw.disk.write_header(AT, OUT, 0);
        raw.desc(0, AT, 16, 0, 0);
        raw.go(0);
    }),
    ("empty buffers", |raw| {
        raw.desc(0, AT, 0, DESC_NEXT, 1);
        raw.desc(1, AT, 0, DESC_NEXT | DESC_WRITE, 2);
        raw.desc(2, AT, 0, DESC_WRITE, 0);
        raw.go(0);
    }),
    ("half a header", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(0, AT, 9, DESC_NEXT, 1);
        raw.go(0);
    }),
    ("an unknown type", |raw| {
        raw.good(0x7777_7777, 0, 512);
        raw.go(0);
    }),
    ("a sector beyond the end", |raw| {
        raw.good(OUT, u64::MAX / 512, 4096);
        raw.go(0);
    }),
    ("a sector that overflows", |raw| {
        raw.good(IN, u64::MAX, 4096);
        raw.go(0);
    }),
    ("a partial sector", |raw| {
        raw.good(OUT, 0, 4095);
        raw.go(0);
    }),
    ("segments without end", |raw| {
        raw.good(WRITE_ZEROES, 0, 1 << 20);
        raw.go(0);
    }),
    ("a segment of everything", |raw| {
        raw.memory().write_at(DATA, &segment(0, u32::MAX, 1)).unwrap();
        raw.good(WRITE_ZEROES, 0, 16);
        raw.go(0);
    }),
    ("an indirect table in an indirect table", |raw| {
        raw.desc(0, AT, 32, DESC_INDIRECT, 0);
        raw.desc_at(AT, 0, AT, 32, DESC_INDIRECT, 0);
        raw.desc_at(AT, 1, AT, 32, DESC_INDIRECT, 0);
        raw.go(0);
    }),
    ("an indirect table that goes on", |raw| {
        raw.good(IN, 0, 512);
        raw.desc(0, AT, 32, DESC_INDIRECT | DESC_NEXT, 1);
        raw.go(0);
    }),
    ("an indirect table of no entries", |raw| {
        raw.desc(0, AT, 0, DESC_INDIRECT, 0);
        raw.go(0);
    }),
    ("an indirect table of half an entry", |raw| {
        raw.desc(0, AT, 24, DESC_INDIRECT, 0);
        raw.go(0);
    }),
    ("an indirect table of 4 GiB", |raw| {
        raw.desc(0, AT, 0xffff_fff0, DESC_INDIRECT, 0);
        raw.go(0);
    }),
    ("an indirect table that loops", |raw| {
        raw.desc(0, AT, 64, DESC_INDIRECT, 0);
        for index in 0..4 {
            raw.desc_at(AT, index, DATA, 64, DESC_NEXT, (index + 1) % 4);
        }
        raw.go(0);
    }),
    ("an indirect table outside memory", |raw| {
        raw.desc(0, MEMORY - 16, 4096, DESC_INDIRECT, 0);
        raw.go(0);
    }),
    ("thousands of pieces", |raw| {
        raw.desc(0, AT, 65536 * 16, DESC_INDIRECT, 0);
        for index in 0..u16::MAX {
            raw.desc_at(AT, index, DATA, 1, DESC_NEXT | DESC_WRITE, index + 1);
        }
        raw.go(0);
    }),
    ("everything is ones", |raw| {
        let [desc, ..] = raw.disk.queues[0].addresses();
        raw.memory().write_at(desc, &[0xff; 16384]).unwrap();
        strata_virtio::vring::signal(raw.disk.queues[0].kick_fd());
    }),
];

fn memory_of(backend: &Backend) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", backend.server_pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
}

fn honest(backend: &mut Backend, seed: u64, after: &str) {
    assert!(backend.child.try_wait().unwrap().is_none(), "dead after {after}");
    let mut disk = Disk::connect(backend);
    assert_eq!(disk.write(seed % 1000, &pattern(seed, 512)), OK, "after {after}");
    assert!(disk.read(seed % 1000, 512).1 == pattern(seed, 512), "after {after}");
    assert!(memory_of(backend) < 32 << 10, "{} KiB after {after}", memory_of(backend));
}

#[test]
fn rings_that_make_no_sense() {
    for words in [&["--engine", "io_uring"][..], &["--engine", "sync"]] {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 64 << 20);
        let mut backend = Backend::start(dir.path(), &path, words);
        for (seed, (name, case)) in RINGS.iter().enumerate() {
            let mut disk = Disk::connect(&backend);
            case(&mut Raw { disk: &mut disk, next: 0 });
            // It is answered or the ring is given up; either way the queue can be stopped.
            let begun = Instant::now();
            while disk.queues[0].poll().is_none() && !disk.queues[0].take_error() {
                if begun.elapsed() > Duration::from_millis(300) {
                    break;
                }
                std::thread::yield_now();
            }
            disk.frontend.stop(0).unwrap_or_else(|error| panic!("{name}: {error}"));
            drop(disk);
            honest(&mut backend, seed as u64 + 1, name);
        }
    }
}

#[test]
fn a_ring_that_changes_while_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 64 << 20);
    let mut backend = Backend::start(dir.path(), &path, &[]);
    for seed in 0..3u64 {
        let mut disk = Disk::connect(&backend);
        let mut raw = Raw { disk: &mut disk, next: 0 };
        raw.good(IN, 0, 4096);
        raw.offer(0);
        let [desc, avail, _] = raw.disk.queues[0].addresses();
        let noise = pattern(seed + 77, 1 << 16);
        let begun = Instant::now();
        let mut at = 0;
        while begun.elapsed() < Duration::from_millis(400) {
            at = (at + 13) % (noise.len() - 16);
            let place = if at.is_multiple_of(3) { avail } else { desc } + (at as u64 % 64);
            raw.memory().write_at(place, &noise[at..at + 8]).unwrap();
            raw.good(if at.is_multiple_of(2) { IN } else { OUT }, at as u64 % 4096, 4096);
            raw.next = raw.next.wrapping_add(1);
            raw.publish(raw.next);
        }
        disk.frontend.stop(0).unwrap();
        drop(disk);
        honest(&mut backend, seed + 1, "changes");
    }
}

#[test]
fn messages_that_make_no_sense() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let mut backend = Backend::start(dir.path(), &path, &[]);
    let noise = pattern(9, 1 << 16);
    for seed in 0..400usize {
        let mut socket = UnixStream::connect(&backend.socket).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
        let chunk = &noise[seed * 64..seed * 64 + 60];
        let mut message = chunk.to_vec();
        if seed % 4 != 0 {
            // A likely header: request, version 1 with NEED_REPLY, a length that is right or wrong.
            message[0..4].copy_from_slice(&((seed as u32 / 4) % 45).to_le_bytes());
            message[4..8].copy_from_slice(&(if seed % 3 == 0 { 9u32 } else { 1 }).to_le_bytes());
            let length = [48u32, 0, 8, u32::MAX, 4096][seed % 5];
            message[8..12].copy_from_slice(&length.to_le_bytes());
        }
        drop(socket.write_all(&message));
        if seed % 5 == 0 {
            drop(socket.read(&mut [0; 64]));
        }
    }
    honest(&mut backend, 1, "messages");
}

#[test]
fn a_flood_of_connections() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let mut backend = Backend::start(dir.path(), &path, &[]);
    for _ in 0..2000 {
        drop(UnixStream::connect(&backend.socket).unwrap());
    }
    let waiting: Vec<_> = (0..50).map(|_| UnixStream::connect(&backend.socket).unwrap()).collect();
    drop(waiting);
    honest(&mut backend, 1, "a flood");
}

#[test]
fn memory_that_is_not_there() {
    use vhost::vhost_user::VhostUserFrontend;
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let mut backend = Backend::start(dir.path(), &path, &[]);
    let features = RING_FEATURES | F_PROTOCOL_FEATURES;
    // A ring outside the memory handed over.
    let small = std::sync::Arc::new(Memory::anonymous(1 << 20).unwrap());
    let large = std::sync::Arc::new(Memory::anonymous(8 << 20).unwrap());
    let queue = DriverQueue::new(&large, 4 << 20, 128, RING_FEATURES).unwrap();
    let mut frontend = Frontend::connect(&backend.socket, features).unwrap();
    frontend.set_memory(&small).unwrap();
    assert!(frontend.start(0, &queue, 0).is_err());
    drop(frontend);
    // A queue that does not exist, a size that is none.
    let mut frontend = Frontend::connect(&backend.socket, features).unwrap();
    frontend.set_memory(&large).unwrap();
    assert!(frontend.start(7, &queue, 0).is_err());
    drop(frontend);
    // Two regions in one place.
    let mut frontend = Frontend::connect(&backend.socket, features).unwrap();
    frontend.set_memory(&large).unwrap();
    let region = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 4096,
        memory_size: 4096,
        userspace_addr: 4096,
        mmap_offset: 0,
        mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&small.first_fd().unwrap()),
    };
    assert!(frontend.inner().add_mem_region(&region).is_err());
    drop(frontend);
    honest(&mut backend, 1, "memory");
}

#[test]
fn requests_without_an_answerable_status_are_given_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    disk.write_header(AT, OUT, 0);
    let head = disk.queues[0].add(&[Buf::readable(AT, 16), Buf::readable(DATA, 512)]).unwrap();
    disk.queues[0].kick();
    assert_eq!(disk.queues[0].wait(PATIENCE), Some((head, 0)));
    // And the queue goes on.
    assert_eq!(disk.write(0, &[1; 512]), OK);
}
