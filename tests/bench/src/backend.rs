//! Backends as processes: how each is started, and what it costs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program to measure: `KIND=PROGRAM`, or `KIND=PROGRAM@IMAGE` for one with an image of its own.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    kind: Kind,
    path: PathBuf,
    image: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Strata,
    CloudHypervisor,
    StorageDaemon,
    /// With io_uring also where the page cache is used.
    StorageDaemonUring,
}

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, path) = match text.split_once('=') {
            Some((kind, path)) => (kind, path),
            None if text == DAEMON || text == DAEMON_URING => (text, DAEMON),
            None => ("strata", text),
        };
        let kind = match kind {
            "strata" => Kind::Strata,
            "ch" | "cloud-hypervisor" => Kind::CloudHypervisor,
            "qsd" | DAEMON => Kind::StorageDaemon,
            "qsd-uring" | DAEMON_URING => Kind::StorageDaemonUring,
            other => {
                return Err(format!(
                    "{other:?} is no kind of backend; strata, cloud-hypervisor, {DAEMON} and {DAEMON_URING} are known"
                ));
            }
        };
        let (path, image) = match path.split_once('@') {
            Some((path, image)) => (path, Some(PathBuf::from(image))),
            None => (path, None),
        };
        Ok(Self { kind, path: PathBuf::from(path), image })
    }
}

const DAEMON: &str = "qemu-storage-daemon";
const DAEMON_URING: &str = "qemu-storage-daemon-io_uring";

/// How the backend is to use the image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use<'a> {
    pub(crate) image: &'a Path,
    pub(crate) socket: &'a Path,
    pub(crate) direct: bool,
    pub(crate) cpu: Option<usize>,
    pub(crate) extra: &'a [String],
}

impl Program {
    /// For tables.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::Strata if self.image.is_some() => "strata'",
            Kind::Strata => "strata",
            Kind::CloudHypervisor => "ch",
            Kind::StorageDaemon => "qsd",
            Kind::StorageDaemonUring => "qsd-uring",
        }
    }

    /// What it says of its version, in one line.
    pub(crate) fn version(&self) -> String {
        let output = Command::new(&self.path).arg("--version").stdin(Stdio::null()).output();
        let said = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
        let line = String::from_utf8_lossy(&said).lines().next().unwrap_or("no version").to_owned();
        format!("{line} ({})", self.path.display())
    }

    /// Starts it; it is stopped when the handle is dropped.
    pub(crate) fn start(&self, how: Use<'_>) -> anyhow::Result<Running> {
        drop(std::fs::remove_file(how.socket));
        let image = self.image.as_deref().unwrap_or(how.image);
        let qcow2 = image.extension().is_some_and(|end| end == "qcow2");
        let (image, socket) = (image.display(), how.socket.display());
        let mut command = match how.cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(&self.path);
                command
            }
            None => Command::new(&self.path),
        };
        match self.kind {
            Kind::Strata => command
                .args(["--blk-file", &image.to_string(), "--socket-path", &socket.to_string()])
                .args(["--cache", if how.direct { "none" } else { "writeback" }])
                .args(["--format", if qcow2 { "qcow2" } else { "raw" }])
                .args(how.extra),
            Kind::CloudHypervisor => command.arg("--block-backend").arg(format!(
                "path={image},socket={socket},num_queues=1,queue_size=128,direct={}",
                if how.direct { "on" } else { "off" }
            )),
            Kind::StorageDaemon | Kind::StorageDaemonUring => command
                .arg("--blockdev")
                .arg(format!(
                    "driver=file,node-name=disk,filename={image}{}",
                    match (how.direct, self.kind) {
                        (true, _) => ",aio=io_uring,cache.direct=on",
                        (false, Kind::StorageDaemonUring) => ",aio=io_uring",
                        (false, _) => "",
                    }
                ))
                .arg("--export")
                .arg(format!(
                    "type=vhost-user-blk,id=disk,node-name=disk,addr.type=unix,addr.path={socket},writable=on"
                )),
        };
        let log = how.socket.with_extension("log");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&log).context("making a log")?)
            .spawn()
            .with_context(|| format!("starting {}", self.path.display()))?;
        Ok(Running { child, log })
    }
}

/// A running backend.
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
        for pid in family(self.child.id()) {
            let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid as i32))?;
            total += Duration::from(nix::time::clock_gettime(clock)?);
        }
        Ok(total)
    }
}

/// A process and its descendants.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_ascii_whitespace().filter_map(|child| child.parse().ok());
    std::iter::once(pid).chain(children.flat_map(family)).collect()
}

impl Drop for Running {
    fn drop(&mut self) {
        // The launcher may have become the backend (taskset executes it), so the child is the one to end.
        // It may have ended by itself already.
        let _ = kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM);
        drop(self.child.wait());
        drop(std::fs::remove_file(&self.log));
    }
}
