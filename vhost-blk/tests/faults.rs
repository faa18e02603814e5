//! What goes wrong below the disk: the guest is told, the backend lives.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::os::unix::process::CommandExt;
use std::process::Command;

use support::*;

const WAYS: [&[&str]; 3] =
    [&["--engine", "io_uring"], &["--engine", "io_uring", "--cache", "writeback"], &["--engine", "sync"]];

#[test]
fn an_image_that_becomes_shorter() {
    for words in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let path = image(dir.path(), 8 << 20);
        std::fs::write(&path, pattern(1, 8 << 20)).unwrap();
        let mut backend = Backend::start(dir.path(), &path, words);
        let mut disk = Disk::connect(&backend);
        assert_eq!(disk.read(8192, 4096).0, OK);
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len((2 << 20) + 100).unwrap();
        // Beyond the end, and across it.
        assert_eq!(disk.read(8192, 4096).0, IOERR, "{words:?}");
        assert_eq!(disk.read(4088, 8192).0, IOERR, "{words:?}");
        // What is left is still served.
        let (status, data) = disk.read(0, 4096);
        assert_eq!(status, OK);
        assert!(data == pattern(1, 8 << 20)[..4096]);
        drop(disk);
        assert_eq!(Disk::connect(&backend).read(0, 512).0, OK);
        backend.signal(nix::sys::signal::Signal::SIGTERM);
        assert_eq!(backend.wait().code(), Some(0));
        assert_eq!(backend.said().matches("shorter than when it was opened").count(), 2);
    }
}

#[test]
fn an_image_that_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 8 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let mut disk = Disk::connect(&backend);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(disk.write(0, &pattern(1, 4096)), OK);
    assert_eq!(disk.flush(), OK);
    assert!(disk.read(0, 4096).1 == pattern(1, 4096));
}

#[test]
fn a_full_disk() {
    for words in WAYS {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("small");
        std::fs::create_dir(&mount).unwrap();
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&mount).status();
        if !mounted.is_ok_and(|status| status.success()) {
            println!("skipped: a small tmpfs cannot be mounted here");
            return;
        }
        let path = image(&mount, 8 << 20);
        let backend = Backend::start(dir.path(), &path, words);
        let mut disk = Disk::connect(&backend);
        let statuses = (0..8).map(|mib| disk.write(mib * 2048, &vec![1; 1 << 20])).collect::<Vec<_>>();
        assert_eq!(statuses[0], OK);
        assert_eq!(statuses[7], IOERR);
        // Room made by the guest can be used again.
        assert_eq!(disk.request(0, DISCARD, 0, &segment(0, 8 * 2048, 0), 0).0, OK, "{words:?}");
        assert_eq!(disk.write(7 * 2048, &vec![2; 1 << 20]), OK, "{words:?}");
        assert_eq!(disk.read(7 * 2048, 4096).1, [2; 4096]);
        drop((disk, backend));
        // Lazily: the kernel puts away an io_uring some time after its process.
        assert!(Command::new("umount").arg("--lazy").arg(&mount).status().unwrap().success());
    }
}

#[test]
fn a_limit_on_file_sizes_is_an_error_and_no_signal() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 8 << 20);
    let socket = dir.path().join("disk.sock");
    for words in WAYS {
        let mut command = Command::new("prlimit");
        command.arg("--fsize=1048576").arg(env!("CARGO_BIN_EXE_vhost-blk"));
        command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(&path).args(words);
        if std::env::var_os("STRATA_TEST_NO_SANDBOX").is_some() {
            command.arg("--no-sandbox");
        }
        command.stderr(std::process::Stdio::piped()).process_group(0);
        let backend = Backend { child: command.spawn().unwrap(), socket: socket.clone() };
        let begun = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(begun.elapsed() < PATIENCE);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let mut disk = Disk::connect(&backend);
        assert_eq!(disk.write(0, &[1; 4096]), OK, "{words:?}");
        assert_eq!(disk.write(4096, &[1; 4096]), IOERR, "{words:?}");
        assert_eq!(disk.read(0, 4096).1, [1; 4096], "{words:?}");
    }
}
