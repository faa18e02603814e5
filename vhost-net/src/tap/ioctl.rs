#![allow(unsafe_code)] // ioctl on tun and socket descriptors
//! The tun driver's ioctls (linux/if_tun.h), each as one checked call. Called by [`super::Tap`] alone.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use libc::{c_int, c_short, c_ulong};

use super::Filter;

/// Flags of TUNSETOFFLOAD.
pub mod offload {
    /// TUN_F_CSUM: frames with a partial checksum.
    pub const CSUM: u32 = 0x01;
    /// TUN_F_TSO4: TCP over IPv4 to be segmented.
    pub const TSO4: u32 = 0x02;
    /// TUN_F_TSO6: TCP over IPv6 to be segmented.
    pub const TSO6: u32 = 0x04;
    /// TUN_F_TSO_ECN: those with ECN too.
    pub const TSO_ECN: u32 = 0x08;
    /// TUN_F_UFO: UDP to be fragmented (accepted and without effect since Linux 4.14).
    pub const UFO: u32 = 0x10;
    /// TUN_F_USO4: UDP over IPv4 to be segmented.
    pub const USO4: u32 = 0x20;
    /// TUN_F_USO6: UDP over IPv6 to be segmented.
    pub const USO6: u32 = 0x40;
}

const TUNSETIFF: c_ulong = nix::request_code_write!(b'T', 202, size_of::<c_int>());
const TUNSETOFFLOAD: c_ulong = nix::request_code_write!(b'T', 208, size_of::<c_int>());
const TUNSETTXFILTER: c_ulong = nix::request_code_write!(b'T', 209, size_of::<c_int>());
const TUNGETIFF: c_ulong = nix::request_code_read!(b'T', 210, size_of::<c_int>());
const TUNSETVNETHDRSZ: c_ulong = nix::request_code_write!(b'T', 216, size_of::<c_int>());
const TUNSETQUEUE: c_ulong = nix::request_code_write!(b'T', 217, size_of::<c_int>());
const TUNSETCARRIER: c_ulong = nix::request_code_write!(b'T', 226, size_of::<c_int>());

const IFF_TAP: c_int = 0x0002;
const IFF_ATTACH_QUEUE: c_int = 0x0200;
const IFF_DETACH_QUEUE: c_int = 0x0400;
const IFF_MULTI_QUEUE: c_int = 0x0100;
const IFF_NO_PI: c_int = 0x1000;
const IFF_VNET_HDR: c_int = 0x4000;

const TUN_FLT_ALLMULTI: u16 = 1;

/// An interface name as the kernel takes it: up to 15 bytes and a zero.
#[derive(Debug)]
pub(super) struct Name([u8; libc::IFNAMSIZ]);

impl Name {
    pub(super) fn new(name: &str) -> Option<Self> {
        let bytes = name.as_bytes();
        // `%` makes the kernel choose a number, which nobody would know of.
        let bad = |b: &u8| b.is_ascii_whitespace() || matches!(b, 0 | b'/' | b'%' | b':');
        if bytes.is_empty() || name == "." || name == ".." || bytes.iter().any(bad) {
            return None;
        }
        let mut wire = [0; libc::IFNAMSIZ];
        wire.get_mut(..libc::IFNAMSIZ - 1)?.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(wire))
    }
}

/// An `ifreq` with a name and nothing else.
fn request(name: &Name) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data; all zeros are an empty name and value.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in req.ifr_name.iter_mut().zip(name.0) {
        *to = from as libc::c_char;
    }
    req
}

fn done(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

pub(super) fn open_tun() -> io::Result<OwnedFd> {
    let path = c"/dev/net/tun";
    // SAFETY: a constant path and flags.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC) };
    done(fd)?;
    // SAFETY: just opened, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn attach(fd: &OwnedFd, name: &Name, multi_queue: bool) -> io::Result<()> {
    let mut req = request(name);
    let multi = if multi_queue { IFF_MULTI_QUEUE } else { 0 };
    req.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | multi) as c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &mut req) })
}

/// Name and flags of the tap behind a descriptor.
pub(super) fn describe(fd: &OwnedFd) -> io::Result<(String, c_int)> {
    // SAFETY: plain data, zero is fine.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: TUNGETIFF writes one `ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &mut req) })?;
    // SAFETY: the union's flags were written by the ioctl.
    let flags = unsafe { req.ifr_ifru.ifru_flags };
    let name: Vec<u8> = req.ifr_name.iter().map(|c| *c as u8).collect();
    let name = CStr::from_bytes_until_nul(&name).map_err(io::Error::other)?;
    Ok((name.to_string_lossy().into_owned(), c_int::from(flags)))
}

/// The flag a tap from outside should have and has not.
pub(super) fn missing(flags: c_int) -> Option<&'static str> {
    [(IFF_TAP, "Ethernet frames (IFF_TAP)"), (IFF_NO_PI, "IFF_NO_PI"), (IFF_VNET_HDR, "IFF_VNET_HDR")]
        .into_iter()
        .find_map(|(flag, text)| (flags & flag == 0).then_some(text))
}

pub(super) fn is_multi_queue(flags: c_int) -> bool {
    flags & IFF_MULTI_QUEUE != 0
}

pub(super) fn set_header_size(fd: &OwnedFd, size: usize) -> io::Result<()> {
    let size = size as c_int;
    // SAFETY: TUNSETVNETHDRSZ reads one int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ, &size) })
}

pub(super) fn set_offload(fd: &OwnedFd, flags: u32) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD, c_ulong::from(flags)) })
}

pub(super) fn set_queue(fd: &OwnedFd, attached: bool) -> io::Result<()> {
    // SAFETY: plain data, zero is fine.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    req.ifr_ifru.ifru_flags = (if attached { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE }) as c_short;
    // SAFETY: TUNSETQUEUE reads one `ifreq`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETQUEUE, &mut req) })
}

pub(super) fn set_carrier(fd: &OwnedFd, up: bool) -> io::Result<()> {
    let up = c_int::from(up);
    // SAFETY: TUNSETCARRIER reads one int.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETCARRIER, &up) })
}

pub(super) fn set_filter(fd: &OwnedFd, filter: Option<&Filter>) -> io::Result<()> {
    // struct tun_filter: u16 flags, u16 count, then addresses of 6 bytes. A count of 0 turns the filter off.
    let mut wire = Vec::with_capacity(4);
    let (flags, addresses) = match filter {
        Some(filter) => {
            (if filter.all_multicast { TUN_FLT_ALLMULTI } else { 0 }, filter.addresses.as_slice())
        }
        None => (0, [].as_slice()),
    };
    let count = u16::try_from(addresses.len()).unwrap_or(u16::MAX);
    wire.extend_from_slice(&flags.to_ne_bytes());
    wire.extend_from_slice(&count.to_ne_bytes());
    for mac in addresses.iter().take(usize::from(count)) {
        wire.extend_from_slice(&mac.bytes());
    }
    // SAFETY: TUNSETTXFILTER reads the four bytes of the head and `count` addresses, all in `wire`.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETTXFILTER, wire.as_ptr()) })
}

/// A socket for questions about interfaces; nothing is sent through it.
fn query() -> io::Result<OwnedFd> {
    // SAFETY: constants.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    done(fd)?;
    // SAFETY: just opened, and owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(super) fn exists(name: &Name) -> io::Result<bool> {
    let socket = query()?;
    let mut req = request(name);
    // SAFETY: SIOCGIFINDEX reads and writes one `ifreq`.
    match done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFINDEX, &mut req) }) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) fn mtu(name: &Name) -> io::Result<u16> {
    let socket = query()?;
    let mut req = request(name);
    // SAFETY: SIOCGIFMTU reads and writes one `ifreq`.
    done(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &mut req) })?;
    // SAFETY: the union's MTU was written by the ioctl.
    let mtu = unsafe { req.ifr_ifru.ifru_mtu };
    u16::try_from(mtu).map_err(io::Error::other)
}
