//! Where a guest's console meets people: one primary place and any number of attached clients.
//!
//! Made by the machine; written by the console device's (or the UART's) thread, read by it for input; clients
//! come and go over the control socket. Owns two threads: one writes the primary place, one reads everybody.
//!
//! ```text
//!   guest --write--> recent output, 64 KiB (replayed to a newcomer)
//!                \-> backlog --thread--> primary (pty, file, the launcher's terminal)
//!                 \-> clients' sockets, never waited for
//!   primary, clients --thread--> input, 64 KiB --take--> guest
//! ```
//!
//! Refuses to hold up the guest: a client whose socket is full loses bytes; a primary place that does not take
//! its bytes is waited for once, [`PATIENCE`] long, and then loses them until it moves again. Lost bytes are
//! counted. Input beyond its bound stays with who sent it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{MsgFlags, send};
use strata_virtio::vring::signal;

/// Bytes of output kept for newcomers.
pub const RECENT: usize = 64 << 10;
/// Bytes of output waiting for the primary place.
const BACKLOG: usize = 256 << 10;
/// Bytes of input waiting for the guest.
pub(super) const INPUT: usize = 64 << 10;
/// How long the primary place is waited for.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// The most clients at once.
const CLIENTS_MAX: usize = 16;

/// The primary place: where output goes and input comes from; either may be absent.
#[derive(Debug, Default)]
pub struct Terminal {
    /// Read for input. End of file means that there is no more.
    pub input: Option<OwnedFd>,
    /// Written with output.
    pub output: Option<OwnedFd>,
}

/// Output's state.
#[derive(Debug, Default)]
struct Out {
    recent: VecDeque<u8>,
    backlog: VecDeque<u8>,
    /// The writer has bytes in hand.
    writing: bool,
    /// The primary place did not move when it was waited for.
    stuck: bool,
    /// Nobody takes the backlog (any more).
    deaf: bool,
    clients: Vec<Arc<OwnedFd>>,
    stopping: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    out: Mutex<Out>,
    /// The backlog grew or the hub stops.
    more: Condvar,
    /// The backlog shrank.
    less: Condvar,
    pub(super) input: Mutex<VecDeque<u8>>,
    /// Signalled when input comes.
    input_ready: OwnedFd,
    /// Wakes the reader: a new client, room for input, the end.
    pub(super) wake: OwnedFd,
    lost: AtomicU64,
}

/// The hub. Dropping it ends its threads; an output that blocks for ever is left to itself.
#[derive(Debug)]
pub struct Hub {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

impl Hub {
    /// A hub around the primary place.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub fn new(primary: Terminal) -> io::Result<Self> {
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let Terminal { input, output } = primary;
        let shared = Arc::new(Shared {
            out: Mutex::new(Out { deaf: output.is_none(), ..Out::default() }),
            more: Condvar::new(),
            less: Condvar::new(),
            input: Mutex::new(VecDeque::new()),
            input_ready: event()?.into(),
            wake: event()?.into(),
            lost: AtomicU64::new(0),
        });
        if let Some(output) = output {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("console-out".into()).spawn(move || shared.drain(&output))?;
        }
        let reading = Arc::clone(&shared);
        let reader = std::thread::Builder::new()
            .name("console-in".into())
            .spawn(move || super::reader::run(&reading, input))?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// Output of the guest. Waits at most [`PATIENCE`], and that only once until the primary place moves again.
    pub fn write(&self, bytes: &[u8]) {
        let mut out = self.shared.out();
        let overlong = bytes.len().saturating_sub(RECENT);
        out.recent.extend(bytes.get(overlong..).unwrap_or_default());
        let excess = out.recent.len().saturating_sub(RECENT);
        out.recent.drain(..excess);
        let lost = &self.shared.lost;
        let mut gone = 0;
        out.clients.retain(|client| match send_now(client, bytes) {
            Ok(sent) => {
                gone += bytes.len() - sent;
                true
            }
            Err(_) => false,
        });
        lost.fetch_add(gone as u64, Ordering::Relaxed);
        if !out.deaf {
            self.shared.queue(out, bytes);
        }
    }

    /// Attaches a client: gives the other end of a stream that carries the recent output, then all output, and
    /// takes input. Closing it detaches.
    ///
    /// # Errors
    /// Too many clients, or no descriptor is left.
    pub fn attach(&self) -> io::Result<OwnedFd> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
        // Room for the replay and a screenful; the kernel gives at most its wmem_max.
        setsockopt(&ours, sockopt::SndBuf, &(4 * RECENT))?;
        let mut out = self.shared.out();
        if out.clients.len() >= CLIENTS_MAX {
            return Err(io::Error::other(format!("{CLIENTS_MAX} clients are attached to the console")));
        }
        let recent = out.recent.make_contiguous();
        let sent = send_now(&ours, recent)?;
        self.shared.lost.fetch_add((recent.len() - sent) as u64, Ordering::Relaxed);
        out.clients.push(Arc::new(ours));
        drop(out);
        signal(&self.shared.wake);
        Ok(theirs)
    }

    /// Takes input into `out`; says how many bytes.
    pub fn take(&self, out: &mut [u8]) -> usize {
        let mut input = self.shared.input();
        let was_full = input.len() >= INPUT;
        let count = out.len().min(input.len());
        for (slot, byte) in out.iter_mut().zip(input.drain(..count)) {
            *slot = byte;
        }
        drop(input);
        if was_full && count > 0 {
            signal(&self.shared.wake);
        }
        count
    }

    /// Whether input waits.
    #[must_use]
    pub fn has_input(&self) -> bool {
        !self.shared.input().is_empty()
    }

    /// An eventfd that is signalled when input comes. To be watched edge-triggered, or read.
    #[must_use]
    pub fn input_ready(&self) -> BorrowedFd<'_> {
        self.shared.input_ready.as_fd()
    }

    /// Waits until the primary place has taken everything, at most `limit`; false if it did not.
    pub fn flush(&self, limit: Duration) -> bool {
        let start = Instant::now();
        let mut out = self.shared.out();
        while !out.deaf && (out.writing || !out.backlog.is_empty()) {
            let Some(left) = limit.checked_sub(start.elapsed()) else { return false };
            out = wait(&self.shared.less, out, left);
        }
        true
    }

    /// Bytes of output that found no room somewhere.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.out().stopping = true;
        self.shared.more.notify_all();
        signal(&self.shared.wake);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn out(&self) -> MutexGuard<'_, Out> {
        self.out.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.out().stopping
    }

    pub(super) fn clients(&self) -> Vec<Arc<OwnedFd>> {
        self.out().clients.clone()
    }

    pub(super) fn detach(&self, client: &Arc<OwnedFd>) {
        self.out().clients.retain(|other| !Arc::ptr_eq(other, client));
    }

    /// How much input there is room for.
    pub(super) fn room(&self) -> usize {
        INPUT.saturating_sub(self.input().len())
    }

    pub(super) fn put_input(&self, bytes: &[u8]) {
        self.input().extend(bytes);
        signal(&self.input_ready);
    }

    /// Puts bytes into the backlog, waiting for room if that is worth it.
    fn queue<'a>(&'a self, mut out: MutexGuard<'a, Out>, bytes: &[u8]) {
        let start = Instant::now();
        let mut rest = bytes;
        loop {
            let room = BACKLOG - out.backlog.len().min(BACKLOG);
            let (now, later) = rest.split_at(room.min(rest.len()));
            out.backlog.extend(now);
            rest = later;
            self.more.notify_one();
            if rest.is_empty() {
                return;
            }
            match PATIENCE.checked_sub(start.elapsed()) {
                Some(left) if !out.stuck && !out.deaf => out = wait(&self.less, out, left),
                _ => break,
            }
        }
        out.stuck = true;
        self.lost.fetch_add(rest.len() as u64, Ordering::Relaxed);
    }

    /// The writer of the primary place.
    fn drain(&self, output: &OwnedFd) {
        let mut chunk = Vec::new();
        loop {
            {
                let mut out = self.out();
                out.writing = false;
                self.less.notify_all();
                while out.backlog.is_empty() {
                    if out.stopping {
                        return;
                    }
                    out = self.more.wait(out).unwrap_or_else(PoisonError::into_inner);
                }
                let count = out.backlog.len().min(4096);
                chunk.clear();
                chunk.extend(out.backlog.drain(..count));
                out.writing = true;
            }
            if let Err(error) = write_all(output, &chunk) {
                tracing::warn!(%error, "the console's output is gone; output is dropped");
                let mut out = self.out();
                (out.deaf, out.writing) = (true, false);
                self.lost.fetch_add((chunk.len() + out.backlog.len()) as u64, Ordering::Relaxed);
                out.backlog.clear();
                self.less.notify_all();
                return;
            }
            self.out().stuck = false;
        }
    }
}

fn wait<'a>(condition: &Condvar, guard: MutexGuard<'a, Out>, limit: Duration) -> MutexGuard<'a, Out> {
    condition.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
}

/// Writes everything; waits where the descriptor is full.
fn write_all(output: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut rest = bytes;
    while !rest.is_empty() {
        match nix::unistd::write(output, rest) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(output.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            // A pty that nobody has open: what is said to nobody is gone.
            Err(Errno::EIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Sends what the socket takes without waiting. An error means that the client is gone.
fn send_now(client: &OwnedFd, bytes: &[u8]) -> io::Result<usize> {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match send(client.as_raw_fd(), rest, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
            Ok(count) => sent += count,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => break,
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(sent)
}

#[cfg(test)]
#[path = "hub_test.rs"]
mod hub_test;
