//! What a ring costs: nanoseconds of the device's side per request, beside the `virtio-queue` crate, and round
//! trips through a worker's thread. `cargo bench -p strata-virtio --features driver`.

#![allow(clippy::unwrap_used)] // a bench ends at the first surprise

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_virtio::chain::Chain;
use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::poller::PollLimit;
use strata_virtio::queue::{Popped, Queue};
use strata_virtio::spec::RING_FEATURES;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Options, Progress, Service, Source, Worker};
use virtio_queue::{Queue as Other, QueueT};

const SIZE: u16 = 256;
const DATA: u64 = 0x10_0000;

fn guest() -> (Arc<Memory>, DriverQueue) {
    let memory = Arc::new(Memory::anonymous(0x40_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0x1_0000, SIZE, RING_FEATURES).unwrap();
    (memory, driver)
}

/// A block request's three buffers, direct or behind a table.
fn post(driver: &mut DriverQueue, number: u64, indirect: bool) -> bool {
    let place = DATA + number % 64 * 0x2000;
    let bufs = [Buf::readable(place, 16), Buf::writable(place + 0x1000, 4096), Buf::writable(place + 16, 1)];
    if indirect {
        driver.add_indirect(0x8_0000 + number % 256 * 64, &bufs).unwrap().is_some()
    } else {
        driver.add(&bufs).is_some()
    }
}

/// Nanoseconds per request of `serve`, which is to answer `batch` requests.
fn measure(name: &str, batch: u64, indirect: bool, mut serve: impl FnMut(), driver: &mut DriverQueue) {
    let (mut spent, mut count) = (Duration::ZERO, 0);
    let mut best = f64::MAX;
    while count < 2_000_000 {
        for i in 0..batch {
            assert!(post(driver, i, indirect));
        }
        driver.publish();
        let start = Instant::now();
        serve();
        let took = start.elapsed();
        best = best.min(took.as_nanos() as f64 / batch as f64);
        spent += took;
        for _ in 0..batch {
            driver.poll().unwrap();
        }
        count += batch;
    }
    println!(
        "{name:34} batch {batch:3}: {:6.1} ns per request, best {best:.1}",
        spent.as_nanos() as f64 / count as f64
    );
}

fn ours(batch: u64, indirect: bool) {
    let (_memory, mut driver) = guest();
    let mut queue = Queue::new(&driver.setup(0, 0).unwrap()).unwrap();
    let mut chain = Chain::new();
    let serve = || {
        while let Popped::Chain = queue.pop(&mut chain).unwrap() {
            black_box((chain.readable(), chain.writable()));
            queue.push(chain.head(), 1);
        }
        black_box(queue.publish());
    };
    measure(if indirect { "ours, indirect" } else { "ours" }, batch, indirect, serve, &mut driver);
}

fn theirs(batch: u64, indirect: bool) {
    use vm_memory::{GuestAddress, GuestMemoryBackend};
    let (memory, mut driver) = guest();
    let mut queue = Other::new(SIZE).unwrap();
    let [desc, avail, used] = driver.addresses().map(|at| Some(at as u32));
    queue.set_size(SIZE);
    queue.set_desc_table_address(desc, Some(0));
    queue.set_avail_ring_address(avail, Some(0));
    queue.set_used_ring_address(used, Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    let serve = || {
        while let Some(chain) = queue.pop_descriptor_chain(&*memory) {
            let head = chain.head_index();
            for desc in chain {
                let at = GuestAddress(desc.addr().0);
                black_box(GuestMemoryBackend::get_slice(&*memory, at, desc.len() as usize).unwrap());
            }
            queue.add_used(&*memory, head, 1).unwrap();
        }
        black_box(queue.needs_notification(&*memory).unwrap());
    };
    let name = if indirect { "virtio-queue, indirect" } else { "virtio-queue" };
    measure(name, batch, indirect, serve, &mut driver);
}

struct Echo(Vring, Chain);

impl Service for Echo {
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

/// Round trips with a driver that polls for its answers (as a vCPU that goes on with something else would take
/// them at its next interrupt) or sleeps for them.
fn round_trips(depth: u64, poll: u64, sleep: bool) {
    let (_memory, mut driver) = guest();
    let vring = Vring::new(driver.setup(0, 0).unwrap()).unwrap();
    let stats = Arc::clone(vring.stats());
    let poll = PollLimit(Duration::from_micros(poll));
    let worker = Worker::spawn(Echo(vring, Chain::new()), Options { poll, ..Options::default() }).unwrap();
    let (cpu, start) = (process_cpu(), Instant::now());
    let (mut sent, mut got) = (0, 0);
    while start.elapsed() < Duration::from_secs(1) {
        while sent - got < depth {
            assert!(post(&mut driver, sent, false));
            sent += 1;
        }
        driver.kick();
        if sleep {
            driver.wait(Duration::from_secs(5)).unwrap();
            got += 1;
        }
        while driver.poll().is_some() {
            got += 1;
        }
        if !sleep {
            std::hint::spin_loop();
        }
    }
    let (took, cpu) = (start.elapsed(), process_cpu() - cpu);
    println!(
        "round trips, depth {depth:2}, poll {:2} us, driver {}: {:8.0} per s, {:5.2} us of processor each, {:.3} kicks, {:.3} calls",
        poll.0.as_micros(),
        if sleep { "sleeps" } else { "polls " },
        got as f64 / took.as_secs_f64(),
        cpu.as_secs_f64() * 1e6 / got as f64,
        stats.kicks.get() as f64 / got as f64,
        stats.calls.get() as f64 / got as f64,
    );
    drop(worker);
}

fn process_cpu() -> Duration {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap();
    Duration::from(now)
}

fn main() {
    for batch in [1, 32] {
        for indirect in [false, true] {
            ours(batch, indirect);
            theirs(batch, indirect);
        }
    }
    for sleep in [true, false] {
        for depth in [1, 32] {
            for poll in [0, 50] {
                round_trips(depth, poll, sleep);
            }
        }
    }
}
