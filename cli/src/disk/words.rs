//! The words that start a disk's vhost-blk. The seam between machine file and backend; `vhost-blk --help` says what they
//! mean. Called by the launcher ([`crate::plan`]) and the systemd generator ([`crate::unit`]).

use strata_config::{Disk, DiskSource, Machine};

/// Image, queues and how it is served; sockets and sandbox are for whoever starts it. `None`: somebody else serves it.
pub(crate) fn words(machine: &Machine, disk: &Disk) -> Option<Vec<String>> {
    let DiskSource::File { path, format, readonly, serial, serving } = &disk.source else { return None };
    let mut words = Vec::new();
    let mut pair = |flag: &str, value: Option<String>| {
        if let Some(value) = value {
            words.extend([flag.to_owned(), value]);
        }
    };
    pair("--blk-file", Some(path.display().to_string()));
    pair("--num-queues", Some(machine.disk_queues(disk).to_string()));
    pair("--format", format.map(|format| format.as_str().to_owned()));
    pair("--cache", serving.cache.map(|cache| cache.as_str().to_owned()));
    pair("--engine", serving.engine.map(|engine| engine.as_str().to_owned()));
    pair("--on-error", serving.on_error.map(|what| what.as_str().to_owned()));
    pair("--iops", serving.iops.map(|rate| rate.to_string()));
    pair("--iops-burst", serving.iops_burst.map(|burst| burst.to_string()));
    pair("--bytes-per-second", serving.bytes_per_second.map(|rate| rate.to_string()));
    pair("--bytes-burst", serving.bytes_burst.map(|burst| burst.to_string()));
    let cpus: Vec<String> = serving.cpus.iter().map(u16::to_string).collect();
    pair("--cpus", (!cpus.is_empty()).then(|| cpus.join(",")));
    pair("--poll", serving.poll_us.map(|time| time.to_string()));
    pair("--coalesce", serving.coalesce_us.map(|time| time.to_string()));
    if *readonly {
        words.push("--read-only".to_owned());
    }
    if let Some(serial) = serial {
        // One word: a serial may begin with a hyphen.
        words.push(format!("--serial={serial}"));
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(keys: &str) -> Option<Vec<String>> {
        let machine: Machine = format!("kernel = \"/k\"\ncpus = 2\n[[disk]]\n{keys}").parse().unwrap();
        words(&machine, machine.disks.first().unwrap())
    }

    #[test]
    fn a_plain_disk_has_few_words_and_a_socket_none() {
        assert_eq!(of("path = \"/img\"").unwrap().join(" "), "--blk-file /img --num-queues 2");
        assert_eq!(of("socket = \"/s\""), None);
    }

    #[test]
    fn every_key_has_its_flag() {
        let keys = "path = \"/img\"\nqueues = 1\nformat = \"raw\"\nreadonly = true\nserial = \"-x y\"\ncache = \"none\"\n\
            engine = \"sync\"\non_error = \"stop\"\niops = 9\niops_burst = 3\nbytes_per_second = \"1M\"\n\
            bytes_burst = \"4K\"\ncpus = \"1-2\"\npoll_us = 20\ncoalesce_us = 30";
        let expected = "--blk-file /img --num-queues 1 --format raw --cache none --engine sync --on-error stop --iops 9 \
            --iops-burst 3 --bytes-per-second 1048576 --bytes-burst 4096 --cpus 1,2 --poll 20 --coalesce 30 --read-only --serial=-x y";
        assert_eq!(of(keys).unwrap().join(" "), expected);
    }
}
