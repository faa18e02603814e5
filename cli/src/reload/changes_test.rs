use strata_config::Machine;

use super::{Changes, between};

const OLD: &str =
    "name = 'web'\nkernel = '/k'\nmemory = '256M'\n[[disk]]\npath = '/a'\niops = 9\n[[net]]\ntap = 't'\n";

/// The changes that `edits` of the machine's file make.
fn changes(edits: &[(&str, &str)]) -> Changes {
    let machine = |text: &str| -> Machine { text.parse().unwrap() };
    let mut new = OLD.to_owned();
    for (from, to) in edits {
        assert!(new.contains(from), "{from}");
        new = new.replacen(from, to, 1);
    }
    between(&machine(OLD), &machine(&new))
}

#[test]
fn limits_and_resources_wait_for_nobody() {
    assert_eq!(changes(&[]), Changes::default());
    let edits = [
        ("iops = 9", "bytes_per_second = '1M'\nbytes_burst = '2M'"),
        ("tap = 't'", "tap = 't'\ntx_rate = '1M'\ntx_burst = '9ms'\nrx_packets = '1k'"),
        ("kernel", "resources = { cpu_weight = 7 }\nkernel"),
    ];
    assert_eq!(changes(&edits), Changes::default());
}

#[test]
fn what_a_backend_is_started_with_waits_for_the_backend() {
    let edits = [
        ("iops = 9", "poll_us = 0\ncoalesce_us = 9\nengine = 'sync'"),
        ("tap = 't'", "tap = 't'\nguard_mac = true\nip = '10.0.0.2'"),
    ];
    let expected = [
        ("vhost-blk@web-disk0", vec!["disk0.coalesce_us", "disk0.engine", "disk0.poll_us"]),
        ("vhost-net@web-net0", vec!["net0.guard_mac", "net0.ip"]),
    ];
    let expected = expected
        .map(|(unit, keys)| (unit.to_owned(), keys.into_iter().map(str::to_owned).collect::<Vec<String>>()));
    assert_eq!(changes(&edits), Changes { machine: Vec::new(), backends: expected.to_vec() });
}

#[test]
fn everything_else_waits_for_the_machine_and_no_value_is_shown() {
    let edits = [
        (
            "memory = '256M'",
            "memory = '512M'\ncredentials.pass = 'word'\nvcpu.nested = false\nbackend.lost = 'pause'",
        ),
        ("path = '/a'", "path = '/b'\ncache = 'none'"),
        ("tap = 't'", "tap = 'u'\n[[net]]\ntap = 'v'"),
    ];
    let found = changes(&edits);
    assert!(found.backends.is_empty());
    let expected = [
        "backend.lost",
        "credentials",
        "disk0.cache",
        "disk0.path",
        "memory",
        "net (net0 before, net0, net1 now)",
        "net0.tap",
        "vcpu.nested",
    ];
    assert_eq!(found.machine, expected);
}
