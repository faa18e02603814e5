use std::os::fd::AsFd;
use std::sync::Arc;

use super::*;
use crate::chain::Chain;
use crate::device::QueueSetup;
use crate::driver::{Buf, DriverQueue};
use crate::memory::Memory;
use crate::queue::{Popped, Queue};
use crate::spec::RING_FEATURES;
use crate::trace::crash_before;

const N: u16 = 8;
const DATA: u64 = 0x1_0000;

/// A driver that numbers its requests, a ring, a region, and whoever serves them until it crashes.
struct Bench {
    driver: DriverQueue,
    region: QueueRegion,
    posted: u32,
    answered: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
        let driver = DriverQueue::new(&memory, 0x1000, N, RING_FEATURES).unwrap();
        let region = Inflight::create(2, N).unwrap().inflight.queue(1).unwrap();
        Self { driver, region, posted: 0, answered: Vec::new() }
    }

    fn setup(&self) -> QueueSetup {
        // What a frontend says after a crash is of no use: 4711.
        QueueSetup { inflight: Some(self.region.clone()), ..self.driver.setup(1, 4711).unwrap() }
    }

    fn place(head: u16) -> u64 {
        DATA + u64::from(head) * 64
    }

    fn post(&mut self, count: u32) {
        for _ in 0..count {
            // One descriptor each, whose buffer is its number's place.
            let head = self.driver.add(&[Buf::readable(0, 4)]).unwrap();
            let place = Self::place(head);
            self.driver.memory().write_obj(self.driver.addresses()[0] + u64::from(head) * 16, place).unwrap();
            self.driver.memory().write_obj(place, self.posted).unwrap();
            self.posted += 1;
        }
        self.driver.publish();
    }

    /// The driver takes what it sees.
    fn collect(&mut self) {
        while let Some((head, len)) = self.driver.poll() {
            let number = self.driver.memory().read_obj::<u32>(Self::place(head)).unwrap();
            assert_eq!(len, number + 1, "the answer of another request");
            self.answered.push(number);
        }
    }
}

/// Takes the next request: its head and number.
fn pop(queue: &mut Queue) -> Option<(u16, u32)> {
    let mut chain = Chain::new();
    match queue.pop(&mut chain).unwrap() {
        Popped::Empty => None,
        Popped::Chain => {
            let mut number = [0; 4];
            chain.copy_out(0, &mut number).unwrap();
            Some((chain.head(), u32::from_le_bytes(number)))
        }
        Popped::Malformed { why, .. } => panic!("{why}"),
    }
}

fn push(queue: &mut Queue, (head, number): (u16, u32)) {
    assert!(queue.push(head, number + 1));
}

/// A life of a backend: takes, answers out of order and in batches, puts one back.
fn serve(bench: &mut Bench) {
    let mut queue = Queue::new(&bench.setup()).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).take(5).collect();
    for at in [3, 1] {
        if let Some(request) = taken.get(at) {
            push(&mut queue, *request);
        }
    }
    queue.publish();
    bench.collect();
    let mut chain = Chain::new();
    if let Ok(Popped::Chain) = queue.pop(&mut chain) {
        queue.unpop(&chain);
    }
    for at in [0, 4, 2] {
        if let Some(request) = taken.get(at) {
            push(&mut queue, *request);
        }
    }
    queue.publish();
    while let Some(request) = pop(&mut queue) {
        push(&mut queue, request);
        queue.publish();
    }
}

#[test]
fn no_crash_loses_or_repeats_an_answer() {
    let mut crashes = 0;
    for first in 0.. {
        let mut whole = true;
        // A second backend that crashes too, at every store of its own; a third that lives.
        for second in 0.. {
            let mut bench = Bench::new();
            bench.post(7);
            let lived = crash_before(first, || serve(&mut bench)).is_some();
            whole &= lived;
            bench.collect();
            bench.post(bench.driver.free().into());
            let lived = crash_before(second, || serve(&mut bench)).is_some();
            crashes += u32::from(!lived);
            bench.collect();
            let mut queue = Queue::new(&bench.setup()).unwrap();
            let mut left: Vec<u32> = Vec::new();
            while let Some(request) = pop(&mut queue) {
                assert!(!bench.answered.contains(&request.1), "{first}, {second}: answered already");
                left.push(request.1);
                push(&mut queue, request);
            }
            queue.publish();
            bench.collect();
            bench.answered.sort_unstable();
            let all: Vec<u32> = (0..bench.posted).collect();
            assert_eq!(bench.answered, all, "crashes before stores {first} and {second}");
            assert!((0..N).all(|head| !bench.region.is_marked(head)));
            if lived {
                break;
            }
        }
        if whole {
            break;
        }
    }
    assert!(crashes > 1000, "{crashes}: the hook does not see the stores");
}

#[test]
fn what_was_in_flight_comes_first_and_in_order() {
    let mut bench = Bench::new();
    bench.post(6);
    let mut queue = Queue::new(&bench.setup()).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).take(4).collect();
    push(&mut queue, *taken.get(1).unwrap());
    queue.publish();
    // Pushed and never shown: still in flight.
    push(&mut queue, *taken.get(2).unwrap());
    drop(queue);
    let mut queue = Queue::new(&bench.setup()).unwrap();
    assert!(queue.has_work());
    assert!(queue.arm_kicks());
    assert_eq!(queue.base(), 4);
    let mut chain = Chain::new();
    assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)));
    assert!(chain.is_resubmitted());
    queue.unpop(&chain);
    let numbers: Vec<u32> = std::iter::from_fn(|| pop(&mut queue)).map(|(_, number)| number).collect();
    assert_eq!(numbers, [0, 2, 3, 4, 5]);
}

#[test]
fn counters_go_on_after_a_restart() {
    let mut bench = Bench::new();
    bench.post(2);
    let mut queue = Queue::new(&bench.setup()).unwrap();
    let first = pop(&mut queue).unwrap();
    pop(&mut queue).unwrap();
    drop(queue);
    let mut queue = Queue::new(&bench.setup()).unwrap();
    assert_eq!(pop(&mut queue), Some(first));
    push(&mut queue, first);
    queue.publish();
    bench.collect();
    bench.post(1);
    pop(&mut queue).unwrap();
    assert_eq!(pop(&mut queue).unwrap().1, 2);
    drop(queue);
    let mut queue = Queue::new(&bench.setup()).unwrap();
    let numbers: Vec<u32> = std::iter::from_fn(|| pop(&mut queue)).map(|(_, number)| number).collect();
    assert_eq!(numbers, [1, 2], "the older one first, whatever its head");
}

#[test]
fn regions_of_other_shapes_are_refused() {
    type Case = (&'static str, u64, u64, u16, u16, fn(&InflightError) -> bool);
    let created = Inflight::create(2, 128).unwrap();
    let len = created.inflight.len();
    // 16 + 128 * 16 rounded up to 64, twice.
    assert_eq!(len, 2 * 2112);
    let cases: [Case; 8] = [
        ("no queues", len, 0, 0, 128, |e| matches!(e, InflightError::Shape { queues: 0, .. })),
        ("no descriptors", len, 0, 2, 0, |e| matches!(e, InflightError::Shape { size: 0, .. })),
        ("too many queues", len, 0, 257, 1, |e| matches!(e, InflightError::Shape { queues: 257, .. })),
        ("too many descriptors", len, 0, 1, 32769, |e| matches!(e, InflightError::Shape { .. })),
        ("said too short", len - 1, 0, 2, 128, |e| matches!(e, InflightError::TooSmall { .. })),
        ("is too short", u64::MAX, 0, 3, 128, |e| matches!(e, InflightError::TooSmall { have: 4224, .. })),
        ("shifted", len, 64, 1, 1, |e| matches!(e, InflightError::Misaligned { offset: 64 })),
        ("offset beyond", len, 0x10_0000, 1, 1, |e| matches!(e, InflightError::TooSmall { have: 0, .. })),
    ];
    for (name, len, offset, queues, size, expected) in cases {
        let error = Inflight::map(created.fd.as_fd(), len, offset, queues, size).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
    }
    let pipe = nix::unistd::pipe().unwrap().0;
    assert!(matches!(Inflight::map(pipe.as_fd(), len, 0, 2, 128), Err(InflightError::NotAFile)));
    assert!(created.inflight.queue(2).is_none());
    // The file cannot be cut under a mapping.
    assert_eq!(nix::unistd::ftruncate(&created.fd, 0), Err(nix::Error::EPERM));
}

#[test]
fn a_region_full_of_nonsense_is_harmless() {
    let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
    for version in [0u16, 1, 2] {
        let created = Inflight::create(1, N).unwrap();
        let file = std::fs::File::from(created.fd);
        let nonsense = [0xff; 192];
        let mut bytes = nonsense.get(..created.inflight.len() as usize).unwrap().to_vec();
        bytes.splice(8..10, version.to_ne_bytes());
        std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).unwrap();
        let mut driver = DriverQueue::new(&memory, 0x1000, N, RING_FEATURES).unwrap();
        driver.add(&[Buf::readable(DATA, 4)]).unwrap();
        driver.publish();
        let mut setup = driver.setup(0, 0).unwrap();
        setup.inflight = created.inflight.queue(0);
        let queue = Queue::new(&setup);
        if version == 2 {
            assert!(matches!(queue, Err(crate::queue::RingError::Inflight(InflightError::Version(2)))));
            continue;
        }
        // All eight marked: each is taken once, whatever its descriptor says, and the ring then makes no sense.
        let mut queue = queue.unwrap();
        let mut chain = Chain::new();
        for _ in 0..N {
            assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain | Popped::Malformed { .. })));
        }
        assert!(queue.pop(&mut chain).is_err());
    }
}

#[test]
fn a_queue_larger_than_its_region_is_refused() {
    let bench = Bench::new();
    let mut setup = bench.setup();
    setup.inflight = Inflight::create(1, N / 2).unwrap().inflight.queue(0);
    let error = Queue::new(&setup).unwrap_err();
    let crate::queue::RingError::Inflight(why) = error else { panic!("{error}") };
    assert!(matches!(why, InflightError::QueueSize { have: 4, need: 8 }));
}
