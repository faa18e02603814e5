use super::*;
use std::sync::atomic::AtomicBool;

#[test]
fn the_gate_waits_for_what_passes_and_lets_nothing_pass_meanwhile() {
    let gate = Gate::new(2);
    let (alone, stop, passed) = (AtomicBool::new(false), AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for queue in 0..2u16 {
            let (gate, alone, stop, passed) = (&gate, &alone, &stop, &passed);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                    if gate.enter(queue) {
                        assert!(!alone.load(Ordering::SeqCst), "passed a closed gate");
                        passed.fetch_add(1, Ordering::Relaxed);
                        gate.leave(queue);
                    }
                }
            });
        }
        for _ in 0..20 {
            gate.while_closed(|| {
                alone.store(true, Ordering::SeqCst);
                std::thread::yield_now();
                alone.store(false, Ordering::SeqCst);
            });
        }
        // Open again: both go on.
        let before = passed.load(Ordering::Relaxed);
        while passed.load(Ordering::Relaxed) == before {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
}
