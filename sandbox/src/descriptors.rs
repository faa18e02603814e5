//! Which descriptors a process starts with.
//!
//! Called first thing in each `main`: what a launcher leaked is closed before anything is opened.

use std::os::fd::RawFd;

use libc::c_uint;

use crate::SandboxError;
use crate::sys;

/// Closes every inherited descriptor but standard output, standard error and those in `keep`. Standard input becomes
/// `/dev/null` unless 0 is in `keep`, so that nothing opened later takes its number; so do 1 and 2 if they are closed.
///
/// Must come before anything that holds a descriptor, so first in `main`.
pub fn close_inherited(keep: &[RawFd]) {
    if let Err(error) = close_others(keep) {
        // Goes on: what stays open is what the process that started this one has, not something a guest can reach
        // without breaking in first.
        tracing::warn!("inherited descriptors stay open: {error}");
    }
    let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null");
    match null {
        Ok(null) => {
            if !keep.contains(&0) {
                let _ = nix::unistd::dup2_stdin(&null);
            }
            if !sys::is_open(1) {
                let _ = nix::unistd::dup2_stdout(&null);
            }
            if !sys::is_open(2) {
                let _ = nix::unistd::dup2_stderr(&null);
            }
        }
        Err(error) => tracing::warn!("standard input stays open, no /dev/null: {error}"),
    }
}

/// Closes every descriptor from 3 on that is not in `keep`.
pub(crate) fn close_others(keep: &[RawFd]) -> Result<(), SandboxError> {
    for (first, last) in gaps(keep) {
        sys::close_range(first, last).map_err(SandboxError::system("close inherited descriptors"))?;
    }
    Ok(())
}

/// The ranges of descriptor numbers from 3 on that `keep` leaves out.
fn gaps(keep: &[RawFd]) -> Vec<(c_uint, c_uint)> {
    let mut kept: Vec<c_uint> = keep.iter().filter_map(|&fd| c_uint::try_from(fd).ok()).collect();
    kept.sort_unstable();
    let mut gaps = Vec::new();
    let mut next: c_uint = 3;
    for fd in kept {
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = next.max(fd.saturating_add(1));
    }
    gaps.push((next, c_uint::MAX));
    gaps
}

#[cfg(test)]
mod descriptors_test {
    use super::*;

    #[test]
    fn what_is_not_kept_is_in_a_gap() {
        assert_eq!(gaps(&[]), [(3, c_uint::MAX)]);
        assert_eq!(gaps(&[0, 1, 2]), [(3, c_uint::MAX)]);
        assert_eq!(gaps(&[5, 3, 4]), [(6, c_uint::MAX)]);
        assert_eq!(gaps(&[7, 4, 4]), [(3, 3), (5, 6), (8, c_uint::MAX)]);
        assert_eq!(gaps(&[-1, 3]), [(4, c_uint::MAX)]);
    }
}
