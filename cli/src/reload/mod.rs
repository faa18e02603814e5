//! `strata reload`: what a machine's file says now, on the machine that runs.
//!
//! Called by people, and by `systemctl reload strata-vm@NAME`: the vmm itself, in its sandbox, can read no file any more
//! and has nothing to take over. Limits of disks and NICs are set in their backends; under systemd the drop-ins are made
//! anew, which puts `resources` onto the slice and gives a backend that is started again the new limits. Everything
//! else is named, with what has to be started again for it. Refuses a file that is wrong, before anything is changed.

mod changes;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use serde::Serialize;
use strata_config::{Machine, MachineFile, Name};

use crate::args::{Output, OutputArgs};
use crate::run_dir::{Running, base};
use crate::say::print;
use crate::served::machine_of;
use crate::{control, disk, launcher, net, unit};
use changes::{Changes, between};

const HELP: &str = "\
At once: the limits of disks and NICs and, under systemd, `resources`. A limit that
was changed by hand is as in the file again. Other keys that have changed are named,
with what has to be started again for them; sizes of disks and links stay as they are.

Exit status: 0 done, even if keys wait for a start; 1 something could not be set;
2 the file is wrong, and nothing was changed.";

/// What to reload.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct ReloadArgs {
    /// The machine
    name: Name,
    /// Its file [default, under systemd: /etc/strata/machines/NAME.toml and what lies over it]
    file: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What came of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// What is another now, a line each.
    applied: Vec<String>,
    /// What could not be set.
    failed: Vec<String>,
    /// Keys that wait for a start, of whom.
    waiting: Vec<Waiting>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Waiting {
    keys: Vec<String>,
    start: String,
}

/// Takes over what can be, and says what cannot.
///
/// # Errors
/// The machine does not run, its file is wrong, or something could not be set.
pub(crate) fn run(args: &ReloadArgs) -> anyhow::Result<()> {
    let name = &args.name;
    let running = control::find(name)?;
    let launched = launcher::find(&running.path).is_some();
    let old = machine_of(&running)?;
    let new = wanted(args, launched, &old)?;
    let mut report = Report::default();
    if !launched {
        // Units that cannot be made are a mistake in the file, too.
        unit::check(&new)?;
        match systemd(name) {
            Ok(lines) => report.applied.extend(lines),
            Err(error) => report.failed.push(format!("{error:#}")),
        }
    }
    limits(&running, &old, &new, &mut report);
    report.waiting = waiting(name, between(&old, &new), launched);
    match args.output.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&report)?))?,
        Output::Text => print(&report.text(name))?,
    }
    match report.failed.as_slice() {
        [] => Ok(()),
        failed => bail!("{}", failed.join("; ")),
    }
}

/// What the file says.
fn wanted(args: &ReloadArgs, launched: bool, old: &Machine) -> anyhow::Result<Machine> {
    let name = &args.name;
    let mut new = match &args.file {
        Some(path) => {
            let mut file = MachineFile::from_file(path)?;
            file.plug(&base());
            file.name = Some(name.to_string());
            file.try_into()?
        }
        None if launched => bail!("{name} runs under `strata run`; name its file: strata reload {name} FILE"),
        None => unit::read(name)?,
    };
    if launched {
        new.uuid = new.uuid.or(old.uuid);
    }
    Ok(unit::identified(new))
}

/// Has systemd read the units anew; what is another at the machine's slice then.
fn systemd(name: &Name) -> anyhow::Result<Vec<String>> {
    let slice = unit::slice(name);
    let shown =
        || output("systemctl", &["show", "-p", "CPUWeight,CPUQuotaPerSecUSec,MemoryMax,IOWeight", &slice]);
    let before = shown()?;
    output("systemctl", &["daemon-reload"])?;
    let after = shown()?;
    if after != before {
        // systemd 257 knows the new values then, and the kernel does once something starts in the slice; 252 needs no push.
        let what = format!("--description=Strata {name}, its resources");
        output("systemd-run", &["--quiet", "--collect", &what, &format!("--slice={slice}"), "true"])?;
    }
    let is_new = |line: &&str| !before.lines().any(|old| old == *line);
    Ok(after.lines().filter(is_new).map(|line| format!("{slice}: {line}")).collect())
}

fn output(program: &str, words: &[&str]) -> anyhow::Result<String> {
    let done = Command::new(program).args(words).output().with_context(|| format!("cannot run {program}"))?;
    if !done.status.success() {
        bail!("{program} {}: {}", words.join(" "), String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Sets the limits of disks and NICs that run already and are in the file. One that fails does not keep the others.
fn limits(running: &Running, old: &Machine, new: &Machine, report: &mut Report) {
    let mut note = |result: anyhow::Result<Option<String>>| match result {
        Ok(line) => report.applied.extend(line),
        Err(error) => report.failed.push(format!("{error:#}")),
    };
    for disk in new.disks.iter().filter(|disk| old.disks.iter().any(|old| old.id == disk.id)) {
        note(disk::follow(running, disk));
    }
    for net in new.nets.iter().filter(|net| old.nets.iter().any(|old| old.id == net.id)) {
        note(net::follow(running, net));
    }
}

/// Whom the keys wait for, as people would type it.
fn waiting(name: &Name, changes: Changes, launched: bool) -> Vec<Waiting> {
    let mut waiting = Vec::new();
    let mut machine = changes.machine;
    for (unit, keys) in changes.backends {
        // A launcher starts a backend again as it was.
        match launched {
            true => machine.extend(keys),
            false => waiting.push(Waiting { keys, start: format!("systemctl restart {unit}") }),
        }
    }
    if !machine.is_empty() {
        let start = match launched {
            true => format!("strata stop {name}, then strata run"),
            false => format!("systemctl restart strata-vm@{name}"),
        };
        waiting.push(Waiting { keys: machine, start });
    }
    waiting
}

impl Report {
    fn text(&self, name: &Name) -> String {
        let mut lines: Vec<String> = self.applied.clone();
        lines.extend(self.waiting.iter().map(|Waiting { keys, start }| {
            format!("other than when {name} started, and not in force before `{start}`: {}", keys.join(", "))
        }));
        if lines.is_empty() && self.failed.is_empty() {
            lines.push(format!("{name} is as its file says"));
        }
        lines.into_iter().map(|line| line + "\n").collect()
    }
}

#[cfg(test)]
mod reload_test {
    use super::*;

    #[test]
    fn what_waits_is_named_with_what_it_waits_for() {
        let changes = || Changes {
            machine: vec!["memory".to_owned()],
            backends: vec![("vhost-blk@web-disk0".to_owned(), vec!["disk0.engine".to_owned()])],
        };
        let name: Name = "web".parse().unwrap();
        let report = Report { waiting: waiting(&name, changes(), false), ..Report::default() };
        assert_eq!(
            report.text(&name),
            "other than when web started, and not in force before `systemctl restart vhost-blk@web-disk0`: disk0.engine\n\
             other than when web started, and not in force before `systemctl restart strata-vm@web`: memory\n"
        );
        let launched = waiting(&name, changes(), true);
        assert_eq!(launched.len(), 1);
        assert_eq!(launched.first().unwrap().keys, ["memory", "disk0.engine"]);
        assert_eq!(Report::default().text(&name), "web is as its file says\n");
    }
}
