use super::super::vitals::Thread;
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn look(threads: &[(char, u64, u64)], answer: Option<u64>, waited: u64) -> Look {
    let thread =
        |&(state, ticks, switches): &(char, u64, u64)| Thread { state, ticks, switches, kernel: false };
    Look {
        threads: (1..).zip(threads.iter().map(thread)).collect(),
        answer,
        waited: Duration::from_secs(waited),
    }
}

fn between(before: Look, now: Look) -> Sign {
    sign(&before, &now, SECOND)
}

#[test]
fn stopped_processes_hang_whether_or_not_somebody_waits() {
    let stopped = || look(&[('T', 5, 9), ('T', 1, 1)], None, 0);
    assert_eq!(between(stopped(), stopped()), Sign::Stopped);
    // Continued and stopped again between two looks.
    let again = look(&[('T', 5, 10), ('T', 1, 1)], None, 0);
    assert_eq!(between(stopped(), again), Sign::Lives);
    // Stopped just now, or continued meanwhile, or in a debugger.
    assert_eq!(between(look(&[('S', 5, 9)], None, 9), look(&[('T', 5, 9)], None, 9)), Sign::Lives);
    assert_eq!(between(stopped(), look(&[('S', 5, 9), ('S', 1, 1)], None, 0)), Sign::Lives);
    assert_eq!(between(look(&[('t', 5, 9)], None, 9), look(&[('t', 5, 9)], None, 9)), Sign::Lives);
}

#[test]
fn nobody_waits_so_nothing_hangs() {
    let idle = |waited| look(&[('S', 5, 9)], None, waited);
    assert_eq!(between(idle(0), idle(0)), Sign::Lives);
    assert_eq!(between(idle(0), idle(1)), Sign::Sleeps);
}

#[test]
fn slow_storage_is_no_hang() {
    // In the kernel, whatever else there is.
    let in_kernel = || look(&[('S', 5, 9), ('D', 1, 1)], None, 30);
    assert_eq!(between(in_kernel(), in_kernel()), Sign::Waits);
    // Asleep on io_uring, but woken by the doorbell the vmm rings.
    let woken = |switches| look(&[('S', 5, switches)], None, 30);
    assert_eq!(between(woken(9), woken(10)), Sign::Lives);
    // The control socket says that the queue's thread turned.
    assert_eq!(between(look(&[('S', 5, 9)], Some(4), 30), look(&[('S', 5, 9)], Some(5), 30)), Sign::Lives);
}

#[test]
fn a_busy_host_is_no_hang() {
    let runnable = |ticks| look(&[('R', ticks, 9)], None, 30);
    assert_eq!(between(runnable(5), runnable(5)), Sign::Waits);
    assert_eq!(between(runnable(5), runnable(54)), Sign::Waits);
    assert_eq!(between(runnable(5), runnable(55)), Sign::Spins);
}

#[test]
fn a_deadlock_is_seen_with_and_without_the_control_socket() {
    assert_eq!(between(look(&[('S', 5, 9)], None, 3), look(&[('S', 5, 9)], None, 4)), Sign::Sleeps);
    // The control thread moves because it answers; the queue's counters stand.
    let locked = |switches| look(&[('S', 5, 9), ('S', 1, switches)], Some(7), 3);
    assert_eq!(between(locked(1), locked(2)), Sign::Sleeps);
    // A queue that goes in circles beside a control socket that answers.
    let circles = |ticks| look(&[('R', ticks, 9), ('S', 1, 1)], Some(7), 3);
    assert_eq!(between(circles(0), circles(99)), Sign::Spins);
}

#[test]
fn a_hang_takes_both_looks_and_time() {
    let mut pulse = Pulse::default();
    let take = |pulse: &mut Pulse, sign| pulse.take(sign, SECOND, 6 * SECOND);
    for _ in 0..5 {
        assert!(!take(&mut pulse, Sign::Stopped));
    }
    assert!(take(&mut pulse, Sign::Stopped));
    assert!(!take(&mut pulse, Sign::Waits));
    for _ in 0..5 {
        assert!(!take(&mut pulse, Sign::Sleeps));
    }
    assert!(!take(&mut pulse, Sign::Lives));
    assert!(!pulse.take(Sign::Spins, 10 * SECOND, SECOND));
}
