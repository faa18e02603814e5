//! `strata switch ls`, `show` and `link`: what runs, for people and for programs. The JSON is a promise: keys are added,
//! never renamed or taken away.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use strata_config::Name;

use super::folder::{all, control, find};
use crate::args::Output;
use crate::backend::call;
use crate::list::table;
use crate::run_dir::{Running, base};
use crate::say::print;

/// How long a switch may take to answer: the table is asked of the thread that moves the frames.
const PATIENCE: Duration = Duration::from_secs(2);

fn ask(folder: &Path, method: &str, parameters: Value) -> anyhow::Result<Value> {
    call(&control(folder), &format!("io.strata.Switch.{method}"), parameters, PATIENCE)
        .with_context(|| format!("the switch does not do {method}"))
}

fn running(name: &str) -> anyhow::Result<Running> {
    let base = base();
    match find(&base, name) {
        Some(running) => Ok(running),
        None => {
            let names: Vec<String> = all(&base)?.iter().map(Running::name).collect();
            match names.as_slice() {
                [] => bail!("no switch named {name} runs; none runs under {}", base.display()),
                names => bail!("no switch named {name} runs; running: {}", names.join(", ")),
            }
        }
    }
}

/// The switch and the port whose socket this is, if it is one of this user's switches'.
pub(crate) fn port_of(path: &Path) -> Option<(String, String)> {
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let port = path.parent()?;
    let switch = port.parent()?.parent()?;
    let ours = path.starts_with(base().join(strata_config::SWITCHES));
    ours.then(|| Some((name(switch)?, name(port)?))).flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    }
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn get(value: &Value, key: &str) -> Value {
    value.get(key).cloned().unwrap_or(Value::Null)
}

pub(super) fn ls(output: Output) -> anyhow::Result<()> {
    let mut switches = Vec::new();
    for running in all(&base())? {
        let status = ask(&running.path, "GetStatus", json!({})).ok();
        let ports = status.as_ref().map(|status| list(status, "ports").len());
        let connected = |status: &Value| {
            list(status, "ports").iter().filter(|port| get(port, "connected") == Value::Bool(true)).count()
        };
        switches.push(json!({
            "name": running.name(),
            "state": if status.is_some() { "running" } else { "unresponsive" },
            "pid": running.pid,
            "ports": ports,
            "connected": status.as_ref().map(connected),
            "processes": running.processes().iter().map(|(id, pid)| json!({ "id": id, "pid": pid })).collect::<Vec<_>>(),
        }));
    }
    if output == Output::Json {
        return Ok(print(&format!("{}\n", serde_json::to_string_pretty(&switches)?))?);
    }
    let header = ["NAME", "STATE", "PORTS", "CONNECTED", "PID"].map(str::to_owned);
    let row =
        |switch: &Value| ["name", "state", "ports", "connected", "pid"].map(|key| text(&get(switch, key)));
    let rows: Vec<_> = std::iter::once(header).chain(switches.iter().map(row)).collect();
    Ok(print(&table(&rows))?)
}

pub(super) fn show(name: &Name, output: Output) -> anyhow::Result<()> {
    let running = running(name.as_str())?;
    let mut status = ask(&running.path, "GetStatus", json!({}))?;
    let statistics = ask(&running.path, "GetStatistics", json!({}))?;
    let addresses = ask(&running.path, "GetAddresses", json!({}))?;
    if let Some(ports) = status.get_mut("ports").and_then(Value::as_array_mut) {
        for (port, counted) in ports.iter_mut().zip(list(&statistics, "ports")) {
            if let Some(port) = port.as_object_mut() {
                port.insert("counters".to_owned(), get(counted, "counters"));
            }
        }
    }
    if let Some(status) = status.as_object_mut() {
        status.insert("pid".to_owned(), json!(running.pid));
        status.insert("addresses".to_owned(), get(&addresses, "addresses"));
    }
    if output == Output::Json {
        return Ok(print(&format!("{}\n", serde_json::to_string_pretty(&status)?))?);
    }
    Ok(print(&people(&status))?)
}

fn people(status: &Value) -> String {
    let header = ["PORT", "VLAN", "TRUNK", "LINK", "GUEST", "MAC", "SENT", "RECEIVED", "DROPPED"];
    let row = |port: &Value| {
        let counters = get(port, "counters");
        let count = |key: &str| get(&counters, key).as_u64().unwrap_or(0);
        let dropped: u64 = counters
            .as_object()
            .map(|all| {
                all.iter().filter(|(key, _)| key.contains("_drop_")).filter_map(|(_, n)| n.as_u64()).sum()
            })
            .unwrap_or(0);
        let trunk: Vec<String> = list(port, "trunk").iter().map(text).collect();
        let on = |key: &str, yes: &str, no: &str| {
            if get(port, key) == Value::Bool(true) { yes.to_owned() } else { no.to_owned() }
        };
        [
            text(&get(port, "name")),
            text(&get(port, "vlan")),
            if trunk.is_empty() { "-".to_owned() } else { trunk.join(",") },
            on("link", "up", "down"),
            on("connected", "yes", "no"),
            text(&get(port, "mac")),
            count("tx_frames").to_string(),
            count("rx_frames").to_string(),
            dropped.to_string(),
        ]
    };
    let rows: Vec<_> =
        std::iter::once(header.map(str::to_owned)).chain(list(status, "ports").iter().map(row)).collect();
    let mut shown = table(&rows);
    let addresses = list(status, "addresses");
    if !addresses.is_empty() {
        let row = |address: &Value| ["mac", "vlan", "port", "age"].map(|key| text(&get(address, key)));
        let header = ["ADDRESS", "VLAN", "PORT", "AGE"].map(str::to_owned);
        let rows: Vec<_> = std::iter::once(header).chain(addresses.iter().map(row)).collect();
        shown.push('\n');
        shown.push_str(&table(&rows));
    }
    shown
}

pub(super) fn link(name: &Name, port: &Name, up: bool) -> anyhow::Result<()> {
    let running = running(name.as_str())?;
    ask(&running.path, "SetLink", json!({ "port": port.as_str(), "up": up })).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_see_ports_and_addresses() {
        let status = json!({
            "ports": [{ "name": "a", "vlan": null, "trunk": [10, 20], "link": true, "connected": false,
                        "mac": "02:00:00:00:00:01",
                        "counters": { "tx_frames": 3, "rx_frames": 4, "tx_drop_vlan": 1, "rx_drop_full": 2 } }],
            "addresses": [{ "mac": "02:00:00:00:00:02", "vlan": 10, "port": "a", "age": 7 }],
        });
        let expected = "\
PORT  VLAN  TRUNK  LINK  GUEST  MAC                SENT  RECEIVED  DROPPED
a     -     10,20  up    no     02:00:00:00:00:01  3     4         3

ADDRESS            VLAN  PORT  AGE
02:00:00:00:00:02  10    a     7
";
        assert_eq!(people(&status), expected);
    }
}
