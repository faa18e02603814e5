#![allow(unsafe_code)] // one ioctl without a safe wrapper
//! The size of a terminal (TIOCGWINSZ, ioctl_tty(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

nix::ioctl_read_bad!(
    /// Fills a `winsize`.
    tiocgwinsz,
    libc::TIOCGWINSZ,
    libc::winsize
);

/// Columns and rows.
pub(super) fn of(terminal: &impl AsFd) -> io::Result<(u16, u16)> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the descriptor is open and the kernel writes one winsize.
    unsafe { tiocgwinsz(terminal.as_fd().as_raw_fd(), &raw mut size) }?;
    Ok((size.ws_col, size.ws_row))
}
