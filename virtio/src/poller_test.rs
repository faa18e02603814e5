use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::*;

const LIMIT: PollLimit = PollLimit(Duration::from_micros(50));

fn micros(n: u64) -> Duration {
    Duration::from_micros(n)
}

#[test]
fn the_window_opens_on_quick_wakes_and_is_bounded() {
    let mut poller = Poller::new(LIMIT);
    assert_eq!(poller.window(), Duration::ZERO);
    let windows: Vec<u64> = (0..6)
        .map(|_| {
            poller.idle_for(micros(20));
            poller.window().as_micros() as u64
        })
        .collect();
    assert_eq!(windows, [8, 16, 32, 50, 50, 50]);
}

#[test]
fn the_window_shrinks_on_long_gaps_and_closes_when_idle() {
    let open = || {
        let mut poller = Poller::new(LIMIT);
        (0..6).for_each(|_| poller.idle_for(micros(1)));
        poller
    };
    let mut poller = open();
    let windows: Vec<u64> = (0..4)
        .map(|_| {
            poller.idle_for(micros(200));
            poller.window().as_micros() as u64
        })
        .collect();
    assert_eq!(windows, [25, 12, 0, 0]);
    let mut poller = open();
    poller.idle_for(Duration::from_millis(10));
    assert_eq!(poller.window(), Duration::ZERO, "idleness closes it at once");
}

#[test]
fn no_limit_no_looking() {
    let mut poller = Poller::new(PollLimit(Duration::ZERO));
    (0..3).for_each(|_| poller.idle_for(Duration::ZERO));
    assert_eq!(poller.window(), Duration::ZERO);
    assert_eq!(poller.look(|| panic!("looked")), Looked::Skipped);
}

#[test]
fn looking_ends_with_work_or_with_the_window() {
    let mut poller = Poller::new(LIMIT);
    assert_eq!(poller.look(|| true), Looked::Skipped, "closed at first");
    poller.idle_for(micros(1));
    let mut looks = 0;
    assert_eq!(
        poller.look(|| {
            looks += 1;
            looks == 3
        }),
        Looked::Hit
    );
    let start = Instant::now();
    assert_ne!(poller.look(|| false), Looked::Hit);
    assert!(start.elapsed() >= micros(8) || poller.window().is_zero());
}

/// Looks on one processor together with a thread that never sleeps and moves a number all the time, until somebody
/// else was found to want the processor. `has_work` gets the number at the start of the look and now.
fn look_beside_a_spinner(has_work: impl Fn(u64, u64) -> bool + Sync) -> (Looked, Duration) {
    use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
    use nix::unistd::Pid;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap()).unwrap();
    let mut one = CpuSet::new();
    one.set(first).unwrap();
    let (stop, number) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            while !stop.load(Ordering::Relaxed) {
                number.fetch_add(1, Ordering::Relaxed);
                std::hint::spin_loop();
            }
        });
        let looker = scope.spawn(|| {
            sched_setaffinity(Pid::from_raw(0), &one).unwrap();
            let mut poller = Poller::new(PollLimit(Duration::from_millis(10)));
            let mut looked = Looked::Miss;
            for _ in 0..10_000 {
                while poller.window() < micros(8_000) {
                    poller.idle_for(micros(1));
                }
                let before = number.load(Ordering::Relaxed);
                looked = poller.look(|| has_work(before, number.load(Ordering::Relaxed)));
                if looked == Looked::Contended {
                    break;
                }
            }
            (looked, poller.window())
        });
        let seen = looker.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        seen
    })
}

/// Two threads on one processor: the one that looks gives way to the other, which a second processor makes unneeded.
#[test]
fn one_who_shares_its_processor_gives_way() {
    assert_eq!(look_beside_a_spinner(|_, _| false), (Looked::Contended, Duration::ZERO));
}

/// A driver that spins for the answer on the backend's processor gives it work in each yield, and keeps the processor to
/// the end of its slice every time. Its kick would be the quicker way.
#[test]
fn a_driver_that_spins_on_the_same_processor_is_slept_for() {
    assert_eq!(look_beside_a_spinner(|before, now| now != before), (Looked::Contended, Duration::ZERO));
}

/// Asleep for a microsecond at a time until the window opens.
fn sleeps_until_open(poller: &mut Poller) -> u32 {
    assert!(poller.window().is_zero());
    let mut sleeps = 0;
    while poller.window().is_zero() {
        poller.idle_for(micros(1));
        sleeps += 1;
    }
    sleeps
}

#[test]
fn contention_closes_the_window_for_longer_each_time() {
    let mut poller = Poller::new(LIMIT);
    let rests: Vec<u32> = (0..14)
        .map(|_| {
            poller.contended();
            sleeps_until_open(&mut poller) / 1000
        })
        .collect();
    assert_eq!(rests, [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 1000, 1000], "milliseconds");
}

#[test]
fn contention_is_forgotten_when_as_long_has_passed_without_it() {
    let mut poller = Poller::new(LIMIT);
    for _ in 0..3 {
        poller.contended();
        sleeps_until_open(&mut poller);
    }
    // 4 ms would be the next. Found by looking, and slept:
    for _ in 0..2_000 {
        assert_eq!(poller.look(|| true), Looked::Hit);
    }
    (0..40).for_each(|_| poller.idle_for(micros(50)));
    poller.contended();
    assert_eq!(sleeps_until_open(&mut poller), 2_001);
}

#[test]
fn a_written_eventfd_wakes_again_without_being_read() {
    let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    let mut wait = Wait::new().unwrap();
    wait.add(fd.as_fd(), 7).unwrap();
    let mut sleep = |limit| wait.sleep(Some(limit)).unwrap().collect::<Vec<_>>();
    assert!(sleep(Duration::ZERO).is_empty());
    for _ in 0..3 {
        fd.write(1).unwrap();
        assert_eq!(sleep(Duration::from_secs(60)), [7]);
        assert!(sleep(Duration::ZERO).is_empty(), "once per write");
    }
    wait.remove(fd.as_fd()).unwrap();
    fd.write(1).unwrap();
    assert!(wait.sleep(Some(Duration::ZERO)).unwrap().next().is_none());
}

#[test]
fn what_was_signalled_before_counts() {
    let fd = EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
    fd.write(1).unwrap();
    let mut wait = Wait::new().unwrap();
    wait.add(fd.as_fd(), 1).unwrap();
    assert_eq!(wait.sleep(Some(Duration::from_secs(60))).unwrap().collect::<Vec<_>>(), [1]);
}

#[test]
fn a_file_cannot_be_waited_for() {
    let file = tempfile::tempfile().unwrap();
    assert!(Wait::new().unwrap().add(file.as_fd(), 0).is_err());
}

#[test]
fn a_closed_window_is_tried_again_less_and_less_often() {
    let mut poller = Poller::new(LIMIT);
    let sleeps_until_try = |poller: &mut Poller| {
        let mut sleeps = 0;
        while poller.window().is_zero() {
            poller.idle_for(micros(200));
            sleeps += 1;
        }
        sleeps
    };
    assert_eq!(sleeps_until_try(&mut poller), 17);
    poller.idle_for(micros(200));
    assert!(poller.window().is_zero(), "the try found nothing");
    assert_eq!(sleeps_until_try(&mut poller), 33);
    assert_eq!(poller.look(|| true), Looked::Hit);
    poller.idle_for(micros(200));
    assert_eq!(poller.window(), micros(25), "the try found work: the window stays open and shrinks as usual");
}
