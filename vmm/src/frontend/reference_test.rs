//! Against a backend of another make: the `vhost-user-backend` crate. It tracks no requests in flight.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::spec::{F_EVENT_IDX, F_PROTOCOL_FEATURES, F_VERSION_1};
use vhost::vhost_user::{Listener, VhostUserProtocolFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringRwLock, VringT};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::*;

/// Often, so that tests need not wait.
pub(super) const LOOK: Duration = Duration::from_millis(20);
pub(super) const LIMIT: Duration = Duration::from_secs(30);
const BLK_MQ: u64 = 1 << 12;
const BLK_WCE: u64 = 1 << 11;

/// Fills every writable byte with 0x5a.
pub(crate) struct Filler {
    features: u64,
    config: Vec<u8>,
    largest_ring: usize,
    /// Takes nothing off the rings.
    pub(super) asleep: AtomicBool,
    /// Held while it looks at a ring.
    busy: Mutex<()>,
    written: Mutex<Vec<(u32, Vec<u8>)>>,
    memory: Mutex<Option<GuestMemoryAtomic<GuestMemoryMmap>>>,
}

fn config(sectors: u64, queues: u16) -> Vec<u8> {
    let mut config = vec![0; 60];
    config[..8].copy_from_slice(&sectors.to_le_bytes());
    config[32] = 1;
    config[34..36].copy_from_slice(&queues.to_le_bytes());
    config
}

impl Filler {
    pub(crate) fn new(sectors: u64, queues: u16) -> Self {
        let features = F_VERSION_1 | F_EVENT_IDX | F_PROTOCOL_FEATURES | BLK_MQ | BLK_WCE;
        Self {
            features,
            config: config(sectors, queues),
            largest_ring: 256,
            asleep: AtomicBool::new(false),
            busy: Mutex::default(),
            written: Mutex::default(),
            memory: Mutex::default(),
        }
    }

    /// From now on it takes nothing, and is done with what it was at: it may look at a ring once more after an answer.
    pub(super) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        drop(self.busy.lock().unwrap());
    }
}

impl VhostUserBackend for Filler {
    type Bitmap = ();
    type Vring = VringRwLock;

    fn num_queues(&self) -> usize {
        4
    }

    fn max_queue_size(&self) -> usize {
        self.largest_ring
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::REPLY_ACK
    }

    fn set_event_idx(&self, _enabled: bool) {}

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let mut config = self.config.clone();
        for (at, bytes) in self.written.lock().unwrap().iter() {
            config[*at as usize..*at as usize + bytes.len()].copy_from_slice(bytes);
        }
        config.get(offset as usize..(offset + size) as usize).map(<[u8]>::to_vec).unwrap_or_default()
    }

    fn set_config(&self, offset: u32, buf: &[u8]) -> std::io::Result<()> {
        self.written.lock().unwrap().push((offset, buf.to_vec()));
        Ok(())
    }

    fn update_memory(&self, memory: GuestMemoryAtomic<GuestMemoryMmap>) -> std::io::Result<()> {
        *self.memory.lock().unwrap() = Some(memory);
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        new_event_consumer_and_notifier(EventFlag::NONBLOCK).ok()
    }

    fn handle_event(
        &self,
        queue: u16,
        _events: EventSet,
        vrings: &[VringRwLock],
        _thread: usize,
    ) -> std::io::Result<()> {
        let _busy = self.busy.lock().unwrap();
        if self.asleep.load(Ordering::SeqCst) {
            return Ok(());
        }
        let memory = self.memory.lock().unwrap().as_ref().unwrap().memory();
        let vring = &vrings[usize::from(queue)];
        loop {
            vring.disable_notification().unwrap();
            loop {
                let chain = vring.get_mut().get_queue_mut().pop_descriptor_chain(memory.clone());
                let Some(chain) = chain else { break };
                let head = chain.head_index();
                let mut written = 0;
                for buffer in chain.writable() {
                    memory.write_slice(&vec![0x5a; buffer.len() as usize], buffer.addr()).unwrap();
                    written += buffer.len();
                }
                vring.add_used(head, written).unwrap();
            }
            vring.signal_used_queue().unwrap();
            if !vring.enable_notification().unwrap() {
                return Ok(());
            }
        }
    }
}

/// A running daemon; one connection.
pub(crate) struct Backend {
    pub(super) filler: Arc<Filler>,
    pub(crate) thread: Option<JoinHandle<()>>,
    shutdown: std::sync::mpsc::Receiver<ShutdownHandle>,
}

impl Backend {
    pub(crate) fn serve(listener: &UnixListener, filler: Filler) -> Self {
        let filler = Arc::new(filler);
        let listener = listener.try_clone().unwrap();
        let (sender, shutdown) = std::sync::mpsc::channel();
        let served = Arc::clone(&filler);
        let thread = std::thread::spawn(move || {
            let memory = GuestMemoryAtomic::new(GuestMemoryMmap::<()>::new());
            let mut daemon = VhostUserDaemon::new("filler".into(), served, memory).unwrap();
            daemon.start(&mut Listener::from(listener)).unwrap();
            sender.send(daemon.shutdown_handle().unwrap()).unwrap();
            let _ = daemon.wait();
        });
        Self { filler, thread: Some(thread), shutdown }
    }

    /// Breaks the connection, as death does.
    pub(crate) fn kill(mut self) {
        self.shutdown.recv_timeout(LIMIT).unwrap().shutdown();
        self.thread.take().unwrap().join().unwrap();
    }
}

pub(super) struct Rig {
    _dir: tempfile::TempDir,
    pub(super) path: PathBuf,
    pub(super) listener: UnixListener,
    pub(super) memory: Arc<Memory>,
}

impl Rig {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk0.sock");
        let listener = UnixListener::bind(&path).unwrap();
        Self { _dir: dir, path, listener, memory: Arc::new(Memory::anonymous(1 << 20).unwrap()) }
    }

    pub(super) fn connect(&self, queues: Option<u16>) -> Result<(PciDevice, Handle), FrontendError> {
        connect(settings(&self.path, Kind::Blk, queues), &self.memory, LIMIT)
    }
}

pub(super) fn settings(path: &Path, kind: Kind, queues: Option<u16>) -> Settings {
    Settings {
        id: "disk0".into(),
        path: path.to_owned(),
        kind,
        queues,
        queue_size: 256,
        give_up: None,
        look: LOOK,
        hook: None,
    }
}

pub(super) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Posts one buffer and waits for it to be filled.
pub(super) fn fill(memory: &Memory, queue: &mut DriverQueue) {
    memory.write_at(0x8000, &[0; 512]).unwrap();
    queue.add(&[Buf::writable(0x8000, 512)]).unwrap();
    queue.kick();
    assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(512));
    let mut bytes = [0; 512];
    memory.read_at(0x8000, &mut bytes).unwrap();
    assert_eq!(bytes, [0x5a; 512]);
}

pub(super) const FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | BLK_MQ;

#[test]
fn a_backend_of_another_make_serves_queues() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 4));
    let (PciDevice { mut device, .. }, handle) = rig.connect(Some(2)).unwrap();
    assert_eq!(device.identity().device_id, 2);
    assert_eq!(device.identity().queue_sizes, [256, 256]);
    assert_eq!(device.identity().features, FEATURES | BLK_WCE, "bit 30 is not the guest's");
    let mut seen = vec![0; 64];
    device.read_config(0, &mut seen);
    assert_eq!(seen[..60], config(2048, 2), "as many queues as the guest is to have");
    assert_eq!((handle.state(), handle.queues(), handle.kind()), (State::Connected, 2, "blk"));

    device.set_features(FEATURES);
    let mut queues: Vec<_> =
        (0..2).map(|at| DriverQueue::new(&rig.memory, at * 0x2000, 128, FEATURES).unwrap()).collect();
    for (index, queue) in (0..).zip(&mut queues) {
        device.start_queue(queue.setup(index, 0).unwrap()).unwrap();
        for _ in 0..5 {
            fill(&rig.memory, queue);
        }
    }
    assert_eq!(device.stop_queue(1), Some(QueueState { base: 5 }));
    assert_eq!(device.stop_queue(1), None);
    device.start_queue(queues[1].setup(1, 5).unwrap()).unwrap();
    fill(&rig.memory, &mut queues[1]);
    // The driver resets and begins anew on the same connection.
    device.stop_queue(0);
    device.stop_queue(1);
    device.reset();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 64, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    fill(&rig.memory, &mut queue);
    assert_eq!(handle.losses(), 0);
    drop(device);
    backend.thread.unwrap().join().unwrap();
}

#[test]
fn requests_of_a_dead_backend_are_answered_by_the_next() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
    let (PciDevice { mut device, .. }, handle) = rig.connect(None).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    let mut backend = Some(backend);
    for round in 0..5 {
        fill(&rig.memory, &mut queue);
        let dying = backend.take().unwrap();
        dying.filler.fall_asleep();
        queue.add(&[Buf::writable(0x8000, 512)]).unwrap();
        queue.kick();
        dying.kill();
        eventually("loss", || handle.state() == State::Lost);
        // Posted while nobody is there.
        queue.add(&[Buf::writable(0x8200, 512)]).unwrap();
        queue.kick();
        backend = Some(Backend::serve(&rig.listener, Filler::new(2048, 1)));
        for _ in 0..2 {
            assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(512), "round {round}");
        }
        eventually("return", || handle.state() == State::Connected);
    }
    assert_eq!(handle.losses(), 5);
    drop(device);
}

#[test]
fn a_backend_of_another_shape_is_refused_until_the_right_one_returns() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 2));
    let (PciDevice { mut device, .. }, handle) = rig.connect(Some(2)).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    fill(&rig.memory, &mut queue);
    backend.kill();
    queue.add(&[Buf::writable(0x8000, 512)]).unwrap();
    queue.kick();
    let poorer = Filler { features: F_VERSION_1 | F_PROTOCOL_FEATURES | BLK_MQ, ..Filler::new(2048, 2) };
    for (wrong, differs) in [
        (Filler::new(4096, 2), "has a capacity of 4096 sectors, not 2048"),
        (Filler::new(2048, 1), "2 queues are asked for; the backend offers 1"),
        (poorer, "lacks features that the guest uses: EVENT_IDX"),
    ] {
        let backend = Backend::serve(&rig.listener, wrong);
        // The frontend hangs up on it.
        backend.thread.unwrap().join().unwrap();
        assert!(backend.filler.memory.lock().unwrap().is_none(), "it has seen guest memory");
        assert_eq!(handle.state(), State::Lost);
        eventually("what differs", || handle.trouble().is_some_and(|trouble| trouble.contains(differs)));
    }
    assert!(queue.poll().is_none());
    let _right = Backend::serve(&rig.listener, Filler::new(2048, 2));
    assert_eq!(queue.wait(LIMIT).map(|answer| answer.1), Some(512));
    eventually("return", || handle.state() == State::Connected);
    assert_eq!(handle.trouble(), None);
    drop(device);
}

#[test]
fn a_guest_resets_and_goes_on_while_nobody_is_there() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
    let (PciDevice { mut device, .. }, handle) = rig.connect(None).unwrap();
    device.set_features(FEATURES);
    let mut queue = DriverQueue::new(&rig.memory, 0, 128, FEATURES).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    fill(&rig.memory, &mut queue);
    fill(&rig.memory, &mut queue);
    backend.kill();
    eventually("loss", || handle.state() == State::Lost);
    let start = Instant::now();
    assert_eq!(device.stop_queue(0), Some(QueueState { base: 2 }), "from the ring");
    device.reset();
    device.set_features(FEATURES & !F_EVENT_IDX);
    let mut queue = DriverQueue::new(&rig.memory, 0x4000, 64, FEATURES & !F_EVENT_IDX).unwrap();
    device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
    assert!(start.elapsed() < LIMIT / 2);
    let _next = Backend::serve(&rig.listener, Filler::new(2048, 1));
    fill(&rig.memory, &mut queue);
    drop(device);
}

#[test]
fn what_the_driver_wrote_to_the_configuration_survives_its_backend() {
    let rig = Rig::new();
    let backend = Backend::serve(&rig.listener, Filler::new(2048, 1));
    let (PciDevice { mut device, .. }, handle) = rig.connect(None).unwrap();
    device.set_features(FEATURES | BLK_WCE);
    device.write_config(32, &[0]);
    assert_eq!(*backend.filler.written.lock().unwrap(), [(32, vec![0])]);
    let writeback = |device: &mut Box<dyn Device>| {
        let mut byte = [9];
        device.read_config(32, &mut byte);
        byte[0]
    };
    assert_eq!(writeback(&mut device), 0);
    backend.kill();
    let next = Backend::serve(&rig.listener, Filler::new(2048, 1));
    eventually("return", || handle.losses() == 1 && handle.state() == State::Connected);
    assert_eq!(*next.filler.written.lock().unwrap(), [(32, vec![0])]);
    assert_eq!(writeback(&mut device), 0);
    device.reset();
    assert_eq!(writeback(&mut device), 1, "as it was before the driver");
    drop(device);
}

#[test]
fn less_than_asked_for_is_refused_with_the_numbers() {
    let rig = Rig::new();
    let _backend = Backend::serve(&rig.listener, Filler::new(2048, 2));
    let error = rig.connect(Some(3)).unwrap_err();
    let text = format!("{}: {}", error, crate::pci::causes(&error));
    assert!(text.contains("3 queues are asked for; the backend offers 2"), "{text}");
}

#[test]
fn rings_are_as_large_as_the_backend_takes_them() {
    let rig = Rig::new();
    // This make says no and hangs up: it takes three connections to find out.
    let small = || Filler { largest_ring: 64, ..Filler::new(2048, 2) };
    let _backends = [(); 3].map(|()| Backend::serve(&rig.listener, small()));
    let (PciDevice { device, .. }, _handle) = rig.connect(Some(2)).unwrap();
    assert_eq!(device.identity().queue_sizes, [64, 64]);
}

#[test]
fn nobody_there_is_said_so() {
    let rig = Rig::new();
    let path = rig.path.with_file_name("none.sock");
    let error =
        connect(settings(&path, Kind::Blk, None), &rig.memory, Duration::from_millis(50)).unwrap_err();
    assert!(matches!(error, FrontendError::Connect { .. }), "{error}");
    // Somebody listens and never answers.
    let error = connect(settings(&rig.path, Kind::Blk, None), &rig.memory, Duration::from_millis(50));
    assert!(matches!(error, Err(FrontendError::Offer { .. })));
}
