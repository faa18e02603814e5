#![allow(unsafe_code)] // packet sockets
//! The host's side of a tap, for tests and benches (feature `host`): a network namespace of its own, in which
//! nothing else is, and a packet socket on the tap. Needs root, and refuses without.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; it is gone when the last descriptor of it and in it is closed.
#[derive(Debug)]
pub struct Namespace(OwnedFd);

impl Namespace {
    /// A new one, with nothing that sends by itself (no IPv6).
    ///
    /// # Errors
    /// No right to make one.
    pub fn new() -> io::Result<Self> {
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            // Absent where the kernel has no IPv6.
            for what in ["all", "default"] {
                let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{what}/disable_ipv6"), "1");
            }
            std::fs::File::open("/proc/thread-self/ns/net")
        });
        let file = thread.join().map_err(|_| io::Error::other("the namespace's thread panicked"))??;
        Ok(Self(file.into()))
    }

    /// Runs `body` on a thread inside it. Descriptors made there work anywhere.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the body panicked.
    pub fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET)?;
                Ok(body())
            });
            thread.join().map_err(|_| io::Error::other("the body panicked"))?
        })
    }

    /// Runs `ip` inside it.
    ///
    /// # Errors
    /// It is not installed, or failed.
    pub fn ip(&self, arguments: &str) -> io::Result<()> {
        let status = self.run(|| Command::new("ip").args(arguments.split_whitespace()).status())??;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("ip {arguments}: {status}"))) }
    }

    /// Frames an interface received and sent, and those it dropped on either way, as the host counts.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn counters(&self, name: &str) -> io::Result<Counters> {
        let table = self.run(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
        let line = table.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(':'));
        let fields: Vec<u64> =
            line.unwrap_or_default().split_whitespace().filter_map(|f| f.parse().ok()).collect();
        match fields.as_slice() {
            [_, received, _, received_dropped, _, _, _, _, _, sent, _, sent_dropped, ..] => Ok(Counters {
                received: *received,
                received_dropped: *received_dropped,
                sent: *sent,
                sent_dropped: *sent_dropped,
            }),
            _ => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    /// A packet socket on an interface.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn wire(&self, name: &str, headers: bool) -> io::Result<Wire> {
        self.run(|| Wire::open(name, headers))?
    }

    /// The namespace's descriptor, for a process that is to start in it.
    #[must_use]
    pub fn fd(&self) -> &OwnedFd {
        &self.0
    }
}

/// What the host counted on an interface.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counters {
    /// Frames from the guest.
    pub received: u64,
    /// Of these, dropped by the host.
    pub received_dropped: u64,
    /// Frames to the guest.
    pub sent: u64,
    /// Dropped before they reached the tap's descriptor.
    pub sent_dropped: u64,
}

/// A packet socket: what it sends, the guest receives, and the other way round.
#[derive(Debug)]
pub struct Wire {
    socket: OwnedFd,
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn option(socket: &OwnedFd, name: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an int.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, name, (&raw const on).cast(), len) };
    check(result as isize).map(drop)
}

impl Wire {
    /// With `headers` every frame has a virtio-net header of 10 bytes before it.
    fn open(name: &str, headers: bool) -> io::Result<Self> {
        const PACKET_QDISC_BYPASS: libc::c_int = 20;
        const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
        const PACKET_VNET_HDR: libc::c_int = 15;
        let all = (libc::ETH_P_ALL as u16).to_be();
        let flags = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // Protocol 0 until it is bound: it must not receive other interfaces' frames before.
        // SAFETY: constants.
        let fd = check(unsafe { libc::socket(libc::AF_PACKET, flags, 0) } as isize)?;
        // SAFETY: just opened, and owned by nobody else.
        let socket = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        option(&socket, PACKET_IGNORE_OUTGOING)?;
        // Frames that may have to be cut into segments take the ordinary way, the others the quick one.
        option(&socket, if headers { PACKET_VNET_HDR } else { PACKET_QDISC_BYPASS })?;
        let name = std::ffi::CString::new(name)?;
        // SAFETY: a string that ends in zero.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: plain data, zero is fine.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: an address of that length.
        check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) } as isize)?;
        Ok(Self { socket })
    }

    /// Sends one frame to the guest.
    ///
    /// # Errors
    /// The tap's queue is full (ENOBUFS), or it is down.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        // SAFETY: reads `frame`.
        let sent = unsafe {
            libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), libc::MSG_DONTWAIT)
        };
        check(sent).map(drop)
    }

    /// Sends the same frame `count` times, as fast as it goes; how many the tap took.
    ///
    /// # Errors
    /// The interface is down.
    pub fn send_many(&self, frame: &[u8], count: usize) -> io::Result<usize> {
        let mut piece = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
        // SAFETY: plain data, zero is fine.
        let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
        message.msg_hdr.msg_iov = &raw mut piece;
        message.msg_hdr.msg_iovlen = 1;
        let mut messages = vec![message; count];
        // SAFETY: `count` messages with one piece each, which is `frame`, only read.
        let sent = unsafe {
            libc::sendmmsg(self.socket.as_raw_fd(), messages.as_mut_ptr(), count as u32, libc::MSG_DONTWAIT)
        };
        match check(sent as isize) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => Ok(0),
            other => other,
        }
    }

    /// The next frame from the guest, or `None` when there is none for `limit`.
    ///
    /// # Errors
    /// The interface is down or gone.
    pub fn receive(&self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + limit;
        let mut frame = vec![0; 70_000];
        loop {
            // SAFETY: writes into `frame`.
            let got = unsafe {
                libc::recv(
                    self.socket.as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                    libc::MSG_DONTWAIT,
                )
            };
            match check(got) {
                Ok(len) => {
                    frame.truncate(len);
                    return Ok(Some(frame));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    let mut poll =
                        libc::pollfd { fd: self.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                    // SAFETY: one pollfd.
                    unsafe { libc::poll(&mut poll, 1, left.as_millis().clamp(1, 1000) as i32) };
                }
                Err(error) => return Err(error),
            }
        }
    }
}
