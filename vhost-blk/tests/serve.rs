//! A `vhost-blk` process over its socket, doing what it is for.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::Duration;

use nix::sys::signal::Signal;
use support::*;

const ENGINES: [&[&str]; 5] = [
    &["--engine", "io_uring", "--cache", "auto"],
    &["--engine", "io_uring", "--cache", "writeback"],
    &["--engine", "sync", "--cache", "writeback"],
    &["--engine", "sync", "--cache", "unsafe"],
    // With calls put off: each still comes.
    &["--coalesce", "1000", "--poll", "5000"],
];

#[test]
fn what_is_written_is_read_and_is_in_the_file() {
    for words in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 16 << 20);
        let backend = Backend::start(dir.path(), &path, words);
        let mut disk = Disk::connect(&backend);
        // From one sector to what needs several calls; aligned for direct I/O and not.
        for (seed, (sector, bytes)) in
            [(0, 512), (7, 512), (8, 4096), (9, 12 * 512), (64, 1 << 20), (32767, 512)]
                .into_iter()
                .enumerate()
        {
            let data = pattern(seed as u64 + 1, bytes);
            assert_eq!(disk.write(sector, &data), OK, "{words:?}");
            let (status, read) = disk.read(sector, bytes as u32);
            assert_eq!(status, OK);
            assert!(read == data, "{words:?}: sector {sector}");
            assert_eq!(disk.flush(), OK);
            let mut on_disk = vec![0; bytes];
            std::fs::File::open(&path).unwrap().read_exact_at(&mut on_disk, sector * 512).unwrap();
            assert!(on_disk == data, "{words:?}: sector {sector} in the file");
        }
    }
}

#[test]
fn pieces_of_any_shape_make_a_request() {
    for words in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 16 << 20);
        let backend = Backend::start(dir.path(), &path, words);
        let mut disk = Disk::connect(&backend);
        let at = Disk::buffers(0);
        let data = pattern(5, 8192);
        disk.write_header(at, OUT, 16);
        disk.memory.write_at(at + 4096 + 3, &data).unwrap();
        // 8192 bytes in 40 pieces at odd addresses, behind a header in two.
        let mut chain = vec![
            strata_virtio::driver::Buf::readable(at, 7),
            strata_virtio::driver::Buf::readable(at + 7, 9),
        ];
        let mut offset = 0;
        for piece in 0..40u64 {
            let len = if piece == 39 { 8192 - offset } else { 199 + (piece & 3) };
            chain.push(strata_virtio::driver::Buf::readable(at + 4096 + 3 + offset, len as u32));
            offset += len;
        }
        chain.push(strata_virtio::driver::Buf::writable(at + 64, 1));
        let table = at + (64 << 10);
        if words[1] == "sync" {
            disk.queues[0].add(&chain).unwrap();
        } else {
            disk.queues[0].add_indirect(table, &chain).unwrap().unwrap();
        }
        disk.queues[0].kick();
        assert_eq!(disk.queues[0].wait(PATIENCE).unwrap().1, 1);
        assert_eq!(disk.memory.read_obj::<u8>(at + 64).unwrap(), OK);
        assert!(disk.read(16, 8192).1 == data, "{words:?}");
    }
}

#[test]
fn it_identifies_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let backend = Backend::start(dir.path(), &path, &["--serial", "golden-7", "--num-queues", "2"]);
    let mut disk = Disk::connect(&backend);
    let (status, id) = disk.request(0, GET_ID, 0, &[], 20);
    assert_eq!(status, OK);
    assert_eq!(id, *b"golden-7\0\0\0\0\0\0\0\0\0\0\0\0");
    let config = disk.frontend.config(0, 60).unwrap();
    assert_eq!(config[0..8], 2048u64.to_le_bytes());
    assert_eq!(config[8..12], (4u32 << 20).to_le_bytes()); // size_max
    assert_eq!(config[12..16], 126u32.to_le_bytes()); // seg_max
    assert_eq!(config[34..36], 2u16.to_le_bytes()); // num_queues
    assert_ne!(disk.frontend.features & F_MQ, 0);
    assert_eq!(disk.request(0, 99, 0, &[], 0).0, UNSUPP);
}

#[test]
fn a_read_only_disk_is_not_written_to_and_can_be_shared() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    std::fs::write(&path, pattern(3, 1 << 20)).unwrap();
    let backend = Backend::start(dir.path(), &path, &["--read-only"]);
    let second = tempfile::tempdir().unwrap();
    let other = Backend::start(second.path(), &path, &["--read-only"]);
    for backend in [&backend, &other] {
        let mut disk = Disk::connect(backend);
        assert_ne!(disk.frontend.features & F_RO, 0);
        assert_eq!(disk.write(0, &[1; 512]), IOERR);
        assert_eq!(disk.request(0, DISCARD, 0, &segment(0, 8, 0), 0).0, IOERR);
        let (status, data) = disk.read(0, 4096);
        assert_eq!(status, OK);
        assert!(data == pattern(3, 1 << 20)[..4096]);
        assert_eq!(disk.flush(), OK);
    }
    assert!(std::fs::read(&path).unwrap() == pattern(3, 1 << 20));
}

#[test]
fn queues_work_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 16 << 20);
    let backend = Backend::start(dir.path(), &path, &["--num-queues", "4"]);
    let mut disk = Disk::with(&backend, 4, u64::MAX);
    for round in 0..50u64 {
        for queue in 0..4usize {
            let sector = (round * 4 + queue as u64) * 8;
            let data = pattern(sector + 1, 4096);
            assert_eq!(disk.request(queue, OUT, sector, &data, 0).0, OK);
            // Another queue sees it: there is one disk.
            assert!(disk.request((queue + 1) % 4, IN, sector, &[], 4096).1 == data);
        }
    }
}

#[test]
fn one_client_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let mut backend = Backend::start(dir.path(), &path, &[]);
    for round in 0..20u64 {
        let mut disk = Disk::connect(&backend);
        if round > 0 {
            assert!(disk.read(0, 512).1 == pattern(round - 1 + 100, 512));
        }
        assert_eq!(disk.write(0, &pattern(round + 100, 512)), OK);
        if round % 2 == 0 {
            disk.frontend.stop(0).unwrap();
        }
    }
    backend.signal(Signal::SIGTERM);
    assert_eq!(backend.wait().code(), Some(0));
    assert!(!backend.socket.exists(), "the socket is left behind");
    // The lock is let go at once, not when the kernel has put away the io_uring.
    let again = std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as i16,
        l_whence: nix::libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&again, nix::fcntl::FcntlArg::F_OFD_SETLK(&whole)).unwrap();
}

/// What no other process has mapped, of the process that serves and its reaper. Also after a client has been served.
#[test]
fn an_idle_backend_takes_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 64 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    assert_eq!(disk.write(0, &pattern(1, 4096)), OK);
    drop(disk);
    let private = |pid: u32| -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("Private_"));
        lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
    };
    let kib = private(backend.child.id()) + private(backend.server_pid());
    println!("{kib} KiB");
    assert!(kib <= 1536, "{kib} KiB are private");
}

/// An idle disk costs nothing: no thread of it wakes, not even to look whether there is something to do.
#[test]
fn an_idle_backend_sleeps() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 64 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    for round in 0..200u64 {
        assert_eq!(disk.write(round, &pattern(round, 512)), OK);
    }
    let wakes = |pid: u32| -> u64 {
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let status =
            threads.map(|thread| std::fs::read_to_string(thread.unwrap().path().join("status")).unwrap());
        let counts = status.map(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
            line.trim().parse::<u64>().unwrap()
        });
        counts.sum()
    };
    let all = || wakes(backend.child.id()) + wakes(backend.server_pid());
    let mut last = all();
    loop {
        std::thread::sleep(Duration::from_millis(200));
        let now = all();
        if std::mem::replace(&mut last, now) == now {
            break;
        }
    }
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(all(), last, "threads of an idle disk have woken");
}

#[test]
fn a_stopped_queue_goes_on_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    for round in 0..300u64 {
        assert_eq!(disk.write(round, &pattern(round, 512)), OK);
        if round % 7 == 0 {
            let base = disk.frontend.stop(0).unwrap();
            assert_eq!(u64::from(base), round + 1);
            disk.frontend.start(0, &disk.queues[0], base).unwrap();
        }
    }
    for round in 0..300u64 {
        assert!(disk.read(round, 512).1 == pattern(round, 512));
    }
}

#[test]
fn storage_is_given_back_and_zeroes_are_zero() {
    for words in ENGINES {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 0);
        std::fs::write(&path, pattern(1, 4 << 20)).unwrap();
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        let before = blocks();
        let backend = Backend::start(dir.path(), &path, words);
        let mut disk = Disk::connect(&backend);

        // Discard 1 MiB: the file gets a hole of it.
        assert_eq!(disk.request(0, DISCARD, 0, &segment(0, 2048, 0), 0).0, OK);
        assert!(blocks() + 2048 <= before, "{words:?}: {} of {before} blocks are left", blocks());
        assert!(disk.read(0, 4096).1 == [0; 4096]);

        // Zeroes with unmap give back, zeroes without do not.
        let with_hole = blocks();
        assert_eq!(disk.request(0, WRITE_ZEROES, 0, &segment(2048, 2048, 0), 0).0, OK);
        assert!(blocks() >= with_hole, "{words:?}");
        assert!(disk.read(2048, 1 << 20).1.iter().all(|byte| *byte == 0));
        let two = [segment(4096, 1024, 1), segment(5120, 1024, 1)].concat();
        assert_eq!(disk.request(0, WRITE_ZEROES, 0, &two, 0).0, OK);
        assert!(blocks() + 2048 <= with_hole, "{words:?}");
        assert!(disk.read(4096, 1 << 20).1.iter().all(|byte| *byte == 0));

        // What was not named is untouched.
        assert!(disk.read(6144, 1 << 20).1 == pattern(1, 4 << 20)[3 << 20..]);
    }
}

#[test]
fn the_write_cache_can_be_switched() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    assert_ne!(disk.frontend.features & F_WCE, 0);
    assert_eq!(disk.frontend.config(32, 1).unwrap(), [1]);
    disk.frontend.set_config(32, &[0]).unwrap();
    assert_eq!(disk.frontend.config(32, 1).unwrap(), [0]);
    assert_eq!(disk.write(0, &pattern(1, 4096)), OK);
    assert_eq!(disk.request(0, WRITE_ZEROES, 0, &segment(8, 8, 0), 0).0, OK);
    // Capacity is not for drivers to change.
    drop(disk.frontend.set_config(0, &[0xff; 8]));
    assert_eq!(disk.frontend.config(0, 8).unwrap(), 2048u64.to_le_bytes());
    assert_eq!(disk.read(0, 4096).1, pattern(1, 4096));
}

#[test]
fn the_command_line() {
    let run = |words: &[&str]| {
        std::process::Command::new(env!("CARGO_BIN_EXE_vhost-blk")).args(words).output().unwrap()
    };
    let capabilities = run(&["--print-capabilities"]);
    assert_eq!(capabilities.status.code(), Some(0));
    assert_eq!(capabilities.stdout, b"{\"type\":\"block\",\"features\":[\"read-only\",\"blk-file\"]}\n");
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["--blk-file", "/x"]).status.code(), Some(2));
    assert_eq!(run(&["--fd", "3", "--socket-path", "/x", "--blk-file", "/x"]).status.code(), Some(2));
    for (words, expected) in [
        (
            &["--socket-path", "/nowhere/s", "--blk-file", "/nowhere/image"][..],
            "/nowhere/image does not exist",
        ),
        (&["--socket-path", "/nowhere/s", "--blk-file", "/"], "/ is a directory"),
        (&["--fd", "77", "--blk-file", env!("CARGO_BIN_EXE_vhost-blk"), "--read-only"], "--fd 77"),
    ] {
        let output = run(words);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with("vhost-blk: ") && line.contains(expected)),
            "{text}"
        );
    }
}

#[test]
fn an_image_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let _first = Backend::start(dir.path(), &path, &[]);
    let second = tempfile::tempdir().unwrap();
    let mut refused = Backend::launch(second.path(), &path, &[]);
    assert_eq!(refused.wait().code(), Some(1));
    let said = refused.said();
    assert!(said.contains("is in use by vhost-blk (pid "), "{said}");
}
