//! What differs between a machine as it was started and as its file has it now. Pure: two machines in, keys out.
//!
//! Called by [`super`]. Works on the written form, so a key that is added to the machine file is seen here by itself,
//! and waits for the machine's start until somebody says better. Values are not shown: some are secrets.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use strata_config::Machine;

/// Keys that wait for a start.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// Of the machine.
    pub(super) machine: Vec<String>,
    /// Of a disk or NIC alone: its unit, and the keys. The guest does not notice.
    pub(super) backends: Vec<(String, Vec<String>)>,
}

/// A list of the file's: its key, its backends' unit, keys in force at once, keys that a backend's start is enough for.
struct List {
    key: &'static str,
    template: &'static str,
    live: &'static [&'static str],
    backend: &'static [&'static str],
}

const LISTS: &[List] = &[
    List {
        key: "disk",
        template: "vhost-blk",
        live: &["iops", "iops_burst", "bytes_per_second", "bytes_burst"],
        // Not `cache`: the guest was told of the image's block size and of a cache to flush.
        backend: &["engine", "on_error", "cpus", "poll_us", "coalesce_us"],
    },
    List {
        key: "net",
        template: "vhost-net",
        live: &["tx_rate", "tx_packets", "tx_burst", "rx_rate", "rx_packets", "rx_burst"],
        backend: &["guard_mac", "ip", "guard_dhcp", "guard_ra"],
    },
    List { key: "device", template: "", live: &[], backend: &[] },
];

/// In force at once where systemd gives them, and nowhere else.
const RESOURCES: &str = "resources";

/// What differs, as keys.
pub(super) fn between(old: &Machine, new: &Machine) -> Changes {
    let written = |machine: &Machine| match serde_json::to_value(machine) {
        Ok(Value::Object(keys)) => keys,
        _ => Map::new(),
    };
    let (old, new) = (written(old), written(new));
    let mut changes = Changes::default();
    for key in differing(&old, &new) {
        if key == RESOURCES {
            continue;
        }
        if let Some(list) = LISTS.iter().find(|list| list.key == key) {
            let name = new.get("name").and_then(Value::as_str).unwrap_or_default();
            entries(list, name, &by_id(&old, key), &by_id(&new, key), &mut changes);
            continue;
        }
        match (old.get(key), new.get(key)) {
            (Some(Value::Object(old)), Some(Value::Object(new))) => {
                changes.machine.extend(differing(old, new).iter().map(|part| format!("{key}.{part}")));
            }
            _ => changes.machine.push(key.to_owned()),
        }
    }
    changes
}

/// Disks, NICs or devices.
fn entries(list: &List, name: &str, old: &[(&str, Entry<'_>)], new: &[(&str, Entry<'_>)], out: &mut Changes) {
    let ids = |entries: &[(&str, Entry<'_>)]| entries.iter().map(|(id, _)| (*id).to_owned()).collect();
    let (before, after): (Vec<String>, Vec<String>) = (ids(old), ids(new));
    if before != after {
        // Added, gone, or in another order, which is the guest's.
        out.machine.push(format!("{} ({} before, {} now)", list.key, shown(&before), shown(&after)));
    }
    for (id, new) in new {
        let Some((_, old)) = old.iter().find(|(other, _)| other == id) else { continue };
        let mut own = Vec::new();
        for key in differing(old, new).into_iter().filter(|key| !list.live.contains(key)) {
            let full = format!("{id}.{key}");
            if list.backend.contains(&key) { own.push(full) } else { out.machine.push(full) }
        }
        if !own.is_empty() {
            out.backends.push((format!("{}@{name}-{id}", list.template), own));
        }
    }
}

type Entry<'a> = &'a Map<String, Value>;

fn by_id<'a>(machine: &'a Map<String, Value>, key: &str) -> Vec<(&'a str, Entry<'a>)> {
    let list = machine.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let entries = list.iter().filter_map(Value::as_object);
    entries.filter_map(|entry| Some((entry.get("id")?.as_str()?, entry))).collect()
}

fn shown(ids: &[String]) -> String {
    if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
}

/// The keys whose values differ, or that only one of them has.
fn differing<'a>(old: &'a Map<String, Value>, new: &'a Map<String, Value>) -> Vec<&'a str> {
    let keys: BTreeSet<&str> = old.keys().chain(new.keys()).map(String::as_str).collect();
    keys.into_iter().filter(|key| old.get(*key) != new.get(*key)).collect()
}

#[cfg(test)]
#[path = "changes_test.rs"]
mod changes_test;
