//! `kill -9` under a verified write load: nothing is lost, nothing is answered twice, nothing old comes back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use strata_virtio::driver::{Buf, Frontend};
use strata_virtio::spec::F_PROTOCOL_FEATURES;
use support::*;

const SLOTS: usize = 32;
const BLOCK: usize = 4096;
/// Blocks each slot writes to; no two slots share one, so the order of requests under way does not matter.
const BLOCKS: usize = 8;

struct Load {
    disk: Disk,
    /// Bytes from one block to the next.
    stride: usize,
    /// The first block that is written to now.
    window: usize,
    /// What each block was last told to hold: a version.
    wanted: BTreeMap<usize, u64>,
    /// The head under way in each slot.
    heads: Vec<Option<u16>>,
    version: u64,
    answered: u64,
    random: u64,
}

impl Load {
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    fn addresses(slot: usize) -> (u64, u64, u64) {
        let at = Disk::buffers(0) + slot as u64 * 8192;
        (at, at + 64, at + 4096)
    }

    fn post(&mut self, slot: usize) {
        let block = self.window + slot * BLOCKS + self.random(BLOCKS);
        self.version += 1;
        self.wanted.insert(block, self.version);
        let (header, status, data) = Self::addresses(slot);
        self.disk.write_header(header, OUT, (block * self.stride / SECTOR) as u64);
        self.disk.memory.write_at(status, &[0xee]).unwrap();
        self.disk.memory.write_at(data, &pattern(self.version, BLOCK)).unwrap();
        let chain = [Buf::readable(header, 16), Buf::readable(data, BLOCK as u32), Buf::writable(status, 1)];
        self.heads[slot] = self.disk.queues[0].add(&chain);
        assert!(self.heads[slot].is_some());
    }

    /// Takes answers until `until`, posting a new request for each if `more`.
    fn run(&mut self, until: Instant, more: bool) {
        while Instant::now() < until && self.heads.iter().any(Option::is_some) {
            let Some((head, _)) = self.disk.queues[0].poll() else {
                std::thread::yield_now();
                continue;
            };
            let slot = self.heads.iter().position(|under_way| *under_way == Some(head));
            let slot = slot.expect("an answer to nothing that was asked");
            let (_, status, _) = Self::addresses(slot);
            assert_eq!(self.disk.memory.read_obj::<u8>(status).unwrap(), OK);
            self.heads[slot] = None;
            self.answered += 1;
            if more {
                self.post(slot);
                self.disk.queues[0].kick();
            }
        }
    }

    fn verify(&mut self) {
        for (block, version) in self.wanted.clone() {
            let (status, data) = self.disk.read((block * self.stride / SECTOR) as u64, BLOCK as u32);
            assert_eq!(status, OK);
            assert!(data == pattern(version, BLOCK), "block {block} is lost or stale");
        }
    }
}

/// What is done to the image between two lives of the backend.
type Between = fn(&mut Load, &Path);

fn killed_under_load(words: &[&str], kills: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 16 << 20);
    killed_on(&path, words, kills, BLOCK, |_, _| {});
}

fn killed_on(path: &Path, words: &[&str], kills: usize, stride: usize, between: Between) {
    let dir = path.parent().unwrap();
    let mut backend = Backend::start(dir, path, words);
    let mut disk = Disk::with(&backend, 0, u64::MAX);
    let (region, fd) = disk.frontend.inflight(1, QUEUE_SIZE).unwrap();
    let features = disk.frontend.features;
    let queue = strata_virtio::driver::DriverQueue::new(&disk.memory, 0, QUEUE_SIZE, features).unwrap();
    disk.frontend.start(0, &queue, 0).unwrap();
    disk.queues.push(queue);
    let mut load = Load {
        disk,
        stride,
        window: 0,
        wanted: BTreeMap::new(),
        heads: vec![None; SLOTS],
        version: 0,
        answered: 0,
        random: 0x1234_5678_9abc_def1,
    };
    for kill in 0..kills {
        for slot in 0..SLOTS {
            if load.heads[slot].is_none() {
                load.post(slot);
            }
        }
        load.disk.queues[0].kick();
        let time = Duration::from_micros(load.random(8000) as u64);
        load.run(Instant::now() + time, true);
        backend.kill();
        between(&mut load, path);
        backend = Backend::start(dir, path, words);
        let mut frontend = Frontend::connect(&backend.socket, features | F_PROTOCOL_FEATURES).unwrap();
        frontend.set_memory(&load.disk.memory).unwrap();
        frontend.return_inflight(&region, &fd).unwrap();
        // A frontend cannot know the base of a backend that crashed; the region and the ring do.
        frontend.start(0, &load.disk.queues[0], 0).unwrap();
        load.disk.frontend = frontend;
        // A kick may have been lost with the backend.
        strata_virtio::vring::signal(load.disk.queues[0].kick_fd());
        if kill % 10 == 9 {
            load.run(Instant::now() + PATIENCE, false);
            assert!(load.heads.iter().all(Option::is_none), "requests are lost");
            load.verify();
        }
    }
    load.run(Instant::now() + PATIENCE, false);
    assert!(load.heads.iter().all(Option::is_none), "requests are lost");
    load.verify();
    assert!(load.answered as usize > kills);
}

#[test]
fn direct_with_io_uring() {
    killed_under_load(&["--engine", "io_uring"], 200);
}

#[test]
fn cached_with_io_uring() {
    killed_under_load(&["--engine", "io_uring", "--cache", "writeback"], 40);
}

#[test]
fn with_system_calls() {
    killed_under_load(&["--engine", "sync"], 40);
}

/// Clusters so small that nearly every write makes a table of its own; always in places never written to before.
#[test]
fn allocating_in_qcow2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    if !qcow2(&path, "512", "1G") {
        return;
    }
    killed_on(&path, &["--format", "qcow2"], 40, 64 << 10, |load, path| {
        load.window += SLOTS * BLOCKS;
        assert_sound(path);
    });
}
