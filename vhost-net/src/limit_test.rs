use super::*;

const MS: u64 = 1_000_000;

fn rate(bits: Option<u64>, packets: Option<u64>, burst: u64) -> Rate {
    Rate { bits, packets, burst: Duration::from_millis(burst) }
}

/// Sends frames of `bytes` whenever they may pass, for `time` milliseconds of a clock of our own; frames sent.
fn sent(limit: &Limit, bytes: usize, time: u64, step: u64) -> u64 {
    let mut sent = 0;
    for now in (0..time * MS).step_by(usize::try_from(step).unwrap()) {
        let mut allowance = limit.measured(now);
        let frames = allowance.frames(bytes).min(64);
        (0..frames).for_each(|_| allowance.take(bytes, 1));
        sent += frames as u64;
        limit.spend(now, allowance.used_bits, allowance.used_packets);
    }
    sent
}

#[test]
fn off_lets_everything_pass() {
    let limit = Limit::default();
    assert!(!limit.is_on());
    let mut allowance = limit.allowance();
    allowance.take(usize::MAX / 8, 1 << 40);
    assert!(!allowance.is_spent());
    assert_eq!(limit.wait(), Duration::ZERO);
    assert_eq!(limit.get(), Rate::default());
}

#[test]
fn the_rate_is_kept_for_bits_and_for_frames() {
    // 10 Mbit/s are 833 frames of 1500 bytes a second, and a burst of 50 ms is 42 more at the beginning.
    let limit = Limit::new(rate(Some(10_000_000), None, 50));
    let frames = sent(&limit, 1500, 1000, 100_000);
    assert!((870..880).contains(&frames), "{frames}");
    let limit = Limit::new(rate(None, Some(1000), 50));
    let frames = sent(&limit, 60, 1000, 100_000);
    assert!((1045..=1055).contains(&frames), "{frames}");
    // The lower of the two counts.
    let limit = Limit::new(rate(Some(10_000_000), Some(100), 10));
    let frames = sent(&limit, 1500, 1000, 100_000);
    assert!((100..=103).contains(&frames), "{frames}");
}

#[test]
fn a_burst_is_earned_by_a_pause_and_not_more_than_once() {
    let limit = Limit::new(rate(None, Some(1000), 100));
    assert_eq!(limit.measured(0).frames(60), 100);
    limit.spend(0, 0, 100);
    assert_eq!(limit.measured(0).frames(60), 0);
    assert_eq!(limit.measured(50 * MS).frames(60), 50);
    assert_eq!(limit.measured(100_000 * MS).frames(60), 100);
}

#[test]
fn a_frame_beyond_the_burst_passes_and_is_paid_for() {
    // 1 Mbit/s, a burst of 5 ms: 5000 bits, and a segment of 64 KiB is a hundred times as much.
    let limit = Limit::new(rate(Some(1_000_000), None, 5));
    let mut allowance = limit.measured(0);
    assert_eq!(allowance.frames(65_536), 1);
    allowance.take(65_536, 45);
    assert!(allowance.is_spent());
    limit.spend(0, allowance.used_bits, allowance.used_packets);
    assert_eq!(limit.measured(500 * MS).frames(60), 0);
    assert_eq!(limit.wait_at(0), Duration::from_nanos(524_288_000 - 5 * MS / 2));
    assert!(!limit.measured(520 * MS).is_spent());
}

#[test]
fn who_waits_as_long_as_told_may_pass() {
    let limit = Limit::new(rate(Some(1_000_000), Some(50), 5));
    for round in 0..100 {
        let now = round * 1000 * MS;
        limit.spend(now, 12_000 * (round + 1), 3);
        let wait = limit.wait_at(now).as_nanos() as u64;
        assert!(!limit.measured(now + wait).is_spent(), "round {round}");
    }
}

#[test]
fn it_can_be_changed_and_extremes_are_harmless() {
    let limit = Limit::new(rate(Some(1), Some(1), 0));
    assert_eq!(limit.get().burst, *BURSTS.start());
    limit.spend(0, u64::MAX, u64::MAX);
    limit.spend(u64::MAX / 2, u64::MAX, u64::MAX);
    assert!(limit.measured(u64::MAX / 2).is_spent());
    limit.set(rate(Some(u64::MAX), Some(u64::MAX), 1 << 40));
    assert_eq!(limit.get().burst, *BURSTS.end());
    assert!(!limit.allowance().is_spent());
    limit.set(Rate::default());
    assert!(!limit.is_on());
    let mut allowance = limit.allowance();
    allowance.take(1500, 1);
    allowance.settle(&limit);
}
