//! Enters a machine into systemd-machined's list, for `machinectl list`, `status`, `poweroff` and `reboot`.
//!
//! Called by `strata-register@NAME` once the machine has started, as root: machined takes new machines from nobody else before
//! systemd 258. Over Varlink where machined serves it (systemd 257 and newer), over D-Bus before, through systemd's own
//! `busctl`. machined drops the entry by itself when the machine's process ends. A host without machined is no
//! failure: the machine runs, and machinectl is not there to miss it.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use strata_config::Name;

use crate::say::say;

/// machined's socket (systemd-machined.service(8)).
const VARLINK: &str = "/run/systemd/machine/io.systemd.Machine";
/// Who we say we are, as systemd-nspawn and libvirt do.
const SERVICE: &str = "strata";
const PATIENCE: Duration = Duration::from_secs(20);
/// An answer of machined's is a few lines.
const LONGEST: u64 = 64 << 10;

/// Enters `name`.
///
/// # Errors
/// It does not run, its machine file is not there any more, or machined refuses.
pub(super) fn register(name: &Name) -> anyhow::Result<()> {
    let pid = main_pid(name)?;
    let machine = super::generated(name)?;
    let id = machine.uuid.map(strata_config::Uuid::bytes).unwrap_or_default();
    if Path::new(VARLINK).exists() {
        return over_varlink(name, &id, pid);
    }
    let mut busctl = Command::new("busctl");
    busctl.args(dbus_words(name, &id, pid));
    match busctl.output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let why = String::from_utf8_lossy(&done.stderr).trim().to_owned();
            say(format_args!("strata: machinectl does not know {name}: {why} (package systemd-container)"));
            Ok(())
        }
        Err(error) => bail!("cannot run busctl: {error}"),
    }
}

/// The process that systemd runs the machine as.
fn main_pid(name: &Name) -> anyhow::Result<u32> {
    let unit = format!("strata-vm@{name}.service");
    let asked = Command::new("systemctl").args(["show", "-P", "MainPID", &unit]).output();
    let text = String::from_utf8(asked.context("cannot run systemctl")?.stdout)?;
    match text.trim().parse() {
        Ok(pid @ 1..) => Ok(pid),
        _ => bail!("{unit} does not run"),
    }
}

/// A call of RegisterMachine (org.freedesktop.machine1(5)).
fn dbus_words(name: &Name, id: &[u8], pid: u32) -> Vec<String> {
    const MANAGER: [&str; 6] = [
        "--quiet",
        "call",
        "org.freedesktop.machine1",
        "/org/freedesktop/machine1",
        "org.freedesktop.machine1.Manager",
        "RegisterMachine",
    ];
    let mut words: Vec<String> = MANAGER.map(str::to_owned).to_vec();
    words.extend(["sayssus".to_owned(), name.to_string(), id.len().to_string()]);
    words.extend(id.iter().map(u8::to_string));
    words.extend([SERVICE, "vm", &pid.to_string(), ""].map(str::to_owned));
    words
}

fn over_varlink(name: &Name, id: &[u8], pid: u32) -> anyhow::Result<()> {
    let hexadecimal: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut parameters = json!({
        "name": name.as_str(), "id": hexadecimal, "service": SERVICE, "class": "vm", "leader": pid,
        // Ours is the unit that the process is in already.
        "allocateUnit": false,
        // Since systemd 261: where the vmm serves io.systemd.MachineInstance.
        "controlAddress": format!("/run/strata/{name}/control.sock"),
    });
    // Older ones refuse parameters they do not know, and say which.
    for _ in 0..3 {
        let answer = call(&json!({ "method": "io.systemd.Machine.Register", "parameters": parameters }))?;
        match answer.get("error").and_then(Value::as_str) {
            None | Some("io.systemd.Machine.MachineExists") => return Ok(()),
            Some("org.varlink.service.InvalidParameter") => {
                let unknown =
                    answer.pointer("/parameters/parameter").and_then(Value::as_str).unwrap_or_default();
                let dropped = parameters.as_object_mut().and_then(|all| all.remove(unknown));
                dropped.with_context(|| format!("machined refuses: {answer}"))?;
            }
            Some(_) => bail!("machined refuses: {answer}"),
        }
    }
    bail!("machined refuses the machine {name}")
}

/// One call, one answer; messages end with a zero byte (<https://varlink.org/Method-Call>).
fn call(message: &Value) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(VARLINK).with_context(|| format!("cannot connect to {VARLINK}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{message}\0").as_bytes())?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(LONGEST).read_until(0, &mut answer).context("machined does not answer")?;
    let text = answer.strip_suffix(&[0]).context("machined closed the connection")?;
    serde_json::from_slice(text).context("machined's answer is no JSON")
}

#[cfg(test)]
mod register_test {
    use super::*;

    #[test]
    fn the_id_goes_over_dbus_as_sixteen_bytes() {
        let words = dbus_words(&"web".parse().unwrap(), &[7; 16], 42);
        let text = words.join(" ");
        assert!(text.contains("RegisterMachine sayssus web 16 7 7 7"), "{text}");
        assert_eq!(words[words.len() - 4..], ["strata", "vm", "42", ""]);
        assert_eq!(words.len(), 6 + 3 + 16 + 4);
    }
}
