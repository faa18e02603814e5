#![allow(unsafe_code)] // ioctl on /dev/net/tun

//! Taps, opened or made (linux/if_tun.h).

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use libc::{c_int, c_ulong};

/// How long a tap may be in use before somebody has it, and is not just leaving.
const BUSY: Duration = Duration::from_secs(2);

const TUNSETIFF: c_ulong = nix::request_code_write!(b'T', 202, size_of::<c_int>());
const TUNSETPERSIST: c_ulong = nix::request_code_write!(b'T', 203, size_of::<c_int>());
const TUNSETGROUP: c_ulong = nix::request_code_write!(b'T', 206, size_of::<c_int>());
const TUNGETIFF: c_ulong = nix::request_code_read!(b'T', 210, size_of::<c_int>());
const IFF_TAP: c_int = 0x0002;
const IFF_MULTI_QUEUE: c_int = 0x0100;
const IFF_NO_PI: c_int = 0x1000;
const IFF_VNET_HDR: c_int = 0x4000;
/// Only if there is none yet.
const IFF_TUN_EXCL: c_int = 0x8000;

/// Opens `queues` queues of the tap `name`, which is made if there is none; a `%d` in it becomes a number. Gives the
/// name it has.
pub(super) fn open(name: &str, queues: u16) -> io::Result<(String, Vec<OwnedFd>)> {
    let node = Path::new("/dev/net/tun");
    let mut name = name.to_owned();
    let mut open = Vec::with_capacity(usize::from(queues));
    let mut multi = queues > 1;
    for _ in 0..queues {
        let file = node_of(node)?;
        if let Err(error) = set_when_free(&file, &name, multi) {
            // One queue can also be had of a tap made for several; the kernel wants to hear so.
            if error.raw_os_error() != Some(libc::EINVAL) || multi {
                return Err(error);
            }
            multi = true;
            set(&file, &name, multi)?;
        }
        name = name_of(&file)?;
        open.push(file);
    }
    Ok((name, open))
}

/// Makes the tap `name`, for any number of queues; with the descriptor it goes, unless it is [`keep`]t.
pub(super) fn make(name: &str) -> io::Result<OwnedFd> {
    let queue = node_of(Path::new("/dev/net/tun"))?;
    set_flags(&queue, name, IFF_MULTI_QUEUE | IFF_TUN_EXCL)?;
    Ok(queue)
}

/// Has a tap outlive its descriptors, for members of `group` to open.
pub(super) fn keep(tap: &OwnedFd, group: u32) -> io::Result<()> {
    // SAFETY: TUNSETGROUP takes a group's number by value.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETGROUP, c_ulong::from(group)) })?;
    // SAFETY: TUNSETPERSIST takes yes or no by value.
    done(unsafe { libc::ioctl(tap.as_raw_fd(), TUNSETPERSIST, c_ulong::from(true)) })
}

/// As [`set`], waiting for whoever had the tap to be quite gone: a machine that is started again in place of one that was
/// killed is often quicker than the kernel with closing the other's descriptors.
fn set_when_free(fd: &OwnedFd, name: &str, multi: bool) -> io::Result<()> {
    let deadline = Instant::now() + BUSY;
    loop {
        match set(fd, name, multi) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            other => return other,
        }
    }
}

/// Opens the node of a tap driver.
pub(super) fn node_of(path: &Path) -> io::Result<OwnedFd> {
    File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).map(OwnedFd::from)
}

/// Makes `fd` a queue of the interface `name`, with a header for offloads before each frame.
pub(super) fn set(fd: &OwnedFd, name: &str, multi: bool) -> io::Result<()> {
    set_flags(fd, name, if multi { IFF_MULTI_QUEUE } else { 0 })
}

fn set_flags(fd: &OwnedFd, name: &str, more: c_int) -> io::Result<()> {
    let mut request = empty();
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name.iter_mut().take(room).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | more;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &mut request) })
}

/// The name of the interface `fd` is a queue of.
pub(super) fn name_of(fd: &OwnedFd) -> io::Result<String> {
    let mut request = empty();
    // SAFETY: TUNGETIFF writes one `ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &mut request) })?;
    let bytes: Vec<u8> = request.ifr_name.iter().map(|c| *c as u8).collect();
    let name = CStr::from_bytes_until_nul(&bytes).map_err(io::Error::other)?;
    Ok(name.to_string_lossy().into_owned())
}

fn empty() -> libc::ifreq {
    // SAFETY: `ifreq` is plain data; all zeros are an empty name and value.
    unsafe { std::mem::zeroed() }
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
