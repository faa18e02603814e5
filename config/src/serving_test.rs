use super::*;
use crate::{DiskSource, Machine, MachineFile};

fn serving(keys: &str) -> Result<Serving, ConfigError> {
    let machine: Machine = format!("kernel = \"/k\"\n[[disk]]\npath = \"/img\"\n{keys}").parse()?;
    match machine.disks.first().map(|disk| disk.source.clone()) {
        Some(DiskSource::File { serving, .. }) => Ok(serving),
        other => panic!("{other:?}"),
    }
}

#[test]
fn all_keys_are_read_and_survive_being_written() {
    let keys = "cache = \"none\"\nengine = \"io_uring\"\non_error = \"stop\"\niops = 500\niops_burst = 50\n\
        bytes_per_second = \"20M\"\nbytes_burst = 1\ncpus = \"2,4-5\"\npoll_us = 0\ncoalesce_us = 100";
    let wanted = Serving {
        cache: Some(Cache::None),
        engine: Some(Engine::IoUring),
        on_error: Some(OnError::Stop),
        iops: Some(500),
        iops_burst: Some(50),
        bytes_per_second: Some(20 << 20),
        bytes_burst: Some(1 << 20),
        cpus: vec![2, 4, 5],
        poll_us: Some(0),
        coalesce_us: Some(100),
    };
    assert_eq!(serving(keys).unwrap(), wanted);
    let text = format!("kernel = \"/k\"\n[[disk]]\npath = \"/img\"\n{keys}");
    let machine: Machine = text.parse().unwrap();
    let file = MachineFile::from(machine.clone());
    assert_eq!(Machine::try_from(file).unwrap(), machine);
    assert_eq!(serving("").unwrap(), Serving::default());
    assert_eq!(serving("cpus = 7").unwrap().cpus, [7]);
}

#[test]
fn they_are_keys_of_the_flag_too() {
    let entry = DiskEntry::from_flag("path=/img,cache=unsafe,iops=10,bytes_per_second=1M,cpus=0-1").unwrap();
    let serving = Serving::check(&entry).unwrap();
    assert_eq!((serving.cache, serving.iops), (Some(Cache::Unsafe), Some(10)));
    assert_eq!((serving.bytes_per_second, serving.cpus), (Some(1 << 20), vec![0, 1]));
}

#[test]
fn what_is_refused_says_key_value_and_what_is_allowed() {
    for (keys, expected) in [
        ("cache = \"of\"", r#"disk[0].cache = "of": must be one of auto, none, writeback, unsafe"#),
        ("engine = \"aio\"", r#"disk[0].engine = "aio": must be one of auto, io_uring, sync"#),
        ("on_error = \"panic\"", r#"disk[0].on_error = "panic": must be one of report, stop"#),
        ("iops = 0", "disk[0].iops = 0: must be 1 to 1000000000"),
        ("iops = -1", "disk[0].iops = -1: must be 1 to"),
        ("iops_burst = 9", "disk[0]: `iops_burst` is nothing without `iops`; give that too"),
        ("bytes_burst = 9", "disk[0]: `bytes_burst` is nothing without `bytes_per_second`"),
        ("bytes_per_second = \"1MB\"", r#"disk[0].bytes_per_second = "1MB": must be a whole number with K"#),
        ("bytes_per_second = 0", "disk[0].bytes_per_second = 0: must be more than 0"),
        ("cpus = \"2-\"", r#"disk[0].cpus = "2-": must be processors, such as 3"#),
        ("cpus = \"5-2\"", r#"disk[0].cpus = "5-2": must be processors"#),
        ("cpus = \"0-64\"", r#"disk[0].cpus = "0-64": must be processors"#),
        ("cpus = 1024", "disk[0].cpus = 1024: must be processors"),
        ("poll_us = 5001", "disk[0].poll_us = 5001: must be 0 (never poll) to 5000 microseconds"),
        ("coalesce_us = 1001", "disk[0].coalesce_us = 1001: must be 0 (call at once) to 1000 microseconds"),
        ("coalesce_us = -1", "disk[0].coalesce_us = -1: must be 0 (call at once) to 1000 microseconds"),
    ] {
        let said = serving(keys).expect_err(keys).to_string();
        assert!(said.starts_with(expected), "{keys}: {said}");
    }
    let elsewhere = "kernel = \"/k\"\n[[disk]]\nsocket = \"/s\"\ncache = \"none\"".parse::<Machine>();
    let said = elsewhere.expect_err("a key of a backend that is not ours").to_string();
    assert_eq!(said, "disk[0]: `cache` does not go with `socket`: set it where that backend is started");
}
