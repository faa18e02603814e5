use super::*;

/// Asks for requests of `bytes` as fast as they are let pass, for a while of made-up time; how many passed.
fn pass(limiter: &Limiter, bytes: u64, from: u64, seconds: u64) -> u64 {
    let (mut now, mut passed) = (from, 0);
    while now < from + seconds * SECOND {
        match limiter.admit_at(now, bytes) {
            Ok(()) => passed += 1,
            Err(at) => {
                let at = u64::try_from((at - limiter.begun).as_nanos()).unwrap();
                assert!(at > now, "no progress");
                now = at;
            }
        }
    }
    passed
}

#[test]
fn no_limit_is_no_limit() {
    let limiter = Limiter::default();
    assert!((0..1_000_000).all(|_| limiter.admit(1 << 30).is_ok()));
}

#[test]
fn requests_per_second_with_a_burst() {
    let limiter = Limiter::default();
    limiter.set(&Rates { iops: 1000, iops_burst: 50, ..Rates::default() });
    let passed = pass(&limiter, 4096, SECOND, 10);
    assert!((10_000..=10_055).contains(&passed), "{passed}");
    // The burst comes back after a pause.
    let burst = (0..1000).take_while(|_| limiter.admit_at(30 * SECOND, 4096).is_ok()).count();
    assert!((50..=51).contains(&burst), "{burst}");
}

#[test]
fn bytes_per_second_whatever_the_size() {
    for bytes in [512, 4096, 1 << 20, 16 << 20] {
        let limiter = Limiter::default();
        limiter.set(&Rates { bytes_per_second: 10 << 20, bytes_burst: 1 << 20, ..Rates::default() });
        let transferred = pass(&limiter, bytes, SECOND, 100) * bytes;
        let wanted = 1000u64 << 20; // less what rounding costs
        // One request may go into debt.
        assert!(
            transferred >= wanted - wanted / 1000 && transferred <= wanted + (1 << 20) + bytes,
            "{bytes}: {transferred}"
        );
    }
}

#[test]
fn a_request_refused_for_its_bytes_costs_no_request() {
    let limiter = Limiter::default();
    limiter.set(&Rates { iops: 10, iops_burst: 10, bytes_per_second: 1000, bytes_burst: 1000 });
    assert!(limiter.admit_at(SECOND, 100_000).is_ok());
    for _ in 0..100 {
        assert!(limiter.admit_at(SECOND + 1, 1).is_err());
    }
    assert!(limiter.requests.paid_at.load(Ordering::Relaxed) <= SECOND + SECOND / 10);
}

#[test]
fn limits_change_at_once() {
    let limiter = Limiter::default();
    limiter.set(&Rates { iops: 1, ..Rates::default() });
    assert!(limiter.admit_at(SECOND, 0).is_ok());
    assert!(limiter.admit_at(SECOND, 0).is_err());
    limiter.set(&Rates { iops: 1_000_000, ..Rates::default() });
    assert!(pass(&limiter, 0, SECOND + 1, 1) >= 1_000_000);
    limiter.set(&Rates::default());
    assert_eq!(limiter.rates(), Rates::default());
    assert!(limiter.admit(u64::MAX).is_ok());
}

/// So that a machine file that is read again lets nothing pass that the limits keep back.
#[test]
fn a_limit_set_to_what_it_is_keeps_its_debts() {
    let limiter = Limiter::default();
    let rates = Rates { iops: 10, bytes_per_second: 1000, ..Rates::default() };
    limiter.set(&rates);
    assert!(limiter.admit_at(SECOND, 100_000).is_ok());
    // With the burst left out, as it was given, and with the one that follows, as it is shown.
    for same in [rates, limiter.rates()] {
        limiter.set(&same);
        assert!(limiter.admit_at(SECOND, 1).is_err());
    }
    // The other limit's own affair.
    limiter.set(&Rates { iops: 20, ..rates });
    assert!(limiter.admit_at(SECOND, 1).is_err());
    limiter.set(&Rates { bytes_per_second: 2000, ..rates });
    assert!(limiter.admit_at(SECOND, 1).is_ok());
}

#[test]
fn queues_share_a_limit() {
    let limiter = Limiter::default();
    limiter.set(&Rates { iops: 1000, iops_burst: 10, ..Rates::default() });
    let passed: usize = std::thread::scope(|scope| {
        let ask = || (0..10_000).filter(|_| limiter.admit_at(SECOND, 1).is_ok()).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!((10..=11).contains(&passed), "{passed}");
}
