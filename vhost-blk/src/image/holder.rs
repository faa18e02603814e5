//! Who holds a lock: `/proc/PID/fdinfo/FD` lists the locks of each open file (proc(5)).
//!
//! The kernel reports no process for an open-file-description lock (F_OFD_GETLK answers -1), because it may
//! have several; so every process that may be looked at is. Only on the way to an error message.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// Names the holder, or says that it cannot be seen.
pub(super) fn describe(file: &File) -> String {
    let Ok(meta) = file.metadata() else { return UNKNOWN.into() };
    // The form /proc/locks uses: major and minor in hex, inode in decimal.
    let inode = format!(
        "{:02x}:{:02x}:{}",
        nix::sys::stat::major(meta.dev()),
        nix::sys::stat::minor(meta.dev()),
        meta.ino()
    );
    let own = std::process::id().to_string();
    let Ok(processes) = fs::read_dir("/proc") else { return UNKNOWN.into() };
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|pid| pid.bytes().all(|b| b.is_ascii_digit())) else { continue };
        if pid != own && holds(pid, &inode) {
            let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            return format!("{} (pid {pid})", comm.trim());
        }
    }
    UNKNOWN.into()
}

const UNKNOWN: &str = "another process (which one cannot be seen from here)";

fn holds(pid: &str, inode: &str) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    descriptors.flatten().any(|descriptor| {
        fs::read_to_string(descriptor.path())
            .is_ok_and(|info| info.lines().any(|line| line.starts_with("lock:") && names(line, inode)))
    })
}

/// `lock:  1: OFDLCK ADVISORY WRITE -1 fe:00:131 0 EOF`
fn names(line: &str, inode: &str) -> bool {
    line.split_ascii_whitespace().any(|word| word == inode)
}
