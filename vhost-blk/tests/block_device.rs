//! A block device behind the disk: a loop device over a file, whose storage shows what reached it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::*;

/// A loop device, taken apart when dropped.
struct Loop(PathBuf);

impl Loop {
    fn over(file: &Path) -> Option<Self> {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().ok()?;
        output.status.success().then(|| Self(String::from_utf8(output.stdout).unwrap().trim().into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

#[test]
fn a_block_device_gives_storage_back_and_has_one_user() {
    for words in [["--engine", "io_uring"], ["--engine", "sync"]] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("below");
        std::fs::write(&file, pattern(1, 8 << 20)).unwrap();
        let Some(device) = Loop::over(&file) else {
            println!("skipped: no loop device (root and the module loop)");
            return;
        };
        let blocks = || {
            std::fs::File::open(&file).unwrap().sync_all().unwrap();
            std::fs::metadata(&file).unwrap().blocks()
        };
        let before = blocks();
        let backend = Backend::start(dir.path(), &device.0, &words);
        let mut disk = Disk::connect(&backend);
        assert_eq!(disk.frontend.config(0, 8).unwrap(), (8u64 << 11).to_le_bytes());
        assert!(disk.read(2048, 4096).1 == pattern(1, 8 << 20)[1 << 20..][..4096]);

        // BLKDISCARD of the second MiB.
        assert_eq!(disk.request(0, DISCARD, 0, &segment(2048, 2048, 0), 0).0, OK);
        assert!(blocks() + 2048 <= before, "{words:?}: {} of {before} blocks are left", blocks());
        // Zeroes that may give storage back, and zeroes that may not, behind them.
        assert_eq!(disk.request(0, WRITE_ZEROES, 0, &segment(4096, 2048, 1), 0).0, OK);
        assert_eq!(disk.request(0, WRITE_ZEROES, 0, &segment(6144, 2048, 0), 0).0, OK);
        for sector in [2048, 4096, 6144, 8191] {
            assert!(disk.read(sector, 512).1 == [0; 512], "{words:?}: sector {sector}");
        }
        assert!(disk.read(8192, 512).1 == pattern(1, 8 << 20)[4 << 20..][..512]);
        assert_eq!(disk.write(2048, &pattern(9, 4096)), OK);
        assert_eq!(disk.flush(), OK);
        assert!(std::fs::read(&file).unwrap()[1 << 20..][..4096] == pattern(9, 4096));

        let elsewhere = tempfile::tempdir().unwrap();
        let mut second = Backend::launch(elsewhere.path(), &device.0, &words);
        assert!(!second.wait().success());
        let said = second.said();
        assert!(said.contains("is in use by"), "{said}");
    }
}
