use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost::VhostBackend;

use super::*;
use crate::chain::Chain;
use crate::device::{Identity, QueueSetup, QueueState, StartError};
use crate::driver::{Buf, DriverQueue, Frontend};
use crate::memory::Memory;
use crate::spec::{F_PROTOCOL_FEATURES, RING_FEATURES};
use crate::vring::{Vring, signal};
use crate::worker::{Options, Progress, Service, Source, Worker};

const DATA: u64 = 0x10_0000;
const LONG: Duration = Duration::from_secs(60);

/// Answers every request with length 1.
struct Answers(Vring, Chain);

impl Service for Answers {
    fn process(&mut self) -> Progress {
        while self.0.next(&mut self.1) {
            self.0.push(self.1.head(), 1);
        }
        if self.0.flush() { Progress::Worked } else { Progress::Idle }
    }

    fn has_work(&mut self) -> bool {
        self.0.queue().has_work()
    }

    fn suppress_kicks(&mut self) {
        self.0.queue_mut().suppress_kicks();
    }

    fn prepare_sleep(&mut self) -> bool {
        self.0.queue_mut().arm_kicks()
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::kick(&self.0)]
    }

    fn drain(&mut self) {}
}

/// What has happened to the device, in order.
type Log = Arc<Mutex<Vec<String>>>;

struct Toy {
    identity: Identity,
    config: Vec<u8>,
    workers: BTreeMap<u16, Worker<Answers>>,
    memory: std::sync::Weak<Memory>,
    log: Log,
}

impl Toy {
    fn log(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

impl Device for Toy {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn read_config(&mut self, offset: u32, out: &mut [u8]) {
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = self.config.get(offset as usize + i).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            if let Some(slot) = self.config.get_mut(offset as usize + i) {
                *slot = *byte;
            }
        }
    }

    fn set_features(&mut self, features: u64) {
        self.log(format!("features {features:#x}"));
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), StartError> {
        let (index, base) = (setup.index, setup.base);
        self.memory = Arc::downgrade(&setup.memory);
        let vring = Vring::new(setup)?;
        let worker = Worker::spawn(Answers(vring, Chain::new()), Options::default())
            .map_err(|source| StartError::Resource { index, what: "a worker", source })?;
        self.log(format!("start {index} at {base}"));
        assert!(self.workers.insert(index, worker).is_none(), "started twice");
        Ok(())
    }

    fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let service = self.workers.remove(&index)?.stop()?;
        self.log(format!("stop {index} at {}", service.0.state().base));
        Some(service.0.state())
    }

    fn reset(&mut self) {
        assert!(self.workers.is_empty(), "queues are stopped first");
        self.log("reset".into());
    }
}

/// A backend on a thread of its own.
struct Backend {
    thread: Option<JoinHandle<Ended>>,
    stop: Arc<EventFd>,
    log: Log,
    channel: ConfigChange,
}

fn toy() -> (Toy, Log) {
    let log = Log::default();
    let identity =
        Identity { device_id: 42, features: RING_FEATURES, queue_sizes: vec![256, 128], config_size: 8 };
    let config = (1..=8).collect();
    let memory = std::sync::Weak::new();
    (Toy { identity, config, workers: BTreeMap::new(), memory, log: Arc::clone(&log) }, log)
}

fn backend(endpoint: Endpoint) -> Backend {
    let (mut device, log) = toy();
    let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap());
    let channel = ConfigChange::default();
    let (stop_it, their_channel) = (Arc::clone(&stop), channel.clone());
    let thread = std::thread::spawn(move || {
        let ended = serve(endpoint, &mut device, &*stop_it, &their_channel).unwrap();
        assert!(device.workers.is_empty());
        assert!(device.memory.upgrade().is_none(), "guest memory is still mapped");
        ended
    });
    Backend { thread: Some(thread), stop, log, channel }
}

fn pair() -> (Backend, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (backend(Endpoint::from_fd(theirs.into()).unwrap()), ours)
}

impl Backend {
    fn end(&mut self) -> Ended {
        self.thread.take().unwrap().join().unwrap()
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.stop.write(1).unwrap();
            let result = thread.join();
            assert!(std::thread::panicking() || result.is_ok());
        }
    }
}

fn guest() -> (Arc<Memory>, DriverQueue) {
    let memory = Arc::new(Memory::anonymous(0x20_0000).unwrap());
    let queue = DriverQueue::new(&memory, 0x1_0000, 128, RING_FEATURES).unwrap();
    (memory, queue)
}

fn exchange(queue: &mut DriverQueue, count: u32) {
    for _ in 0..count {
        queue.add(&[Buf::readable(DATA, 4)]).unwrap();
        queue.kick();
        assert_eq!(queue.wait(LONG).map(|(_, len)| len), Some(1));
    }
}

/// Waits until a ring that has been told to be silent could have answered, by asking another one.
fn silent(queue: &mut DriverQueue) -> bool {
    std::thread::sleep(Duration::from_millis(20));
    queue.poll().is_none()
}

#[test]
fn a_whole_life_with_protocol_features() {
    let (mut backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES | F_PROTOCOL_FEATURES).unwrap();
    assert_eq!((frontend.queues, frontend.features), (2, RING_FEATURES));
    frontend.set_memory(&memory).unwrap();
    assert_eq!(frontend.config(2, 4).unwrap(), [3, 4, 5, 6]);
    assert_eq!(frontend.config(6, 4).unwrap(), [7, 8, 0, 0], "zeros past the end");
    frontend.set_config(1, &[9]).unwrap();
    assert_eq!(frontend.config(0, 2).unwrap(), [1, 9]);
    frontend.start(1, &queue, 0).unwrap();
    exchange(&mut queue, 100);
    frontend.enable(1, false).unwrap();
    queue.add(&[Buf::readable(DATA, 4)]).unwrap();
    queue.kick();
    assert!(silent(&mut queue), "a disabled ring is not served");
    frontend.enable(1, true).unwrap();
    assert!(queue.wait(LONG).is_some());
    assert_eq!(frontend.stop(1).unwrap(), 101);
    assert_eq!(frontend.stop(1).unwrap(), 101, "asked again");
    assert_eq!(frontend.stop(0).unwrap(), 0, "never started");
    frontend.start(1, &queue, 101).unwrap();
    exchange(&mut queue, 3);
    drop(frontend);
    assert_eq!(backend.end(), Ended::Disconnected);
    let features = format!("features {RING_FEATURES:#x}");
    let expected = [
        &features,
        "start 1 at 0",
        "stop 1 at 100",
        "start 1 at 100",
        "stop 1 at 101",
        "start 1 at 101",
        "stop 1 at 104",
        "reset",
    ];
    assert_eq!(backend.take_log(), expected);
}

#[test]
fn without_protocol_features_a_kick_starts_the_ring() {
    let (_backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 10);
    assert_eq!(frontend.stop(0).unwrap(), 10);
}

#[test]
fn memory_can_be_swapped_under_running_rings() {
    let (backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 2);
    frontend.set_memory(&memory).unwrap();
    exchange(&mut queue, 2);
    // One region more, and gone again.
    let extra = Memory::anonymous(0x1000).unwrap();
    let region = extra.regions().next().unwrap();
    let info = vhost::VhostUserMemoryRegionInfo {
        guest_phys_addr: 0x100_0000,
        memory_size: 0x1000,
        userspace_addr: 0x7000_0000,
        mmap_offset: 0,
        mmap_handle: region.fd().as_raw_fd(),
    };
    use vhost::vhost_user::VhostUserFrontend;
    assert_eq!(frontend.inner().get_max_mem_slots().unwrap(), 64);
    frontend.inner().add_mem_region(&info).unwrap();
    exchange(&mut queue, 2);
    queue.add(&[Buf::readable(0x100_0000, 0x1000)]).unwrap();
    queue.kick();
    assert_eq!(queue.wait(LONG).unwrap().1, 1, "the new region is usable");
    frontend.inner().add_mem_region(&info).expect_err("twice");
    frontend.inner().remove_mem_region(&info).unwrap();
    queue.add(&[Buf::readable(0x100_0000, 0x1000)]).unwrap();
    queue.kick();
    assert_eq!(queue.wait(LONG).unwrap().1, 0, "and is no more");
    exchange(&mut queue, 2);
    frontend.inner().remove_mem_region(&info).expect_err("twice");
    let starts = backend.take_log().iter().filter(|line| line.starts_with("start")).count();
    assert_eq!(starts, 4);
}

#[test]
fn rings_outside_the_memory_are_refused_and_the_session_goes_on() {
    let (_backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    let small = Memory::anonymous(0x1_0000).unwrap();
    frontend.set_memory(&small).unwrap();
    frontend.start(0, &queue, 0).expect_err("no such address");
    assert!(queue.take_error(), "err is written for frontends that ask for no acknowledgement");
    // With the memory it wants the ring starts by itself.
    frontend.set_memory(&memory).unwrap();
    exchange(&mut queue, 2);
}

#[test]
fn a_broken_ring_is_reported_and_the_session_lives() {
    let (_backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut other = DriverQueue::new(&memory, 0x3_0000, 128, RING_FEATURES).unwrap();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    frontend.start(1, &other, 0).unwrap();
    memory.write_obj(queue.addresses()[1] + 2, 5000u16).unwrap();
    signal(queue.kick_fd());
    let start = Instant::now();
    while !queue.take_error() {
        assert!(start.elapsed() < LONG);
    }
    exchange(&mut other, 3);
    assert_eq!(frontend.stop(0).unwrap(), 0);
    // The driver resets its queue; it can be used again.
    queue = DriverQueue::new(&memory, 0x1_0000, 128, RING_FEATURES).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 3);
}

#[test]
fn descriptors_can_be_changed_while_a_ring_runs() {
    let (_backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 1);
    let call = vmm_sys_util::eventfd::EventFd::new(0).unwrap();
    frontend.inner().set_vring_call(0, &call).unwrap();
    assert!(!queue.arm_calls());
    queue.add(&[Buf::readable(DATA, 4)]).unwrap();
    queue.kick();
    assert_eq!(call.read().unwrap(), 1, "the new descriptor is called");
    assert!(!queue.take_call());
    assert!(queue.poll().is_some());
    frontend.inner().set_vring_base(0, 7).expect_err("a running ring has its own base");
    frontend.inner().set_vring_num(0, 64).expect_err("and its own size");
}

#[test]
fn a_call_that_died_with_its_backend_is_made_by_the_next() {
    let (memory, mut queue) = guest();
    let begin = |queue: &DriverQueue, base: u16| {
        let (backend, stream) = pair();
        let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
        frontend.set_memory(&memory).unwrap();
        frontend.start(0, queue, base).unwrap();
        (backend, frontend)
    };
    let (_backend, mut frontend) = begin(&queue, 0);
    exchange(&mut queue, 1);
    while queue.take_call() {}
    frontend.stop(0).unwrap();
    frontend.start(0, &queue, 1).unwrap();
    exchange(&mut queue, 1);
    frontend.stop(0).unwrap();
    while queue.take_call() {}
    // Another one finds answers, of which nobody can say whether they were called for.
    let (_backend, _frontend) = begin(&queue, 2);
    let start = Instant::now();
    while !queue.take_call() {
        assert!(start.elapsed() < LONG);
    }
    assert!(queue.poll().is_none());
}

#[test]
fn reset_forgets_the_rings() {
    let (backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 2);
    frontend.reset().unwrap();
    assert_eq!(backend.take_log().split_off(2), ["stop 0 at 2", "reset"]);
    let mut queue = DriverQueue::new(&memory, 0x1_0000, 128, RING_FEATURES).unwrap();
    frontend.inner().set_features(RING_FEATURES).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 2);
}

#[test]
fn inflight_regions_go_to_the_frontend_and_come_back() {
    let (mut first, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    let (region, fd) = frontend.inflight(2, 128).unwrap();
    assert_eq!((region.num_queues, region.queue_size), (2, 128));
    frontend.start(1, &queue, 0).unwrap();
    exchange(&mut queue, 5);
    frontend.return_inflight(&region, &fd).expect_err("a ring runs");
    drop(frontend);
    first.end();

    // The next backend finds one request in flight that the last one did not answer.
    let inflight = crate::inflight::Inflight::map(fd.as_fd(), region.mmap_size, 0, 2, 128).unwrap();
    let mut setup = queue.setup(1, 0).unwrap();
    setup.inflight = inflight.queue(1);
    queue.add(&[Buf::readable(DATA, 4)]).unwrap();
    queue.publish();
    let mut dead = crate::queue::Queue::new(&setup).unwrap();
    let mut chain = Chain::new();
    assert!(matches!(dead.pop(&mut chain), Ok(crate::queue::Popped::Chain)));
    drop(dead);
    let (second, stream) = pair();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.return_inflight(&region, &fd).unwrap();
    // A frontend of a crashed backend knows no better base than the used index.
    frontend.start(1, &queue, 5).unwrap();
    assert_eq!(queue.wait(LONG), Some((chain.head(), 1)));
    exchange(&mut queue, 2);
    assert_eq!(frontend.stop(1).unwrap(), 8);
    drop(second);
}

#[test]
fn config_changes_reach_the_frontend() {
    let (backend, stream) = pair();
    assert!(!backend.channel.notify(), "nobody listens");
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    let mut channel = frontend.channel().unwrap();
    assert!(backend.channel.notify());
    let mut message = [0; 12];
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "CONFIG_CHANGE, version 1, no body");
    // A frontend that does not read: the device is not held up.
    let sent = (0..1_000_000).take_while(|_| backend.channel.notify()).count();
    assert!(sent > 0 && sent < 1_000_000, "{sent}");
    drop(channel);
    assert!(!backend.channel.notify());
}

#[test]
fn one_frontend_after_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let mut backend = backend(Endpoint::from_fd(listener.into()).unwrap());
    for _ in 0..3 {
        let (memory, mut queue) = guest();
        let mut frontend = Frontend::connect(&path, RING_FEATURES).unwrap();
        frontend.set_memory(&memory).unwrap();
        frontend.start(0, &queue, 0).unwrap();
        exchange(&mut queue, 5);
    }
    backend.stop.write(1).unwrap();
    assert_eq!(backend.end(), Ended::Stopped);
    let log = backend.take_log();
    assert_eq!(log.iter().filter(|line| *line == "stop 0 at 5").count(), 3, "{log:?}");
    assert_eq!(log.iter().filter(|line| *line == "reset").count(), 3);
}

#[path = "session_hostile_test.rs"]
mod hostile;
