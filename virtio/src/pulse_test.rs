use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{Seen, Watch, cpu_of, feed, thread_id};
use crate::worker::WorkerStats;

const SINCE: Duration = Duration::from_millis(200);

#[test]
fn only_the_same_round_with_the_processor_in_it_is_a_hang() {
    let was = Seen { thread: 7, rounds: 3, cpu: Duration::from_secs(1) };
    let burned = |ms| Seen { cpu: was.cpu + Duration::from_millis(ms), ..was };
    assert!(was.hangs_in(burned(150), SINCE));
    // Waiting in the kernel, or for a processor.
    assert!(!was.hangs_in(burned(0), SINCE) && !was.hangs_in(burned(99), SINCE));
    assert!(!was.hangs_in(Seen { rounds: 4, ..burned(150) }, SINCE));
    assert!(!was.hangs_in(Seen { thread: 8, ..burned(150) }, SINCE));
}

#[test]
fn a_threads_clock_is_its_own() {
    assert!(cpu_of(thread_id()).is_some());
    assert_eq!(cpu_of(0), None);
    // A thread of nobody, or of another process.
    assert_eq!(cpu_of(1), None);
}

/// A thread that burns a processor, with or without coming round, until it is told to end.
fn burning(rounds: bool, test: impl FnOnce(&Arc<WorkerStats>)) {
    let (stats, stop) = (Arc::new(WorkerStats::default()), AtomicBool::new(false));
    let started = channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            stats.pulse.wakes(thread_id());
            started.0.send(()).unwrap();
            while !stop.load(Ordering::Relaxed) {
                if rounds {
                    stats.pulse.round();
                }
            }
            stats.pulse.rests();
        });
        started.1.recv().unwrap();
        test(&stats);
        stop.store(true, Ordering::Relaxed);
    });
}

/// Looks once when the thread has burned so much, whatever else the host does meanwhile.
fn looked_at(stats: &Arc<WorkerStats>) -> bool {
    let thread = stats.pulse.awake.load(Ordering::Relaxed);
    let mut watch = Watch::new(0, vec![Arc::clone(stats)]);
    assert!(watch.is_well(Duration::ZERO), "nothing is known at the first look");
    let begun = cpu_of(thread).unwrap();
    while cpu_of(thread).unwrap() - begun < SINCE {
        std::thread::sleep(Duration::from_millis(5));
    }
    watch.is_well(SINCE)
}

#[test]
fn a_thread_that_burns_and_does_not_come_round_is_seen() {
    burning(false, |stats| assert!(!looked_at(stats)));
    burning(true, |stats| assert!(looked_at(stats)));
    // Asleep, the same thread is nobody's concern.
    burning(false, |stats| {
        let mut watch = Watch::new(0, vec![Arc::clone(stats)]);
        watch.is_well(Duration::ZERO);
        stats.pulse.rests();
        std::thread::sleep(Duration::from_millis(20));
        assert!(watch.is_well(Duration::ZERO));
    });
}

#[test]
fn a_process_that_is_well_says_so_again_and_again() {
    let (sender, fed) = channel();
    let begun = Instant::now();
    feed(Duration::from_millis(10), vec![Arc::default()], move || {
        let _ = sender.send(());
    })
    .unwrap();
    for _ in 0..5 {
        fed.recv_timeout(Duration::from_secs(20)).unwrap();
    }
    assert!(begun.elapsed() >= Duration::from_millis(40));
}
