#![allow(unsafe_code)] // received descriptors become owned values

//! A man in the middle between a frontend and its backend: passes messages and descriptors on, and delays them, cuts
//! one short, or hangs up when told to.

use std::io::{IoSlice, IoSliceMut};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// What happens to what passes.
#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    /// Each message is held up so long, in milliseconds.
    delay: AtomicU64,
    /// So many messages pass, then one is cut short and the connection ends; below 0: never.
    cut: AtomicI64,
    /// The backend's ends of all connections.
    live: Mutex<Vec<UnixStream>>,
}

impl State {
    fn live(&self) -> MutexGuard<'_, Vec<UnixStream>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A proxy that listens.
pub(crate) struct Proxy {
    path: PathBuf,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on `path` for who wants to speak to `backend`.
    pub(crate) fn start(path: PathBuf, backend: PathBuf) -> std::io::Result<Self> {
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path)?;
        let state = Arc::new(State { cut: AtomicI64::new(-1), ..State::default() });
        let served = Arc::clone(&state);
        let thread = std::thread::spawn(move || serve(&listener, &backend, &served));
        Ok(Self { path, state, thread: Some(thread) })
    }

    /// Hangs up on the backend, in the middle of whatever is said. The frontend is told when the backend has closed its
    /// end, as without anybody between them: until then it may still be at work in the guest's memory.
    pub(crate) fn sever(&self) {
        for stream in self.state.live().drain(..) {
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Cuts the message after the next `messages` short, and hangs up.
    pub(crate) fn cut_after(&self, messages: u64) {
        self.state.cut.store(messages as i64, Ordering::Release);
    }

    /// Holds each message up from now on.
    pub(crate) fn delay(&self, time: Duration) {
        self.state.delay.store(time.as_millis() as u64, Ordering::Release);
    }

    /// Is honest again.
    pub(crate) fn relent(&self) {
        self.delay(Duration::ZERO);
        self.state.cut.store(-1, Ordering::Release);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        let _ = UnixStream::connect(&self.path);
        self.sever();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn serve(listener: &UnixListener, backend: &Path, state: &Arc<State>) {
    let mut pumps: Vec<JoinHandle<()>> = Vec::new();
    while let Ok((client, _)) = listener.accept() {
        if state.stop.load(Ordering::Acquire) {
            break;
        }
        pumps.retain(|pump| !pump.is_finished());
        let Ok(server) = UnixStream::connect(backend) else { continue };
        for (from, to) in [(&client, &server), (&server, &client)] {
            let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { continue };
            let state = Arc::clone(state);
            pumps.push(std::thread::spawn(move || pump(&from, &to, &state)));
        }
        let mut live = state.live();
        live.clear();
        live.push(server);
    }
    for stream in state.live().drain(..) {
        let _ = stream.shutdown(Shutdown::Write);
    }
    for pump in pumps {
        let _ = pump.join();
    }
}

/// One direction, until it ends; then the other side is told, and answers by ending the other direction.
fn pump(from: &UnixStream, to: &UnixStream, state: &State) {
    while let Some((bytes, fds)) = receive(from) {
        let delay = state.delay.load(Ordering::Acquire);
        if delay > 0 {
            std::thread::sleep(Duration::from_millis(delay));
        }
        let cut = state.cut.load(Ordering::Acquire);
        if cut >= 0 && state.cut.fetch_sub(1, Ordering::AcqRel) == 0 {
            send(to, bytes.get(..bytes.len() / 2).unwrap_or_default(), &fds);
            state.live().iter().for_each(|server| drop(server.shutdown(Shutdown::Write)));
            break;
        }
        if !send(to, &bytes, &fds) {
            break;
        }
    }
    // A reply cut short is not the end of the backend: it is hung up on above, and its end is waited for.
    while receive(from).is_some() {}
    let _ = to.shutdown(Shutdown::Write);
}

/// What comes next; `None` at the end.
fn receive(from: &UnixStream) -> Option<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; 4096];
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let (len, fds) = {
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let got =
            recvmsg::<()>(from.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).ok()?;
        let mut fds = Vec::new();
        for control in got.cmsgs().ok()? {
            if let ControlMessageOwned::ScmRights(list) = control {
                // SAFETY: the kernel has just opened these for this process alone.
                fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (got.bytes, fds)
    };
    bytes.truncate(len);
    (len > 0).then_some((bytes, fds))
}

/// Passes it on; false if nobody is there.
fn send(to: &UnixStream, bytes: &[u8], fds: &[OwnedFd]) -> bool {
    let mut fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let mut rest = bytes;
    while !rest.is_empty() {
        let control = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[] } else { control.as_slice() };
        match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(rest)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
            Err(nix::errno::Errno::EINTR) => continue,
            Err(_) => return false,
        }
        fds.clear();
    }
    true
}
