//! Backends that lie in every message and field. What must hold: an error or a lost connection, no hang, no
//! panic, no descriptor left behind.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use strata_virtio::driver::DriverQueue;
use strata_virtio::spec::F_VERSION_1;
use vhost::vhost_user::message::FrontendReq as Req;

use super::reference_test::{LIMIT, eventually, settings};
use super::*;

const FEATURES: u64 = F_VERSION_1 | 1 << 30 | 1 << 29;
/// MQ, REPLY_ACK, BACKEND_REQ, CONFIG, INFLIGHT_SHMFD.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 5 | 1 << 9 | 1 << 12;

/// A reply on its way out.
#[derive(Debug, Clone)]
struct Reply {
    code: u32,
    flags: u32,
    size: Option<u32>,
    body: Vec<u8>,
    fds: usize,
}

/// What a script makes of a reply: `None` closes the connection.
type Script = Box<dyn FnMut(u32, Reply) -> Option<Reply> + Send>;

fn honest(_: u32, reply: Reply) -> Option<Reply> {
    Some(reply)
}

/// What clients said.
#[derive(Default)]
struct Heard {
    /// The backend's own channel of the latest client.
    channel: Option<UnixStream>,
    /// Every request, oldest first.
    requests: Vec<Req>,
}

/// Answers one client after the other by the book, through a script.
struct Liar {
    path: PathBuf,
    _dir: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    heard: Arc<Mutex<Heard>>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    fn new(script: Script) -> Self {
        Self::lingering(script, Duration::ZERO)
    }

    /// One that keeps a connection for so long after its client has ended it.
    fn lingering(mut script: Script, time: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let heard = Arc::new(Mutex::new(Heard::default()));
        let keep = Arc::clone(&heard);
        let thread = std::thread::spawn(move || {
            while let Ok((mut client, _)) = listener.accept() {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                while serve(&mut client, &mut script, &keep).is_some() {}
                std::thread::sleep(time);
            }
        });
        Self { path, _dir: dir, stop, heard, thread: Some(thread) }
    }

    fn connect(&self) -> Result<(PciDevice, Handle), FrontendError> {
        let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
        connect(settings(&self.path, Kind::Blk, None), &memory, LIMIT)
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.path);
        self.thread.take().unwrap().join().unwrap();
    }
}

fn honest_body(code: Req, body: &[u8], need: bool) -> Option<(Vec<u8>, usize)> {
    Some(match code {
        Req::GET_FEATURES => (FEATURES.to_ne_bytes().to_vec(), 0),
        Req::GET_PROTOCOL_FEATURES => (PROTOCOL.to_ne_bytes().to_vec(), 0),
        Req::GET_QUEUE_NUM => (1_u64.to_ne_bytes().to_vec(), 0),
        Req::GET_CONFIG => (body.to_vec(), 0),
        Req::GET_VRING_BASE => ([body[..4].to_vec(), vec![0; 4]].concat(), 0),
        Req::GET_INFLIGHT_FD => ([4096_u64.to_ne_bytes().as_slice(), &body[8..]].concat(), 1),
        _ if need => (vec![0; 8], 0),
        _ => return None,
    })
}

fn serve(client: &mut UnixStream, script: &mut Script, heard: &Mutex<Heard>) -> Option<()> {
    let stop: OwnedFd = EventFd::from_flags(EfdFlags::empty()).unwrap().into();
    let wire = wire::Wire::new(client.try_clone().unwrap().into(), Arc::new(stop));
    let mut message = wire.receive(0, wire::Limit::of(Some(LIMIT))).ok()?;
    let need = message.flags & wire::NEED_REPLY != 0;
    let code = Req::try_from(message.code).unwrap();
    let mut heard = heard.lock().unwrap();
    heard.requests.push(code);
    if code == Req::SET_BACKEND_REQ_FD {
        heard.channel = message.fds.pop().map(Into::into);
    }
    drop(heard);
    let Some((body, fds)) = honest_body(code, &message.body, need) else { return Some(()) };
    let reply = script(message.code, Reply { code: message.code, flags: 5, size: None, body, fds })?;
    let size = reply.size.unwrap_or(reply.body.len() as u32);
    let mut bytes: Vec<u8> = [reply.code, reply.flags, size].iter().flat_map(|w| w.to_ne_bytes()).collect();
    bytes.extend(&reply.body);
    let file = tempfile::tempfile().unwrap();
    let fds = vec![file.as_raw_fd(); reply.fds];
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[] } else { control.as_slice() };
    let iov = [std::io::IoSlice::new(&bytes)];
    sendmsg::<()>(client.as_fd().as_raw_fd(), &iov, control, MsgFlags::MSG_NOSIGNAL, None).ok()?;
    Some(())
}

#[test]
fn an_honest_script_connects() {
    let liar = Liar::new(Box::new(honest));
    let (device, handle) = liar.connect().unwrap();
    assert_eq!(handle.state(), State::Connected);
    drop(device);
}

/// A reply of `to` is changed by `lie`; connecting must fail, with `said` in the error.
fn lie(to: Req, said: &str, lie: impl Fn(&mut Reply) + Send + 'static) {
    let liar = Liar::new(Box::new(move |code, mut reply| {
        if code == u32::from(to) {
            lie(&mut reply);
        }
        Some(reply)
    }));
    let error = liar.connect().map(|_| ()).unwrap_err();
    let text = crate::pci::causes(&error);
    assert!(text.contains(said), "{to:?}: {text}");
}

#[test]
fn lies_in_the_handshake_are_refused() {
    lie(Req::GET_FEATURES, "where the answer to 1 is due", |reply| reply.code = 3);
    lie(Req::GET_FEATURES, "where the answer to 1 is due", |reply| reply.flags = 1);
    lie(Req::GET_FEATURES, "where the answer to 1 is due", |reply| reply.flags = 6);
    lie(Req::GET_FEATURES, "4294967295 bytes", |reply| reply.size = Some(u32::MAX));
    lie(Req::GET_FEATURES, "makes no sense", |reply| reply.body = vec![1; 4]);
    lie(Req::GET_FEATURES, "makes no sense", |reply| reply.body.clear());
    lie(Req::GET_FEATURES, "makes no sense", |reply| reply.fds = 1);
    lie(Req::GET_FEATURES, "8 descriptors", |reply| reply.fds = 200);
    lie(Req::GET_FEATURES, "VERSION_1", |reply| reply.body = vec![0; 8]);
    lie(Req::GET_QUEUE_NUM, "0", |reply| reply.body = vec![0; 8]);
    lie(Req::GET_CONFIG, "refused GET_CONFIG", |reply| reply.body[4..8].fill(0));
    lie(Req::GET_CONFIG, "refused GET_CONFIG", |reply| reply.body.truncate(12));
    lie(Req::GET_CONFIG, "makes no sense", |reply| reply.body.truncate(40));
    lie(Req::GET_CONFIG, "makes no sense", |reply| reply.body[0] = 1);
    lie(Req::SET_BACKEND_REQ_FD, "refused SET_BACKEND_REQ_FD", |reply| reply.body[0] = 1);
}

#[test]
fn a_backend_that_closes_at_any_point_is_an_error() {
    // Five answers make a handshake.
    for at in 0..5 {
        let mut count = 0;
        let liar = Liar::new(Box::new(move |_, reply| {
            count += 1;
            (count <= at).then_some(reply)
        }));
        liar.connect().map(|_| ()).unwrap_err();
    }
}

#[test]
fn a_lie_about_a_queue_loses_the_backend_not_the_guest() {
    type Lie = fn(&mut Reply);
    let lies: [(Req, Lie); 7] = [
        (Req::GET_INFLIGHT_FD, |reply| reply.fds = 0),
        (Req::GET_INFLIGHT_FD, |reply| reply.fds = 2),
        (Req::GET_INFLIGHT_FD, |reply| reply.body.fill(0)),
        (Req::GET_INFLIGHT_FD, |reply| reply.body.truncate(8)),
        (Req::SET_VRING_ADDR, |reply| reply.code = 0),
        (Req::SET_VRING_KICK, |reply| reply.body.clear()),
        (Req::GET_VRING_BASE, |reply| reply.body[0] = 7),
    ];
    for (to, lie) in lies {
        let told = Arc::new(AtomicBool::new(false));
        let telling = Arc::clone(&told);
        let liar = Liar::new(Box::new(move |code, mut reply| {
            // Once; the backend that returns is honest.
            if code == u32::from(to) && !telling.swap(true, Ordering::SeqCst) {
                lie(&mut reply);
            }
            Some(reply)
        }));
        let (PciDevice { mut device, .. }, handle) = liar.connect().unwrap();
        let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
        let queue = DriverQueue::new(&memory, 0, 64, F_VERSION_1).unwrap();
        device.set_features(F_VERSION_1);
        device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
        assert_eq!(device.stop_queue(0), Some(QueueState { base: 0 }), "{to:?}");
        eventually("return", || handle.state() == State::Connected);
        assert!(told.load(Ordering::SeqCst));
        assert_eq!(handle.losses(), 1, "{to:?}");
    }
}

/// Until a backend that was given up closes its end it may still write to the guest's memory, which the driver uses for
/// something else once its ring is stopped.
#[test]
fn a_ring_is_stopped_when_the_backend_that_was_given_up_has_gone() {
    let lingers = Duration::from_millis(300);
    let script = |code, mut reply: Reply| {
        if code == u32::from(Req::GET_VRING_BASE) {
            reply.body.clear();
        }
        Some(reply)
    };
    let liar = Liar::lingering(Box::new(script), lingers);
    let (PciDevice { mut device, .. }, handle) = liar.connect().unwrap();
    let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
    let queue = DriverQueue::new(&memory, 0, 64, F_VERSION_1).unwrap();
    device.set_features(F_VERSION_1);
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    let start = Instant::now();
    assert_eq!(device.stop_queue(0), Some(QueueState { base: 0 }));
    assert!(start.elapsed() >= lingers, "{:?}", start.elapsed());
    assert_eq!(handle.losses(), 1);
}

#[test]
fn a_ring_that_a_backend_refuses_does_not_start() {
    let liar = Liar::new(Box::new(|code, mut reply| {
        if code == u32::from(Req::SET_VRING_ADDR) {
            reply.body[0] = 1;
        }
        Some(reply)
    }));
    let (PciDevice { mut device, .. }, handle) = liar.connect().unwrap();
    let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
    let queue = DriverQueue::new(&memory, 0, 64, F_VERSION_1).unwrap();
    device.set_features(F_VERSION_1);
    let error = device.start_queue(queue.setup(0, 0).unwrap()).unwrap_err();
    assert!(crate::pci::causes(&error).contains("refused SET_VRING_ADDR"), "{}", crate::pci::causes(&error));
    assert_eq!(device.stop_queue(0), None);
    assert_eq!((handle.state(), handle.losses()), (State::Connected, 0));
}

/// Between SET_VRING_KICK and SET_VRING_ENABLE, backends take kicks and throw them away. A driver kicks as soon as its
/// ring is started, so that has to wait until the ring runs, which a backend without acknowledgements does not say.
#[test]
fn a_started_ring_runs_also_where_nothing_is_acknowledged() {
    for acknowledges in [true, false] {
        let liar = Liar::new(Box::new(move |code, mut reply| {
            if code == u32::from(Req::GET_PROTOCOL_FEATURES) && !acknowledges {
                reply.body = (PROTOCOL & !(1 << 3)).to_ne_bytes().to_vec();
            }
            Some(reply)
        }));
        let (PciDevice { mut device, .. }, _handle) = liar.connect().unwrap();
        let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
        device.set_features(F_VERSION_1);
        let queue = DriverQueue::new(&memory, 0, 64, F_VERSION_1).unwrap();
        device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
        let requests = liar.heard.lock().unwrap().requests.clone();
        let last: &[Req] = if acknowledges {
            &[Req::SET_VRING_KICK, Req::SET_VRING_ENABLE]
        } else {
            &[Req::SET_VRING_KICK, Req::SET_VRING_ENABLE, Req::GET_FEATURES]
        };
        assert!(requests.ends_with(last), "{requests:?}");
    }
}

#[test]
fn a_flood_of_changes_is_calmed_and_nonsense_on_the_channel_ends_it() {
    let liar = Liar::new(Box::new(honest));
    let (PciDevice { device, .. }, handle) = liar.connect().unwrap();
    let mut channel = liar.heard.lock().unwrap().channel.take().unwrap();
    channel.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
    channel.set_read_timeout(Some(LIMIT)).unwrap();
    let change = [2_u32, 1, 0].map(u32::to_ne_bytes).concat();
    // Unanswered ones, as many as the socket takes; then one that wants an answer.
    for _ in 0..10_000 {
        if channel.write_all(&change).is_err() {
            break;
        }
    }
    drop(device);
    drop(handle);

    let liar = Liar::new(Box::new(honest));
    let (PciDevice { device, .. }, handle) = liar.connect().unwrap();
    let mut channel = liar.heard.lock().unwrap().channel.take().unwrap();
    channel.set_read_timeout(Some(LIMIT)).unwrap();
    for (code, answer) in [(2_u32, 0_u64), (9, 1), (2, 0)] {
        channel.write_all(&[code, 9, 0].map(u32::to_ne_bytes).concat()).unwrap();
        let mut reply = [0; 20];
        channel.read_exact(&mut reply).unwrap();
        assert_eq!(reply[..4], code.to_ne_bytes());
        assert_eq!(reply[12..], answer.to_ne_bytes());
    }
    channel.write_all(&[2, 1, u32::MAX].map(u32::to_ne_bytes).concat()).unwrap();
    drop(channel);
    // The device itself goes on.
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(handle.state(), State::Connected);
    drop(device);
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Random changes to random replies; run by itself for the count of descriptors.
#[test]
fn random_lies_break_nothing() {
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let liar = Liar::new(Box::new(move |_, mut reply| {
        match random() % 24 {
            0 => reply.code = random() as u32 % 50,
            1 => reply.flags = random() as u32 % 16,
            2 => reply.body = vec![random() as u8; random() as usize % 64],
            3 => reply.fds = random() as usize % 40,
            4 => return None,
            5..8 => {
                let len = reply.body.len().max(1) as u64;
                if let Some(byte) = reply.body.get_mut((random() % len) as usize) {
                    *byte = random() as u8;
                }
            }
            _ => {}
        }
        Some(reply)
    }));
    let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
    let before = descriptors();
    let mut connected = 0;
    for _ in 0..400 {
        let Ok((PciDevice { mut device, .. }, _handle)) = liar.connect() else { continue };
        connected += 1;
        device.set_features(F_VERSION_1);
        let queue = DriverQueue::new(&memory, 0, 64, F_VERSION_1).unwrap();
        for _ in 0..2 {
            if device.start_queue(queue.setup(0, 0).unwrap()).is_ok() {
                device.write_config(32, &[1]);
                assert!(device.stop_queue(0).is_some());
            }
            device.reset();
        }
    }
    assert!(connected > 20, "only {connected} got through");
    // Other tests of this process open descriptors too; a leak here would be hundreds.
    assert!(descriptors() < before + 200, "{before} descriptors before, {} after", descriptors());
}
