//! A child process of a test: its streams as lines, its end waited for with a limit, killed when dropped.
//!
//! Owns: the process. Called by: the harness and cases. `/proc` is read here for the processes below a child.

use std::fs;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill as send};
use nix::unistd::Pid;

use crate::lines::{Lines, limit};

/// How often a condition without an event of its own is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The first processor that we, and so our children, may run on: the rig keeps one for itself.
///
/// # Errors
/// If the kernel does not say.
pub(crate) fn processor() -> anyhow::Result<u32> {
    let status = fs::read_to_string("/proc/self/status")?;
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let first = allowed.and_then(|list| list.trim().split(['-', ',']).next()?.parse().ok());
    first.context("/proc/self/status does not say which processors are allowed")
}

/// A running child.
pub struct Process {
    /// What it is, for messages.
    pub name: String,
    /// Its standard output.
    pub output: Lines,
    /// Its standard error.
    pub errors: Lines,
    child: Child,
    stdin: Option<ChildStdin>,
}

/// Starts `command` with all three streams ours.
///
/// # Errors
/// If it cannot be started.
pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Process> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start {name}: {command:?}"))?;
    let output = Lines::of(&format!("output of {name}"), child.stdout.take().context("no output")?);
    let errors = Lines::of(&format!("standard error of {name}"), child.stderr.take().context("no errors")?);
    let stdin = child.stdin.take();
    Ok(Process { name: name.to_owned(), output, errors, child, stdin })
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Types `text` into its standard input.
    ///
    /// # Errors
    /// If it no longer reads.
    pub fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        let stdin = self.stdin.as_mut().context("its standard input is closed")?;
        stdin.write_all(text.as_bytes()).with_context(|| format!("{} does not read its input", self.name))?;
        Ok(stdin.flush()?)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// If the process is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()).context("process id out of range")?;
        send(Pid::from_raw(pid), signal).with_context(|| format!("cannot send {signal} to {}", self.name))
    }

    /// The exit status, once it has ended.
    ///
    /// # Errors
    /// If it cannot be asked for.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// If it does not end in time; the text holds the ends of its streams.
    pub fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let until = Instant::now() + limit();
        loop {
            if let Some(status) = self.child.try_wait()? {
                self.output.finish()?;
                self.errors.finish()?;
                return Ok(status);
            }
            if Instant::now() > until {
                bail!("{} did not end within {} s\n{}", self.name, limit().as_secs(), self.tails());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for its end and expects this exit code.
    ///
    /// # Errors
    /// If it ends otherwise, with the ends of its streams.
    pub fn expect_exit(&mut self, code: i32) -> anyhow::Result<()> {
        let status = self.wait()?;
        if status.code() != Some(code) {
            bail!("{} ended with {status}, expected exit status {code}\n{}", self.name, self.tails());
        }
        Ok(())
    }

    /// The ends of both streams.
    pub fn tails(&self) -> String {
        format!("{}\n{}", self.output.tail(30), self.errors.tail(20))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A supervisor is asked twice (the second time kills) before it is shot, so that it can take its children along.
            for _ in 0..2 {
                let _ = self.signal(Signal::SIGTERM);
                std::thread::sleep(LOOK * 10);
            }
            let until = Instant::now() + Duration::from_secs(3);
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
            let below = descendants(self.pid());
            let _ = self.child.kill();
            let _ = self.child.wait();
            for pid in below {
                let _ = kill(pid);
            }
        }
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// If it does not within the limit, naming `what`, or when the condition itself fails.
pub fn until(what: &str, mut condition: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + limit();
    while !condition()? {
        if Instant::now() > end {
            bail!("waited {} s in vain: {what}", limit().as_secs());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Kills any process.
///
/// # Errors
/// If there is no such process.
pub fn kill(pid: i32) -> anyhow::Result<()> {
    send(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| format!("cannot kill process {pid}"))
}

/// How often a case kills: `STRATA_KILLS`, or what there is time for in CI.
pub fn kills(in_ci: usize) -> usize {
    std::env::var("STRATA_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(in_ci)
}

/// Name of a process (`comm`), if it is there and no zombie.
pub fn name_of(pid: i32) -> Option<String> {
    let (comm, rest) = stat(pid)?;
    (!rest.starts_with('Z')).then_some(comm)
}

/// All processes below `pid`, children before grandchildren.
pub fn descendants(pid: u32) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = all().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut found = vec![i32::try_from(pid).unwrap_or_default()];
    let mut at = 0;
    while let Some(&above) = found.get(at) {
        found.extend(parents.iter().filter(|(_, parent)| *parent == above).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// All process ids.
pub fn all() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn parent(pid: i32) -> Option<i32> {
    stat(pid)?.1.split_whitespace().nth(1)?.parse().ok()
}

/// `comm` and what follows it in `/proc/PID/stat`.
fn stat(pid: i32) -> Option<(String, String)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, rest) = text.rsplit_once(") ")?;
    Some((head.split_once('(')?.1.to_owned(), rest.to_owned()))
}
