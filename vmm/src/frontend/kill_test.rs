//! Backends killed under load. The backend is a process of its own: this test program, run for one test.

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use strata_virtio::chain::Chain;
use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::session::{ConfigChange, Endpoint, serve};
use strata_virtio::spec::{F_PROTOCOL_FEATURES, RING_FEATURES};
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Options, Progress, Service, Source, Worker};

use super::reference_test::{LIMIT, eventually, settings};
use super::*;

const SOCKET: &str = "STRATA_TEST_KILLED_BACKEND";
const SLOTS: usize = 32;
const KILLS: u32 = 60;

/// Answers a request of 16 bytes with its number and its complement, out of order.
struct Mirror {
    vring: Vring,
    chain: Chain,
    held: Vec<(Chain, [u8; 8])>,
}

impl Mirror {
    fn answer(&mut self, at: usize) {
        let (chain, number) = self.held.swap_remove(at);
        let answer = [number, number.map(|byte| !byte)].concat();
        let written = if chain.copy_in(0, &answer).is_ok() { 16 } else { 0 };
        self.vring.push(chain.head(), written);
    }
}

impl Service for Mirror {
    fn process(&mut self) -> Progress {
        let mut worked = Progress::Idle;
        while self.vring.next(&mut self.chain) {
            worked = Progress::Worked;
            let mut number = [0; 8];
            let _ = self.chain.copy_out(0, &mut number);
            self.held.push((std::mem::take(&mut self.chain), number));
            // Some wait for others to overtake them.
            if self.held.len() > SLOTS / 2 {
                self.answer(self.held.len() / 3);
                self.vring.flush();
            }
        }
        if worked == Progress::Idle && !self.held.is_empty() {
            self.answer(0);
            self.vring.flush();
            worked = Progress::Worked;
        }
        worked
    }

    fn has_work(&mut self) -> bool {
        self.vring.queue().has_work() || !self.held.is_empty()
    }

    fn suppress_kicks(&mut self) {
        self.vring.queue_mut().suppress_kicks();
    }

    fn prepare_sleep(&mut self) -> bool {
        self.vring.queue_mut().arm_kicks()
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::kick(&self.vring)]
    }

    fn drain(&mut self) {
        while !self.held.is_empty() {
            self.answer(0);
        }
        self.vring.flush();
    }
}

struct Backend {
    identity: Identity,
    worker: Option<Worker<Mirror>>,
}

impl Device for Backend {
    fn identity(&self) -> &Identity {
        &self.identity
    }
    fn read_config(&mut self, _offset: u32, out: &mut [u8]) {
        out.fill(0);
    }
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}
    fn set_features(&mut self, _features: u64) {}
    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let mirror = Mirror { vring: Vring::new(setup)?, chain: Chain::new(), held: Vec::new() };
        let worker = Worker::spawn(mirror, Options::default());
        self.worker =
            Some(worker.map_err(|source| StartError::Resource { index: 0, what: "thread", source })?);
        Ok(())
    }
    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        self.worker.take()?.stop().map(|mirror| mirror.vring.state())
    }
    fn reset(&mut self) {
        self.worker = None;
    }
}

/// Not a test by itself: the killed process.
#[test]
fn as_a_backend() {
    if std::env::var_os(SOCKET).is_none() {
        return;
    }
    let identity = Identity {
        device_id: 2,
        features: RING_FEATURES | F_PROTOCOL_FEATURES,
        queue_sizes: vec![256],
        config_size: 60,
    };
    let mut device = Backend { identity, worker: None };
    let stop: OwnedFd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap().into();
    // The listening socket is descriptor 0, as a supervisor hands it down.
    let endpoint = Endpoint::inherit(0).unwrap();
    serve(endpoint, &mut device, &stop, &ConfigChange::default()).unwrap();
}

fn spawn(listener: &UnixListener) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = std::any::type_name::<Mirror>();
    let module = name.split_once("::").unwrap().1.trim_end_matches("::Mirror");
    command.args(["--exact", &format!("{module}::as_a_backend")]).env(SOCKET, "1");
    command.stdin(OwnedFd::from(listener.try_clone().unwrap())).stdout(Stdio::null()).process_group(0);
    command.spawn().unwrap()
}

/// The driver's side: 32 requests at a time, each with a number of its own.
struct Load {
    memory: Arc<Memory>,
    queue: DriverQueue,
    /// Which number each head carries.
    posted: std::collections::HashMap<u16, u64>,
    next: u64,
    answered: u64,
    free: Vec<u64>,
    slot_of: std::collections::HashMap<u16, u64>,
}

impl Load {
    fn post(&mut self) {
        while let Some(slot) = self.free.pop() {
            let at = 0x10000 + slot * 64;
            self.memory.write_at(at, &self.next.to_le_bytes()).unwrap();
            self.memory.write_at(at + 32, &[0; 16]).unwrap();
            let head = self.queue.add(&[Buf::readable(at, 16), Buf::writable(at + 32, 16)]).unwrap();
            assert!(self.posted.insert(head, self.next).is_none());
            self.slot_of.insert(head, slot);
            self.next += 1;
        }
        self.queue.kick();
    }

    fn take(&mut self) {
        let (head, written) = self.queue.wait(LIMIT).expect("a request was lost");
        let number = self.posted.remove(&head).expect("an answer nobody waits for");
        let slot = self.slot_of[&head];
        let mut answer = [0; 16];
        self.memory.read_at(0x10000 + slot * 64 + 32, &mut answer).unwrap();
        let number = number.to_le_bytes();
        assert_eq!(written, 16);
        assert_eq!(answer[..8], number);
        assert_eq!(answer[8..], number.map(|byte| !byte));
        self.answered += 1;
        self.free.push(slot);
    }
}

/// A backend that can be killed, the device in front of it, and a load on that.
struct Scene {
    listener: UnixListener,
    _dir: tempfile::TempDir,
    backend: Child,
    device: Box<dyn Device>,
    handle: Handle,
    load: Load,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let listener = UnixListener::bind(&path).unwrap();
        let backend = spawn(&listener);
        let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
        let (PciDevice { mut device, .. }, handle) =
            connect(settings(&path, Kind::Blk, None), &memory, LIMIT).unwrap();
        let features = device.identity().features;
        device.set_features(features);
        let queue = DriverQueue::new(&memory, 0, 256, features).unwrap();
        device.start_queue(queue.setup(0, 0).unwrap()).unwrap();
        let load = Load {
            memory,
            queue,
            posted: Default::default(),
            next: 0,
            answered: 0,
            free: (0..SLOTS as u64).collect(),
            slot_of: Default::default(),
        };
        Self { listener, _dir: dir, backend, device, handle, load }
    }

    fn kill(&mut self) {
        self.backend.kill().unwrap();
        self.backend.wait().unwrap();
    }

    /// A driver resets its device and begins anew with a ring of another size.
    fn begin_anew(&mut self, size: u16) {
        let features = self.device.identity().features;
        assert!(self.device.stop_queue(0).is_some());
        self.device.reset();
        self.device.set_features(features);
        let load = &mut self.load;
        load.queue = DriverQueue::new(&load.memory, 0, size, features).unwrap();
        self.device.start_queue(load.queue.setup(0, 0).unwrap()).unwrap();
        load.posted.clear();
        load.slot_of.clear();
        load.free = (0..SLOTS as u64).collect();
        load.next = load.answered;
    }

    fn work(&mut self, requests: u32) {
        for _ in 0..requests {
            self.load.post();
            self.load.take();
        }
    }

    fn finish(mut self) {
        while !self.load.posted.is_empty() {
            self.load.take();
        }
        assert_eq!(self.load.answered, self.load.next);
        drop(self.device);
        self.backend.kill().unwrap();
        self.backend.wait().unwrap();
    }
}

#[test]
fn no_request_is_lost_when_backends_are_killed() {
    let mut scene = Scene::new();
    for kill in 0..KILLS {
        // Between one and a few thousand requests, then death at whatever moment that is.
        scene.work(1 + kill * 37);
        scene.load.post();
        scene.kill();
        scene.backend = spawn(&scene.listener);
    }
    scene.work(1000);
    while !scene.load.posted.is_empty() {
        scene.load.take();
    }
    assert_eq!(scene.handle.losses(), u64::from(KILLS));
    // Between two sessions of the guest the region is made anew.
    scene.begin_anew(128);
    scene.work(1);
    scene.finish();
}

/// What is in flight has to be noted also where the driver began anew while nobody was there: answers come out of order,
/// so without that, the next death would lose some requests and answer others twice.
#[test]
fn rings_begun_while_nobody_is_there_lose_nothing_afterwards() {
    let mut scene = Scene::new();
    for round in 0..20 {
        scene.work(50 + round);
        scene.load.post();
        scene.kill();
        eventually("loss", || scene.handle.state() == State::Lost);
        scene.begin_anew(if round % 2 == 0 { 64 } else { 256 });
        scene.backend = spawn(&scene.listener);
        scene.work(100);
        scene.load.post();
        scene.kill();
        scene.backend = spawn(&scene.listener);
    }
    scene.work(200);
    scene.finish();
}

/// It may have died between showing an answer and calling for it, so a guest that sleeps is called when there is one again.
#[test]
fn a_call_that_died_with_its_backend_comes_when_there_is_one_again() {
    let mut scene = Scene::new();
    scene.work(3);
    while !scene.load.posted.is_empty() {
        scene.load.take();
    }
    scene.kill();
    while scene.load.queue.take_call() {}
    scene.backend = spawn(&scene.listener);
    eventually("call", || scene.load.queue.take_call());
    scene.work(10);
    scene.finish();
}

/// A device that is to go while its backend is dead: what was in flight and what was not yet taken is answered with an
/// error, each request once.
#[test]
fn a_dead_backends_last_answers_are_one_for_each_request() {
    let mut failed = 0;
    for round in 0..10 {
        let mut scene = Scene::new();
        scene.work(100 + 13 * round);
        scene.load.post();
        scene.kill();
        scene.handle.leave(true);
        let load = &mut scene.load;
        while !load.posted.is_empty() {
            let (head, written) = load.queue.wait(LIMIT).expect("a request was lost");
            load.posted.remove(&head).expect("answered twice");
            let mut answer = [0; 16];
            load.memory.read_at(0x10000 + load.slot_of[&head] * 64 + 32, &mut answer).unwrap();
            assert!(written == 16 && matches!(answer[15], 1 | 0xff), "{written} {answer:?}");
            failed += u32::from(answer[15] == 1);
        }
        // The monitor goes on looking, and finds nothing.
        assert_eq!(load.queue.wait(Duration::from_millis(100)), None);
        assert!(scene.device.stop_queue(0).is_some());
    }
    assert!(failed > 0, "none was in flight");
}
