//! Who holds a lock: `/proc/PID/fdinfo/FD` lists the locks of each open file (proc(5)).
//!
//! The kernel reports no process for an open-file-description lock (F_OFD_GETLK answers -1), because it may
//! have several; so every process that may be looked at is. Only on the way to an error message.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Names a process that holds a lock on the file, if one can be seen.
pub(super) fn find(file: &File) -> Option<String> {
    let meta = file.metadata().ok()?;
    // The form /proc/locks uses: major and minor in hex, inode in decimal.
    let inode = format!(
        "{:02x}:{:02x}:{}",
        nix::sys::stat::major(meta.dev()),
        nix::sys::stat::minor(meta.dev()),
        meta.ino()
    );
    // An attempt that failed half-way may hold a lock of its own.
    let own = format!("/proc/{}/fdinfo/{}", std::process::id(), file.as_raw_fd());
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())) else { continue };
        if holds(pid, &inode, Path::new(&own)) {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return Some(format!("{} (pid {pid})", comm.trim()));
        }
    }
    None
}

fn holds(pid: &str, inode: &str, own: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    descriptors.flatten().map(|descriptor| descriptor.path()).filter(|path| path != own).any(|path| {
        fs::read_to_string(path)
            .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:") && names(line, inode)))
    })
}

/// `lock:  1: OFDLCK ADVISORY WRITE -1 fe:00:131 0 EOF`
fn names(line: &str, inode: &str) -> bool {
    line.split_ascii_whitespace().any(|word| word == inode)
}
