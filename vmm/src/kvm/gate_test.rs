use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread;

use super::*;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn threads_stand_run_stand_and_go_home() {
    let gate = Arc::new(Gate::new(3));
    let steps = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = (0..3)
        .map(|_| {
            let (gate, steps) = (Arc::clone(&gate), Arc::clone(&steps));
            thread::spawn(move || {
                while gate.pass() {
                    steps.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                }
            })
        })
        .collect();
    assert!(gate.wait_standing(LONG));
    assert_eq!(steps.load(Ordering::Relaxed), 0);
    for _ in 0..100 {
        let before = steps.load(Ordering::Relaxed);
        gate.open();
        while steps.load(Ordering::Relaxed) == before {
            thread::yield_now();
        }
        gate.close();
        assert!(gate.wait_standing(LONG));
        let standing = steps.load(Ordering::Relaxed);
        thread::yield_now();
        assert_eq!(steps.load(Ordering::Relaxed), standing);
    }
    gate.end();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_doomed_gate_stays_closed_but_ends() {
    let gate = Gate::new(1);
    gate.open();
    assert!(gate.pass());
    gate.doom();
    gate.open();
    assert!(gate.is_closed());
    assert!(!gate.wait_standing(Duration::from_millis(1)));
    gate.end();
    gate.open();
    assert!(!gate.pass());
    assert!(gate.wait_standing(LONG));
}

#[test]
fn a_thread_that_leaves_is_not_waited_for() {
    let gate = Gate::new(1);
    gate.leave();
    assert!(gate.wait_standing(LONG));
}
