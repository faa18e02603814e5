use super::*;

#[test]
fn durations_fall_into_the_bucket_that_bounds_them() {
    let tally = Tally::default();
    for (nanoseconds, bucket) in [
        (0, 0),
        (1000, 0),
        (1001, 1),
        (2000, 1),
        (2001, 2),
        (4000, 2),
        (4001, 3),
        (1_000_000, 10),
        (u64::MAX, BUCKETS),
    ] {
        let before = tally.snapshot(0).latency_buckets[bucket];
        tally.latency.add(Duration::from_nanos(nanoseconds), 3);
        assert_eq!(tally.snapshot(0).latency_buckets[bucket], before + 3, "{nanoseconds} ns");
    }
}

#[test]
fn prometheus_text_has_each_family_once_and_sums_buckets_up() {
    let tally = Tally::default();
    tally.done(Op::Read { offset: 0 }, 4096);
    tally.done(Op::Write { offset: 0 }, 512);
    tally.latency.add(Duration::from_micros(3), 1);
    tally.latency.add(Duration::from_secs(100), 1);
    let text = prometheus("a \"b\"", &[tally.snapshot(0), Tally::default().snapshot(1)]);
    assert!(
        text.contains("strata_disk_requests_total{disk=\"a \\\"b\\\"\",queue=\"0\",op=\"read\"} 1\n"),
        "{text}"
    );
    assert!(
        text.contains("strata_disk_bytes_total{disk=\"a \\\"b\\\"\",queue=\"0\",op=\"write\"} 512\n"),
        "{text}"
    );
    assert!(text.contains(",le=\"0.000002\"} 0\n"), "{text}");
    assert!(text.contains(",le=\"0.000004\"} 1\n"), "{text}");
    assert!(text.contains(",le=\"+Inf\"} 2\n"), "{text}");
    let types = text.lines().filter(|line| line.starts_with("# TYPE")).collect::<Vec<_>>();
    let unique = types.iter().collect::<std::collections::BTreeSet<_>>();
    assert_eq!(types.len(), unique.len());
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok(), "{line}");
    }
}
