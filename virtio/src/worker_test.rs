use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::*;
use crate::chain::Chain;
use crate::driver::{Buf, DriverQueue};
use crate::memory::Memory;
use crate::spec::{F_VERSION_1, RING_FEATURES};

const DATA: u64 = 0x10_0000;
const LONG: Duration = Duration::from_secs(60);

/// Answers every request with its readable bytes, in the writable ones. Those whose first byte is 0xff are
/// answered only when the test says so: asynchronous requests, waited for through an eventfd.
struct Echo {
    vrings: Vec<Vring>,
    chain: Chain,
    held: Vec<(usize, u16)>,
    done: Receiver<()>,
    wake: Arc<OwnedFd>,
}

impl Echo {
    fn answer(&mut self, at: usize) {
        let mut bytes = vec![0; self.chain.readable_len()];
        self.chain.copy_out(0, &mut bytes).unwrap();
        if bytes.first() == Some(&0xff) {
            self.held.push((at, self.chain.head()));
            return;
        }
        self.chain.copy_in(0, &bytes).unwrap();
        self.vrings[at].push(self.chain.head(), bytes.len() as u32);
    }

    fn finish(&mut self) -> bool {
        let mut any = false;
        while !self.held.is_empty() && self.done.try_recv().is_ok() {
            let (at, head) = self.held.remove(0);
            self.vrings[at].push(head, 1);
            any = true;
        }
        any
    }
}

impl Service for Echo {
    fn process(&mut self) -> Progress {
        let mut worked = self.finish();
        for at in 0..self.vrings.len() {
            for _ in 0..self.vrings[at].queue().size() {
                if !self.vrings[at].next(&mut self.chain) {
                    break;
                }
                self.answer(at);
                worked = true;
            }
            worked |= self.vrings[at].flush();
        }
        if worked { Progress::Worked } else { Progress::Idle }
    }

    fn has_work(&mut self) -> bool {
        self.vrings.iter().any(|vring| vring.queue().has_work())
    }

    fn suppress_kicks(&mut self) {
        self.vrings.iter_mut().for_each(|vring| vring.queue_mut().suppress_kicks());
    }

    fn prepare_sleep(&mut self) -> bool {
        self.vrings.iter_mut().fold(false, |work, vring| vring.queue_mut().arm_kicks() | work)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let kicks = self.vrings.iter().map(Source::kick);
        // Both ways to be watched are tried, by tests of one queue and of several.
        let wake = match self.vrings.len() {
            1 => Source::readable_lazily(self.wake.as_fd()),
            _ => Source::readable(self.wake.as_fd()),
        };
        kicks.chain([wake]).collect()
    }

    fn drain(&mut self) {
        while !self.held.is_empty() {
            self.done.recv().unwrap();
            let (at, head) = self.held.remove(0);
            self.vrings[at].push(head, 1);
        }
        for vring in &mut self.vrings {
            vring.flush();
        }
    }
}

struct Rig {
    drivers: Vec<DriverQueue>,
    worker: Worker<Echo>,
    finish: Sender<()>,
    wake: Arc<OwnedFd>,
    stats: Vec<Arc<QueueStats>>,
}

fn rig(queues: u16, features: u64, poll: u64, with_kick: bool) -> Rig {
    let memory = Arc::new(Memory::anonymous(0x20_0000).unwrap());
    let drivers: Vec<DriverQueue> = (0..queues)
        .map(|at| DriverQueue::new(&memory, 0x1_0000 * u64::from(at), 128, features).unwrap())
        .collect();
    let vrings: Vec<Vring> = (0..queues)
        .zip(&drivers)
        .map(|(at, driver)| {
            let mut setup = driver.setup(at, 0).unwrap();
            setup.kick = setup.kick.filter(|_| with_kick);
            Vring::new(setup).unwrap()
        })
        .collect();
    let (finish, done) = channel();
    let wake: Arc<OwnedFd> = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into());
    let stats = vrings.iter().map(|vring| Arc::clone(vring.stats())).collect();
    let echo = Echo { vrings, chain: Chain::new(), held: Vec::new(), done, wake: Arc::clone(&wake) };
    let poll = PollLimit(Duration::from_micros(poll));
    let worker = Worker::spawn(echo, Options { name: "echo".into(), poll, ..Options::default() }).unwrap();
    Rig { drivers, worker, finish, wake, stats }
}

fn post(driver: &mut DriverQueue, number: u32) -> Option<u16> {
    let place = DATA + u64::from(number % 1024) * 32;
    driver.memory().write_obj(place, number & 0x7fff_ff7f).unwrap();
    driver.add(&[Buf::readable(place, 4), Buf::writable(place + 16, 4)])
}

/// Sends `count` requests, `depth` at a time, asleep whenever it can be.
fn run(driver: &mut DriverQueue, count: u32, depth: u32) {
    let (mut sent, mut got) = (0, 0);
    while got < count {
        while sent < count && sent - got < depth && post(driver, sent).is_some() {
            sent += 1;
        }
        driver.kick();
        let (_, len) = driver.wait(LONG).expect("a wake-up was lost");
        assert_eq!(len, 4);
        got += 1;
        while driver.poll().is_some() {
            got += 1;
        }
    }
}

#[test]
fn every_request_is_answered_however_both_sides_wait() {
    for features in [RING_FEATURES, F_VERSION_1] {
        for poll in [0, 50] {
            for depth in [1, 3, 32] {
                let mut rig = rig(1, features, poll, true);
                run(&mut rig.drivers[0], 20_000, depth);
                let echo = rig.worker.stop().unwrap();
                assert_eq!(echo.vrings[0].state().base, 20_000);
                assert_eq!(rig.stats[0].requests.get(), 20_000);
                assert!(rig.stats[0].calls.get() <= rig.stats[0].batches.get());
            }
        }
    }
}

#[test]
fn one_worker_serves_several_queues() {
    let mut rig = rig(3, RING_FEATURES, 20, true);
    std::thread::scope(|scope| {
        for driver in &mut rig.drivers {
            scope.spawn(|| run(driver, 5_000, 4));
        }
    });
    let echo = rig.worker.stop().unwrap();
    assert!(echo.vrings.iter().all(|vring| vring.state().base == 5_000));
}

#[test]
fn a_ring_without_a_kick_is_polled() {
    let mut rig = rig(1, RING_FEATURES, 0, false);
    run(&mut rig.drivers[0], 50, 1);
}

#[test]
fn stopping_completes_what_was_taken_and_nothing_else() {
    let mut rig = rig(1, RING_FEATURES, 0, true);
    let driver = &mut rig.drivers[0];
    driver.memory().write_obj(DATA, 0xffu8).unwrap();
    for _ in 0..3 {
        driver.add(&[Buf::readable(DATA, 1), Buf::writable(DATA + 16, 1)]).unwrap();
    }
    driver.kick();
    // All three are taken and wait for their completion.
    while rig.stats[0].requests.get() < 3 {
        std::thread::yield_now();
    }
    assert_eq!(driver.poll(), None);
    rig.finish.send(()).unwrap();
    signal(&rig.wake);
    assert_eq!(driver.wait(LONG), Some((0, 1)), "woken by its own source");
    for _ in 0..2 {
        rig.finish.send(()).unwrap();
    }
    let echo = rig.worker.stop().unwrap();
    assert_eq!(echo.vrings[0].state().base, 3);
    assert_eq!(echo.vrings[0].queue().in_flight(), 0);
    assert_eq!(driver.poll().map(|(_, len)| len), Some(1));
    assert_eq!(driver.poll().map(|(_, len)| len), Some(1));
    // Nobody serves any more.
    driver.add(&[Buf::readable(DATA + 1, 1), Buf::writable(DATA + 16, 1)]).unwrap();
    driver.kick();
    assert_eq!(driver.poll(), None);
}

/// A source that is not watched while the worker is busy still ends the sleep that follows, whenever it was
/// signalled.
#[test]
fn a_lazy_source_is_not_missed() {
    let mut rig = rig(1, RING_FEATURES, 0, true);
    let driver = &mut rig.drivers[0];
    for round in 0..2_000u32 {
        driver.memory().write_obj(DATA, 0xffu8).unwrap();
        let head = driver.add(&[Buf::readable(DATA, 1), Buf::writable(DATA + 16, 1)]).unwrap();
        driver.kick();
        // Before, while, or after it goes to sleep.
        for _ in 0..round % 97 * 8 {
            std::hint::spin_loop();
        }
        rig.finish.send(()).unwrap();
        signal(&rig.wake);
        assert_eq!(driver.wait(LONG), Some((head, 1)), "round {round}");
    }
}

#[test]
fn a_stop_ends_a_sleep_and_a_flood() {
    let idle = rig(1, RING_FEATURES, 0, true);
    while idle.worker.stats().sleeps.get() == 0 {
        std::thread::yield_now();
    }
    assert!(idle.worker.stop().is_some());

    let mut flooded = rig(1, RING_FEATURES, 50, true);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (driver, stop_it) = (&mut flooded.drivers[0], &stop);
        scope.spawn(move || {
            while !stop_it.load(Ordering::Relaxed) {
                while post(driver, 1).is_some() {}
                driver.kick();
                while driver.poll().is_some() {}
            }
        });
        while flooded.stats[0].requests.get() < 1000 {
            std::thread::yield_now();
        }
        assert!(flooded.worker.stop().is_some());
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_broken_ring_leaves_the_others_alone_and_nothing_spins() {
    let mut rig = rig(2, RING_FEATURES, 50, true);
    let [broken, fine] = &mut rig.drivers[..] else { panic!() };
    post(broken, 1);
    broken.memory().write_obj(broken.addresses()[1] + 2, 1000u16).unwrap();
    signal(broken.kick_fd());
    while !broken.take_error() {
        std::thread::yield_now();
    }
    run(fine, 100, 1);
    // It goes to sleep again and again instead of finding "work" in the broken ring.
    let before = rig.worker.stats().sleeps.get();
    signal(fine.kick_fd());
    while rig.worker.stats().sleeps.get() == before {
        std::thread::yield_now();
    }
}

#[test]
fn dropping_a_worker_stops_it() {
    let rig = rig(1, RING_FEATURES, 0, true);
    let weak = Arc::downgrade(&rig.stats[0]);
    drop(rig);
    assert!(weak.upgrade().is_none(), "the thread has ended and dropped its service");
}

#[test]
fn a_call_that_its_peer_has_filled_does_not_keep_a_worker_from_its_end() {
    let memory = Arc::new(Memory::anonymous(0x20_0000).unwrap());
    let mut driver = DriverQueue::new(&memory, 0, 8, RING_FEATURES).unwrap();
    // It blocks, as eventfds do unless they are told not to, and there is no room for one more.
    let call = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap();
    call.write(u64::MAX - 1).unwrap();
    let mut setup = driver.setup(0, 0).unwrap();
    setup.call = Some(call.as_fd().try_clone_to_owned().unwrap());
    let (_finish, done) = channel();
    let wake: Arc<OwnedFd> = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap().into());
    let vrings = vec![Vring::new(setup).unwrap()];
    let stats = Arc::clone(vrings[0].stats());
    let echo = Echo { vrings, chain: Chain::new(), held: Vec::new(), done, wake };
    let worker = Worker::spawn(echo, Options::default()).unwrap();
    post(&mut driver, 1);
    driver.publish();
    signal(driver.kick_fd());
    // Counted just before the write that hangs.
    while stats.calls.get() == 0 {
        std::thread::yield_now();
    }
    assert!(worker.stop().is_some());
    assert!(driver.poll().is_some(), "what was answered is shown");
}

#[test]
fn a_worker_can_be_pinned() {
    let memory = Arc::new(Memory::anonymous(0x20_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0, 8, RING_FEATURES).unwrap();
    struct Where(Vring, Sender<usize>);
    impl Service for Where {
        fn process(&mut self) -> Progress {
            let _ = self.1.send(nix::sched::sched_getcpu().unwrap());
            Progress::Idle
        }
        fn has_work(&mut self) -> bool {
            false
        }
        fn suppress_kicks(&mut self) {}
        fn prepare_sleep(&mut self) -> bool {
            false
        }
        fn sources(&self) -> Vec<Source<'_>> {
            vec![Source::kick(&self.0)]
        }
        fn drain(&mut self) {}
    }
    let (tx, rx) = channel();
    let vring = Vring::new(driver.setup(0, 0).unwrap()).unwrap();
    let allowed = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).unwrap();
    let cpu = (0..nix::sched::CpuSet::count()).rfind(|&at| allowed.is_set(at).unwrap()).unwrap();
    let options = Options { name: "pinned".into(), cpu: Some(cpu), ..Options::default() };
    let worker = Worker::spawn(Where(vring, tx), options).unwrap();
    for _ in 0..20 {
        signal(driver.kick_fd());
        assert_eq!(rx.recv_timeout(LONG).unwrap(), cpu);
    }
    drop(worker);
}

/// Serves whatever queue it is sent.
struct Open {
    echo: Echo,
    orders: Receiver<Option<Vring>>,
    back: Sender<Vring>,
}

impl Service for Open {
    fn process(&mut self) -> Progress {
        self.echo.process()
    }
    fn has_work(&mut self) -> bool {
        self.echo.has_work()
    }
    fn suppress_kicks(&mut self) {
        self.echo.suppress_kicks();
    }
    fn prepare_sleep(&mut self) -> bool {
        self.echo.prepare_sleep()
    }
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }
    fn nudged(&mut self, sources: &mut Sources<'_>) {
        while let Ok(order) = self.orders.try_recv() {
            match order {
                Some(vring) => {
                    assert!(sources.add(3, &Source::kick(&vring)).unwrap());
                    self.echo.vrings.push(vring);
                }
                None => {
                    let vring = self.echo.vrings.remove(0);
                    sources.remove(3, &Source::kick(&vring));
                    self.back.send(vring).unwrap();
                }
            }
        }
    }
    fn drain(&mut self) {}
}

/// Queues come to a running worker, wake it by their kicks, and go again, any number of times.
#[test]
fn queues_come_and_go_while_it_runs() {
    let memory = Arc::new(Memory::anonymous(4 << 20).unwrap());
    let mut driver = DriverQueue::new(&memory, 0x1000, 64, RING_FEATURES).unwrap();
    let ((orders, receiver), (back, returned)) = (channel(), channel());
    let (_, done) = channel();
    let wake = Arc::new(EventFd::new().unwrap().into());
    let echo = Echo { vrings: Vec::new(), chain: Chain::new(), held: Vec::new(), done, wake };
    let options = Options { poll: PollLimit(Duration::ZERO), ..Options::default() };
    let worker = Worker::spawn(Open { echo, orders: receiver, back }, options).unwrap();
    let nudge = worker.nudger();
    let mut base = 0;
    for round in 0..20u64 {
        orders.send(Some(Vring::new(driver.setup(0, base).unwrap()).unwrap())).unwrap();
        nudge.nudge();
        for request in 0..3 {
            let at = DATA + request * 64;
            memory.write_at(at, &round.to_le_bytes()).unwrap();
            driver.add(&[Buf::readable(at, 8), Buf::writable(at + 32, 8)]).unwrap();
            driver.kick();
            assert_eq!(driver.wait(LONG).expect("an answer").1, 8);
        }
        orders.send(None).unwrap();
        nudge.nudge();
        base = returned.recv_timeout(LONG).unwrap().state().base;
        assert_eq!(u64::from(base), 3 * (round + 1));
    }
    assert!(worker.stop().is_some());
}
