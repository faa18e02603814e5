//! qcow2 images, made and judged by qemu-img, written to by `vhost-blk`.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use strata_virtio::driver::Buf;
use support::*;

const MIB: usize = 1 << 20;

fn qemu_img(words: &[&str]) -> bool {
    let output = Command::new("qemu-img").args(words).output().unwrap();
    if !output.status.success() {
        println!("qemu-img {words:?}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    }
    output.status.success()
}

fn there_is_no_qemu_img() -> bool {
    let missing = Command::new("qemu-img").arg("--version").output().is_err();
    if missing {
        assert!(std::env::var_os("CI").is_none(), "qemu-img should be here");
        println!("skipped: no qemu-img");
    }
    missing
}

/// What the disk should hold, kept beside it.
struct Model {
    disk: Disk,
    bytes: Vec<u8>,
    random: u64,
}

impl Model {
    fn random(&mut self, below: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % below as u64) as usize
    }

    /// Does something to some place, and to the model.
    fn step(&mut self, round: u64) {
        let sectors = self.bytes.len() / SECTOR;
        let len = [1, 1, 8, 8, 8, 64, 300][self.random(7)].min(sectors);
        let sector = self.random(sectors - len + 1);
        let range = sector * SECTOR..(sector + len) * SECTOR;
        let place = self.bytes.get_mut(range.clone()).unwrap();
        match round % 8 {
            0..=2 => {
                place.copy_from_slice(&pattern(round + 1, len * SECTOR));
                assert_eq!(self.disk.write(sector as u64, &pattern(round + 1, len * SECTOR)), OK);
            }
            3 => {
                place.fill(0);
                let segment = segment(sector as u64, len as u32, (round / 8 % 2) as u32);
                assert_eq!(self.disk.request(0, WRITE_ZEROES, 0, &segment, 0).0, OK);
            }
            4 if round.is_multiple_of(24) => {
                assert_eq!(self.disk.request(0, DISCARD, 0, &segment(sector as u64, len as u32, 0), 0).0, OK);
                // What is there now is not said, but it stays.
                let (_, now) = self.disk.read(sector as u64, (len * SECTOR) as u32);
                self.bytes[range].copy_from_slice(&now);
            }
            5 if round.is_multiple_of(10) => assert_eq!(self.disk.flush(), OK),
            _ => {
                let (status, read) = self.disk.read(sector as u64, (len * SECTOR) as u32);
                assert_eq!(status, OK);
                assert!(read == self.bytes[range], "round {round}, sector {sector}, {len} sectors");
            }
        }
    }

    fn check_all(&mut self) {
        for index in 0..self.bytes.len() / MIB {
            let (status, read) = self.disk.read((index * MIB / SECTOR) as u64, MIB as u32);
            assert_eq!(status, OK);
            assert!(read == self.bytes[index * MIB..(index + 1) * MIB], "MiB {index}");
        }
    }
}

/// Works on an image through `vhost-blk`, then has qemu-img look at it.
fn work(dir: &Path, image: &Path, holds: Vec<u8>, words: &[&str], rounds: u64) {
    let words = [&["--format", "qcow2"], words].concat();
    let backend = Backend::start(dir, image, &words);
    let disk = Disk::connect(&backend);
    let mut model = Model { disk, bytes: holds, random: 0x1357_9bdf_0246_8ace };
    model.check_all();
    for round in 0..rounds {
        model.step(round);
    }
    model.check_all();
    // The next client sees the same.
    let Model { disk, bytes, random } = model;
    drop(disk);
    let mut model = Model { disk: Disk::connect(&backend), bytes, random };
    model.check_all();
    assert_eq!(model.disk.flush(), OK);
    let Model { disk, bytes, .. } = model;
    drop(disk);
    drop(backend);
    let expected = dir.join("expected.raw");
    std::fs::write(&expected, &bytes).unwrap();
    let image = image.to_str().unwrap();
    assert!(qemu_img(&["check", "-f", "qcow2", image]));
    assert!(qemu_img(&["compare", "-f", "qcow2", "-F", "raw", image, expected.to_str().unwrap()]));
}

fn create(dir: &Path, options: &[&str]) -> PathBuf {
    let image = dir.join("disk.qcow2");
    assert!(qemu_img(&[&["create", "-f", "qcow2"], options, &[image.to_str().unwrap(), "8M"]].concat()));
    image
}

const WAYS: [&[&str]; 4] = [
    &["--engine", "io_uring"],
    &["--engine", "io_uring", "--cache", "writeback"],
    &["--engine", "sync"],
    &["--engine", "sync", "--cache", "writeback"],
];

#[test]
fn an_empty_image() {
    if there_is_no_qemu_img() {
        return;
    }
    let all = [&[][..], &["-o", "cluster_size=4k"], &["-o", "cluster_size=2M,lazy_refcounts=on"], &[]];
    for (words, options) in WAYS.into_iter().zip(all) {
        let dir = tempfile::tempdir().unwrap();
        let image = create(dir.path(), options);
        work(dir.path(), &image, vec![0; 8 * MIB], words, 200);
    }
}

#[test]
fn an_overlay_on_raw_on_compressed() {
    if there_is_no_qemu_img() {
        return;
    }
    for words in [WAYS[0], WAYS[3]] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        // Bytes that compress.
        let golden: Vec<u8> = pattern(3, 8 * MIB).into_iter().map(|byte| byte & 3).collect();
        std::fs::write(at("golden.raw"), &golden).unwrap();
        assert!(qemu_img(&["convert", "-c", "-O", "qcow2", &at("golden.raw"), &at("golden.qcow2")]));
        assert!(qemu_img(&[
            "create",
            "-f",
            "qcow2",
            "-b",
            "golden.qcow2",
            "-F",
            "qcow2",
            &at("middle.qcow2")
        ]));
        assert!(qemu_img(&["create", "-f", "qcow2", "-b", "middle.qcow2", "-F", "qcow2", &at("disk.qcow2")]));
        let before = std::fs::read(at("golden.qcow2")).unwrap();
        work(dir.path(), Path::new(&at("disk.qcow2")), golden.clone(), words, 100);
        assert!(std::fs::read(at("golden.qcow2")).unwrap() == before, "the golden image has changed");

        assert!(qemu_img(&["create", "-f", "qcow2", "-b", "golden.raw", "-F", "raw", &at("other.qcow2")]));
        work(dir.path(), Path::new(&at("other.qcow2")), golden.clone(), words, 100);
        assert!(std::fs::read(at("golden.raw")).unwrap() == golden, "the golden image has changed");
    }
}

#[test]
fn two_overlays_share_a_golden_image_and_nobody_writes_to_it() {
    if there_is_no_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("golden.raw"), pattern(1, MIB)).unwrap();
    let mut running = Vec::new();
    for name in ["a", "b"] {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        let image = at(&format!("{name}/disk.qcow2"));
        assert!(qemu_img(&["create", "-f", "qcow2", "-b", &at("golden.raw"), "-F", "raw", &image]));
        running.push(Backend::start(&folder, Path::new(&image), &["--format", "qcow2"]));
    }
    let mut disks: Vec<_> = running.iter().map(Disk::connect).collect();
    assert_eq!(disks[0].write(0, &pattern(7, 4096)), OK);
    assert!(disks[1].read(0, 4096).1 == pattern(1, MIB)[..4096]);
    assert!(disks[0].read(0, 4096).1 == pattern(7, 4096));
    let mut writer = Backend::launch(dir.path(), Path::new(&at("golden.raw")), &[]);
    assert_eq!(writer.wait().code(), Some(1));
    assert!(writer.said().contains("is in use by"));
}

#[test]
fn what_a_header_may_not_ask_for() {
    if there_is_no_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(at("raw"), vec![0; MIB]).unwrap();
    let (image, data) = (at("x"), format!("data_file={}", at("data")));
    let refused = |make: &[&str], expected: &str| {
        assert!(qemu_img(make));
        let mut backend = Backend::launch(dir.path(), Path::new(&image), &["--format", "qcow2"]);
        assert_eq!(backend.wait().code(), Some(1));
        let said = backend.said();
        assert!(said.contains(expected), "{said}");
    };
    refused(&["create", "-f", "qcow2", "-o", &data, &image, "1M"], "external data file");
    refused(&["create", "-f", "qcow2", "-b", "gone", "-u", "-F", "raw", &image, "1M"], "gone does not exist");
    refused(&["create", "-f", "qcow2", "-b", "x", "-u", "-F", "qcow2", &image, "1M"], "in use by");
    refused(&["create", "-f", "vmdk", &image, "1M"], "cannot be read as qcow2");
    // Written by hand: no format for the backing file (qemu-img does not do that any more).
    assert!(qemu_img(&[
        "create",
        "-f",
        "qcow2",
        "-o",
        "compat=0.10",
        "-b",
        "raw",
        "-u",
        "-F",
        "raw",
        &image,
        "1M"
    ]));
    let mut bytes = std::fs::read(&image).unwrap();
    // The header extension with the format's name.
    let at = bytes.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    bytes[at..at + 4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    std::fs::write(&image, bytes).unwrap();
    let mut backend = Backend::launch(dir.path(), Path::new(&image), &["--format", "qcow2"]);
    assert_eq!(backend.wait().code(), Some(1));
    assert!(backend.said().contains("does not state the format"));
}

#[test]
fn queues_at_once_with_discards_between() {
    if there_is_no_qemu_img() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let image = create(dir.path(), &["-o", "cluster_size=4k"]);
    let backend = Backend::start(dir.path(), &image, &["--format", "qcow2", "--num-queues", "4"]);
    let mut disk = Disk::with(&backend, 4, u64::MAX);
    // Each queue has a quarter of the disk and 16 requests under way: writes, reads, discards.
    let quarter = 8 * MIB / 4 / SECTOR;
    let mut versions = vec![0u64; 4 * 16];
    for round in 1..120u64 {
        for queue in 0..4usize {
            let base = Disk::buffers(queue);
            for slot in 0..16usize {
                let at = base + slot as u64 * 8192;
                let sector = (queue * quarter + slot * 8) as u64;
                let discard = (round + slot as u64).is_multiple_of(5);
                disk.write_header(at, if discard { DISCARD } else { OUT }, if discard { 0 } else { sector });
                let data =
                    if discard { segment(sector, 8, 0) } else { pattern(round * 100 + slot as u64, 4096) };
                versions[queue * 16 + slot] = if discard { 0 } else { round * 100 + slot as u64 };
                disk.memory.write_at(at + 4096, &data).unwrap();
                let chain = [
                    Buf::readable(at, 16),
                    Buf::readable(at + 4096, data.len() as u32),
                    Buf::writable(at + 64, 1),
                ];
                disk.queues[queue].add(&chain).unwrap();
            }
            disk.queues[queue].kick();
        }
        for queue in 0..4usize {
            for _ in 0..16 {
                disk.queues[queue].wait(PATIENCE).unwrap();
            }
            for slot in 0..16u64 {
                assert_eq!(disk.memory.read_obj::<u8>(Disk::buffers(queue) + slot * 8192 + 64).unwrap(), OK);
            }
        }
        if round.is_multiple_of(10) {
            for (index, version) in versions.iter().enumerate().filter(|(_, version)| **version > 0) {
                let sector = (index / 16 * quarter + index % 16 * 8) as u64;
                let (status, read) = disk.request((index + 1) % 4, IN, sector, &[], 4096);
                assert_eq!(status, OK);
                assert!(read == pattern(*version, 4096), "round {round}, block {index}");
            }
        }
    }
    drop(disk);
    drop(backend);
    assert!(qemu_img(&["check", "-f", "qcow2", image.to_str().unwrap()]));
}
