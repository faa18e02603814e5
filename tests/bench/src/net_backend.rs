//! Net backends as processes: each is started inside the namespace its tap is to be in.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_vhost_net::host::Namespace;

/// The tap every backend makes.
pub(crate) const TAP: &str = "bench0";

/// A program to measure: `KIND=PROGRAM`.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    ours: bool,
    path: PathBuf,
}

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            None => Ok(Self { ours: true, path: text.into() }),
            Some(("strata", path)) => Ok(Self { ours: true, path: path.into() }),
            Some(("ch", path)) => Ok(Self { ours: false, path: path.into() }),
            Some((other, _)) => Err(format!("{other:?} is no kind of net backend; strata and ch are known")),
        }
    }
}

impl Program {
    /// For tables.
    pub(crate) fn name(&self) -> &'static str {
        if self.ours { "strata" } else { "ch" }
    }

    /// Starts it with one queue pair, pinned to `cpu`, and brings its tap up.
    pub(crate) fn start(
        &self,
        namespace: &Namespace,
        socket: &Path,
        cpu: Option<usize>,
        extra: &[String],
    ) -> anyhow::Result<Running> {
        drop(std::fs::remove_file(socket));
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        if self.ours {
            command.args(["--tap", TAP, "--create-tap", "--socket-path"]).arg(socket).args(extra);
        } else {
            command.arg("--net-backend").arg(format!(
                "tap={TAP},ip=192.0.2.1,mask=255.255.255.0,socket={},num_queues=2,queue_size=256,client=off",
                socket.display()
            ));
        }
        let log = socket.with_extension("log");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).context("making a log")?);
        let child = namespace
            .run(|| command.spawn())?
            .with_context(|| format!("starting {}", self.path.display()))?;
        let mut running = Running { child, log };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !socket.exists() || namespace.counters(TAP).is_err() {
            running.cpu_time()?;
            if Instant::now() > deadline {
                bail!("the backend makes no socket or no tap: {}", running.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        namespace.ip(&format!("link set {TAP} up"))?;
        Ok(running)
    }
}

/// A running backend; stopped when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    /// What it has written to stderr.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Processor time used so far, by the program and its children (a sandbox has some).
    pub(crate) fn cpu_time(&mut self) -> anyhow::Result<Duration> {
        if let Some(status) = self.child.try_wait()? {
            bail!("the backend has ended: {status}: {}", self.said());
        }
        let mut total = Duration::ZERO;
        for pid in crate::backend::family(self.child.id()) {
            let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid as i32))?;
            total += Duration::from(nix::time::clock_gettime(clock)?);
        }
        Ok(total)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // taskset becomes the backend, so the child is the one to end; it may have ended by itself.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        drop(self.child.wait());
    }
}
