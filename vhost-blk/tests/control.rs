//! A `vhost-blk` process and its control socket, with a disk in use.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use strata_virtio::driver::Buf;
use support::*;

struct Control(UnixStream);

impl Control {
    /// Starts a backend with a control socket.
    fn start(dir: &Path, image: &Path, words: &[&str]) -> (Backend, Self) {
        let path = dir.join("control.sock");
        drop(std::fs::remove_file(&path));
        let listener = UnixListener::bind(&path).unwrap();
        // Passed down: not closed on exec.
        let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        nix::fcntl::fcntl(&listener, flags).unwrap();
        let fd = listener.as_raw_fd().to_string();
        let backend = Backend::start(dir, image, &[&["--control-fd", &fd], words].concat());
        (backend, Self(UnixStream::connect(&path).unwrap()))
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        let call = json!({ "method": format!("io.strata.Disk.{method}"), "parameters": parameters });
        self.0.write_all(&[serde_json::to_vec(&call).unwrap(), vec![0]].concat()).unwrap();
        let mut reply = Vec::new();
        let mut byte = [0];
        loop {
            self.0.read_exact(&mut byte).unwrap();
            if byte[0] == 0 {
                break;
            }
            reply.push(byte[0]);
        }
        let reply: Value = serde_json::from_slice(&reply).unwrap();
        assert!(reply.get("error").is_none(), "{reply}");
        reply["parameters"].clone()
    }
}

#[test]
fn what_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (backend, mut control) = Control::start(dir.path(), &path, &["--num-queues", "2"]);
    let mut disk = Disk::with(&backend, 2, u64::MAX);
    for _ in 0..10 {
        assert_eq!(disk.write(0, &[1; 4096]), OK);
    }
    for _ in 0..5 {
        assert_eq!(disk.request(1, IN, 0, &[], 512).0, OK);
    }
    assert_eq!(disk.flush(), OK);
    assert_eq!(disk.read(1 << 40, 512).0, IOERR);
    // The last answer may be seen before it is counted.
    let begun = Instant::now();
    let queues = loop {
        let queues = control.call("GetStatistics", json!({}))["queues"].clone();
        let timed: u64 =
            queues[0]["latency_buckets"].as_array().unwrap().iter().filter_map(Value::as_u64).sum();
        if timed == 11 || begun.elapsed() > PATIENCE {
            break queues;
        }
    };
    assert_eq!(queues[0]["writes"], 10);
    assert_eq!(queues[0]["written_bytes"], 40960);
    assert_eq!(queues[0]["flushes"], 1);
    assert_eq!(queues[0]["refused"], 1);
    assert_eq!(queues[1]["reads"], 5);
    assert_eq!(queues[1]["read_bytes"], 2560);
    assert!(queues[0]["kicks"].as_u64().unwrap() > 0);
    assert!(queues[0]["calls"].as_u64().unwrap() > 0);
    // Counts go on with the next client.
    drop(disk);
    let mut disk = Disk::connect(&backend);
    assert_eq!(disk.write(0, &[1; 512]), OK);
    let queues = control.call("GetStatistics", json!({}))["queues"].clone();
    assert_eq!(queues[0]["writes"], 11);
    let text = control.call("GetMetrics", json!({}))["text"].as_str().unwrap().to_owned();
    assert!(text.contains("strata_disk_requests_total{"), "{text}");
}

#[test]
fn a_disk_grows_under_its_guest() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (backend, mut control) = Control::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    let mut channel = disk.frontend.channel().unwrap();
    assert_eq!(disk.write(2048, &[1; 512]), IOERR);
    control.call("Resize", json!({ "bytes": 4 << 20 }));
    // CONFIG_CHANGE_MSG is request 2; no body.
    let mut message = [0; 12];
    channel.set_read_timeout(Some(PATIENCE)).unwrap();
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message[..4], 2u32.to_le_bytes());
    assert_eq!(disk.frontend.config(0, 8).unwrap(), 8192u64.to_le_bytes());
    assert_eq!(disk.write(8184, &pattern(1, 4096)), OK);
    assert!(disk.read(8184, 4096).1 == pattern(1, 4096));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 4 << 20);
    assert_eq!(control.call("GetStatus", json!({}))["bytes"], 4 << 20);
}

/// Its first table has to move for that, and does so between writes that put tables into it.
#[test]
fn a_qcow2_disk_grows_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    if !qcow2(&path, "512", "1M") {
        return;
    }
    let (mut backend, mut control) = Control::start(dir.path(), &path, &["--format", "qcow2"]);
    let mut disk = Disk::connect(&backend);
    let mut written = vec![];
    for shift in 0..8u64 {
        let sectors = 2048 << shift;
        // Each write in a table of its own.
        for sector in (sectors / 2..sectors).step_by(256).take(64) {
            assert_eq!(disk.write(sector, &pattern(sector, 512)), OK);
            written.push(sector);
        }
        control.call("Resize", json!({ "bytes": sectors * 1024 }));
    }
    for sector in &written {
        assert!(disk.read(*sector, 512).1 == pattern(*sector, 512), "sector {sector}");
    }
    backend.kill();
    assert_sound(&path);
    let backend = Backend::start(dir.path(), &path, &["--format", "qcow2"]);
    let mut disk = Disk::connect(&backend);
    assert_eq!(disk.frontend.config(0, 8).unwrap(), (2048u64 << 8).to_le_bytes());
    for sector in &written {
        assert!(disk.read(*sector, 512).1 == pattern(*sector, 512), "sector {sector} after the kill");
    }
}

#[test]
fn limits_hold_and_change_while_the_disk_is_used() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (backend, mut control) = Control::start(dir.path(), &path, &["--num-queues", "2"]);
    let mut disk = Disk::with(&backend, 2, u64::MAX);
    control.call("SetRates", json!({ "rates": { "iops": 200, "iops_burst": 10 } }));
    let begun = Instant::now();
    for round in 0..110 {
        assert_eq!(disk.request(round % 2, OUT, 0, &[1; 512], 0).0, OK);
    }
    // 110 requests, 10 at once: half a second. Slower is a busy machine, faster is wrong.
    assert!(begun.elapsed() >= Duration::from_millis(490), "{:?}", begun.elapsed());
    if begun.elapsed() < Duration::from_millis(800) {
        // Nothing else has held it up.
        let queues = control.call("GetStatistics", json!({}))["queues"].clone();
        let throttled = |queue: usize| queues[queue]["throttled"].as_u64().unwrap();
        assert!(throttled(0) + throttled(1) > 0);
    }

    control.call("SetRates", json!({ "rates": { "bytes_per_second": 1 << 20, "bytes_burst": 1 << 16 } }));
    let begun = Instant::now();
    for _ in 0..9 {
        assert_eq!(disk.write(0, &[1; 64 << 10]), OK);
    }
    assert!(begun.elapsed() >= Duration::from_millis(430), "{:?}", begun.elapsed());

    // A queue that waits for its limit can be stopped, and goes on as soon as there is none.
    control.call("SetRates", json!({ "rates": { "iops": 1, "iops_burst": 1 } }));
    assert_eq!(disk.write(0, &[1; 512]), OK);
    let base = disk.frontend.stop(0).unwrap();
    disk.frontend.start(0, &disk.queues[0], base).unwrap();
    control.call("SetRates", json!({ "rates": {} }));
    for _ in 0..100 {
        assert_eq!(disk.write(0, &[1; 512]), OK);
    }
}

#[test]
fn a_disk_that_stops_on_errors_goes_on_when_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4 << 20);
    for words in [&["--engine", "io_uring"][..], &["--engine", "sync"]] {
        let words = [&["--on-error", "stop"], words].concat();
        let (backend, mut control) = Control::start(dir.path(), &path, &words);
        let mut disk = Disk::connect(&backend);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(0).unwrap();
        // The read is not answered, and neither is the write that comes after it.
        let at = Disk::buffers(0);
        let begun = Instant::now();
        for (index, kind) in [(0, IN), (1, OUT)] {
            let at = at + index * 8192;
            disk.write_header(at, kind, 4096);
            let data = Buf { gpa: at + 4096, len: 512, writable: kind == IN };
            disk.queues[0].add(&[Buf::readable(at, 16), data, Buf::writable(at + 64, 1)]).unwrap();
            disk.queues[0].kick();
            while control.call("GetStatus", json!({}))["halted"] != true {
                assert!(begun.elapsed() < PATIENCE);
            }
        }
        std::thread::sleep(Duration::from_millis(100));
        assert!(disk.queues[0].poll().is_none());
        file.set_len(4 << 20).unwrap();
        control.call("Resume", json!({}));
        for index in 0..2 {
            disk.queues[0].wait(PATIENCE).unwrap();
            assert_eq!(disk.memory.read_obj::<u8>(at + index * 8192 + 64).unwrap(), OK);
        }
        assert_eq!(control.call("GetStatus", json!({}))["halted"], false);
        // One that is stopped meanwhile answers what it has taken.
        file.set_len(0).unwrap();
        disk.write_header(at, IN, 4096);
        let chain = [Buf::readable(at, 16), Buf::writable(at + 4096, 512), Buf::writable(at + 64, 1)];
        disk.queues[0].add(&chain).unwrap();
        disk.queues[0].kick();
        while control.call("GetStatus", json!({}))["halted"] != true {
            assert!(begun.elapsed() < PATIENCE);
        }
        disk.frontend.stop(0).unwrap();
        assert!(disk.queues[0].poll().is_some());
        assert_eq!(disk.memory.read_obj::<u8>(at + 64).unwrap(), IOERR);
        file.set_len(4 << 20).unwrap();
    }
}
