//! Enters a machine into systemd-machined's list, for `machinectl list`, `status`, `poweroff` and `reboot`.
//!
//! Called by `strata-register@NAME` once the machine has started, as root: machined takes new machines from nobody else before
//! systemd 258. Over Varlink where machined answers there (systemd 257 and newer), else over D-Bus, through systemd's own
//! `busctl`, which also starts a machined that has nothing to do and so does not run. machined drops the entry by itself
//! when the machine's process ends. A host without machined is no failure: the machine runs, and machinectl is not there
//! to miss it.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};
use strata_config::Name;

use crate::say::say;

/// machined's socket (systemd-machined.service(8)). It stays when a machined of systemd 257 ends.
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
    match UnixStream::connect(VARLINK) {
        Ok(stream) => {
            over_varlink(stream, name, &id, pid)?;
            say(format_args!("strata: machinectl knows {name} (Varlink)"));
            return Ok(());
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot connect to {VARLINK}")),
    }
    let mut busctl = Command::new("busctl");
    busctl.args(dbus_words(name, &id, pid));
    match busctl.output() {
        Ok(done) if done.status.success() => {
            say(format_args!("strata: machinectl knows {name} (D-Bus)"));
            Ok(())
        }
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

fn over_varlink(mut stream: UnixStream, name: &Name, id: &[u8], pid: u32) -> anyhow::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answers = BufReader::new(stream.try_clone()?);
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
        let message = json!({ "method": "io.systemd.Machine.Register", "parameters": parameters });
        let answer = call(&mut stream, &mut answers, &message)?;
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
fn call(stream: &mut UnixStream, answers: &mut impl BufRead, message: &Value) -> anyhow::Result<Value> {
    stream.write_all(format!("{message}\0").as_bytes())?;
    let mut answer = Vec::new();
    answers.take(LONGEST).read_until(0, &mut answer).context("machined does not answer")?;
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
