//! A hostile backend process in front of the vmm's frontend: what `liar_test` cannot do from a thread. It stops itself, dies
//! in the middle of an answer, dribbles one byte a second, sends a mebibyte where eight bytes are due, hands over
//! descriptors of all kinds, floods its own channel and reads no answers. Each once, at one of its answers; after that it, or
//! its successor, is honest.
//!
//! What must hold: every call of the frontend returns in bounded time, the honest backend is taken into service, and nothing
//! is left behind.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // all of it is a test

use std::io::{IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::Pid;
use strata_virtio::driver::DriverQueue;
use strata_virtio::memory::Memory;
use strata_virtio::spec::F_VERSION_1;
use strata_vmm::frontend::{Handle, Kind, Settings, State, connect};
use strata_vmm::pci::PciDevice;
use vhost::vhost_user::message::FrontendReq as Req;

/// In the backend's environment: where it listens; and what it does at which answer.
const SOCKET: &str = "STRATA_TEST_HOSTILE_SOCKET";
const DEED: &str = "STRATA_TEST_HOSTILE_DEED";
/// How long the first answer may take, where it will not come.
const PATIENCE: Duration = Duration::from_secs(3);
/// Twice the time for an answer, and room for a busy host.
const BOUND: Duration = Duration::from_secs(50);
/// After this a launcher takes a stopped backend for hung.
const HUNG: Duration = Duration::from_secs(12);
const NEED_REPLY: u32 = 8;

/// Answer 0 is to GET_FEATURES, 5 the first after the handshake, the queue's come after that.
const CASES: &[(&str, usize)] = &[
    ("garbage", 0),
    ("garbage", 4),
    ("garbage", 8),
    ("overlong", 1),
    ("overlong", 6),
    ("huge", 2),
    ("huge", 7),
    ("half", 0),
    ("half", 3),
    ("half", 6),
    ("dribble", 0),
    ("dribble", 2),
    ("descriptors", 1),
    ("descriptors", 3),
    ("descriptors", 7),
    ("flood", 4),
    ("flood", 7),
    ("stop", 0),
    ("stop", 6),
    ("die", 2),
    ("die", 6),
];

/// Not a test by itself: the hostile process.
#[test]
fn as_a_backend() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let said = std::env::var(DEED).unwrap();
    let (deed, at) = said.split_once(' ').unwrap();
    let mut left: usize = at.parse().unwrap();
    let listener = UnixListener::bind(path).unwrap();
    for client in listener.incoming() {
        let client = client.unwrap();
        let mut channel = None;
        while let Some((code, flags, body, mut fds)) = request(&client) {
            if code == u32::from(Req::SET_BACKEND_REQ_FD) {
                channel = fds.pop();
            }
            let Some((answer, fd)) = honest(code, &body, flags & NEED_REPLY != 0) else { continue };
            let done = if deed == "none" || left > 0 {
                send(&client, &message(code, answer.len() as u32, &answer), &fd)
            } else {
                perform(deed, &client, code, &answer, channel.take())
            };
            // Once; a flood goes on by itself.
            left = if left == 0 { usize::MAX } else { left - 1 };
            if done.is_none() {
                break;
            }
        }
    }
}

fn request(client: &UnixStream) -> Option<(u32, u32, Vec<u8>, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut fill = |out: &mut [u8]| {
        let mut done = 0;
        while done < out.len() {
            let mut space = nix::cmsg_space!([RawFd; 8]);
            let mut iov = [IoSliceMut::new(&mut out[done..])];
            let got =
                recvmsg::<()>(client.as_raw_fd(), &mut iov, Some(&mut space), MsgFlags::empty()).ok()?;
            for control in got.cmsgs().ok()? {
                if let ControlMessageOwned::ScmRights(list) = control {
                    #[allow(unsafe_code)]
                    // SAFETY: the kernel has just opened these descriptors for this process alone.
                    fds.extend(list.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            done += Some(got.bytes).filter(|count| *count > 0)?;
        }
        Some(())
    };
    let mut header = [0; 12];
    fill(&mut header)?;
    let [code, flags, size] = [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
    let mut body = vec![0; size as usize];
    fill(&mut body)?;
    Some((code, flags, body, fds))
}

/// The body of an answer by the book, and its descriptor.
fn honest(code: u32, body: &[u8], need: bool) -> Option<(Vec<u8>, Vec<RawFd>)> {
    let word = |value: u64| Some((value.to_ne_bytes().to_vec(), Vec::new()));
    match Req::try_from(code).ok()? {
        Req::GET_FEATURES => word(F_VERSION_1 | 1 << 30 | 1 << 29),
        // MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD.
        Req::GET_PROTOCOL_FEATURES => word(1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12),
        Req::GET_QUEUE_NUM => word(1),
        Req::GET_CONFIG => Some((body.to_vec(), Vec::new())),
        Req::GET_VRING_BASE => Some(([&body[..4], &[0; 4]].concat(), Vec::new())),
        Req::GET_INFLIGHT_FD => {
            // Leaked, of one region a connection.
            let region = std::mem::ManuallyDrop::new(tempfile::tempfile().unwrap());
            Some(([&4096_u64.to_ne_bytes(), &body[8..]].concat(), vec![region.as_raw_fd()]))
        }
        _ if need => word(0),
        _ => None,
    }
}

fn message(code: u32, size: u32, body: &[u8]) -> Vec<u8> {
    [&[code, 5, size].map(u32::to_ne_bytes).concat(), body].concat()
}

fn send(client: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> Option<()> {
    let control = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[] } else { control.as_slice() };
    let sent =
        sendmsg::<()>(client.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None);
    sent.is_ok().then_some(())
}

/// `None` ends the connection.
fn perform(
    deed: &str,
    mut client: &UnixStream,
    code: u32,
    answer: &[u8],
    channel: Option<OwnedFd>,
) -> Option<()> {
    let whole = message(code, answer.len() as u32, answer);
    match deed {
        "garbage" => client.write_all(&(0..4096_u32).map(|at| (at * 21) as u8).collect::<Vec<_>>()),
        "overlong" => client.write_all(&[whole, vec![0; 1 << 20]].concat()),
        "huge" => client.write_all(&message(code, u32::MAX, &vec![0xff; 8192])),
        "half" => client.write_all(&whole[..7]),
        "dribble" => whole.iter().try_for_each(|byte| {
            std::thread::sleep(Duration::from_secs(1));
            client.write_all(&[*byte])
        }),
        "descriptors" => {
            let open = |path: &str| std::fs::File::open(path).unwrap();
            let (root, zero, status) = (open("/"), open("/dev/zero"), open("/proc/self/status"));
            let (pipe, _writes) = nix::unistd::pipe().unwrap();
            let fds = [
                root.as_raw_fd(),
                zero.as_raw_fd(),
                status.as_raw_fd(),
                pipe.as_raw_fd(),
                client.as_raw_fd(),
            ];
            return send(client, &whole, &fds);
        }
        "flood" => {
            let mut channel = UnixStream::from(channel.unwrap());
            // Changes of the configuration, each to be acknowledged.
            let change = [2_u32, 1 | NEED_REPLY, 0].map(u32::to_ne_bytes).concat();
            std::thread::spawn(move || while channel.write_all(&change).is_ok() {});
            client.write_all(&whole)
        }
        "stop" => kill(Pid::this(), Signal::SIGSTOP).map_err(Into::into),
        "die" => {
            let _ = client.write_all(&whole[..13]);
            std::process::exit(0);
        }
        _ => panic!("what is {deed}?"),
    }
    .ok()
}

/// The process; it ends with this.
struct Backend(Child);

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(path: &Path, deed: &str, at: usize) -> Backend {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_a_backend"]).env(SOCKET, path).env(DEED, format!("{deed} {at}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let backend = Backend(command.spawn().unwrap());
    eventually("listen", || UnixStream::connect(path).is_ok());
    backend
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < BOUND, "it does not {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn reach(path: PathBuf, memory: &Arc<Memory>, patience: Duration) -> Option<(PciDevice, Handle)> {
    let settings = Settings {
        id: "disk".into(),
        path,
        kind: Kind::Blk,
        queues: None,
        queue_size: 64,
        give_up: None,
        look: Duration::from_millis(100),
        hook: None,
    };
    connect(settings, memory, patience).ok()
}

/// What a driver does with a device that it begins to use and lets go. True if its ring was served.
fn use_once(device: &mut PciDevice, memory: &Arc<Memory>) -> bool {
    let device = &mut device.device;
    device.set_features(F_VERSION_1);
    let queue = DriverQueue::new(memory, 0, 64, F_VERSION_1).unwrap();
    let started = device.start_queue(queue.setup(0, 0).unwrap()).is_ok();
    device.write_config(32, &[1]);
    assert_eq!(device.stop_queue(0).is_some(), started);
    device.reset();
    started
}

fn case(deed: &str, at: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
    let mut backend = spawn(&path, deed, at);
    let id = Pid::from_raw(backend.0.id() as i32);
    // The launcher's part.
    let launcher = (deed == "stop").then(|| {
        std::thread::spawn(move || {
            std::thread::sleep(HUNG);
            kill(id, Signal::SIGKILL).unwrap();
        })
    });
    let start = Instant::now();
    let mut reached = reach(path.clone(), &memory, PATIENCE);
    if let Some((device, _)) = &mut reached {
        use_once(device, &memory);
    }
    assert!(start.elapsed() < BOUND, "{deed} at {at}: {:?}", start.elapsed());
    // What it says of its own accord is nobody's loss.
    let hurt = reached.as_ref().is_none_or(|(_, handle)| handle.losses() > 0);
    assert!(hurt || deed == "flood", "{deed} at {at} was not noticed");
    if let Some(launcher) = launcher {
        launcher.join().unwrap();
    }
    if matches!(deed, "stop" | "die") {
        backend.0.wait().unwrap();
        std::fs::remove_file(&path).unwrap();
        backend = spawn(&path, "none", 0);
    }
    let (mut device, handle) =
        reached.unwrap_or_else(|| reach(path, &memory, BOUND).unwrap_or_else(|| panic!("{deed} at {at}")));
    eventually("return", || handle.state() == State::Connected);
    assert!(use_once(&mut device, &memory), "{deed} at {at}: the honest one");
    drop(device);
    drop(backend);
}

fn entries(of: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{of}")).unwrap().count()
}

/// The most memory this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn nothing_a_backend_does_holds_the_frontend_for_long_or_stays() {
    let before = (entries("fd"), entries("task"), peak());
    std::thread::scope(|scope| {
        for (deed, at) in CASES {
            scope.spawn(|| case(deed, *at));
        }
    });
    // The other test of this program may be starting or ending.
    eventually("leave nothing", || entries("fd") <= before.0 && entries("task") <= before.1 + 1);
    assert!(peak() < before.2 + (64 << 10), "{} KiB more", peak() - before.2);
}
