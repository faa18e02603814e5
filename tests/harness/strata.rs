//! A guest started through `strata run`, as a user would.
//!
//! Called by: cases. [`Machine`] collects the flags; [`Running`] is the supervisor's process, whose standard output is
//! the guest's console.

use std::ffi::OsString;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;

use crate::account::Outsider;
use crate::case::Context;
use crate::process::{self, Process};

/// Kernel parameters of every test guest: quiet, because each line a guest prints costs exits.
const CMDLINE: &str = "console=hvc0 quiet loglevel=4 panic=-1";

/// A `strata run` command line being put together.
pub struct Machine<'a> {
    context: &'a Context,
    args: Vec<OsString>,
    name: String,
    cmdline: String,
    cpus: u32,
    memory: String,
}

impl<'a> Machine<'a> {
    /// A machine of one vCPU and 512 MiB.
    pub fn new(context: &'a Context, kernel: &Path, initrd: &Path) -> Self {
        let args = vec!["--kernel".into(), kernel.into(), "--initrd".into(), initrd.into()];
        Self { context, args, name: "vm".into(), cmdline: CMDLINE.into(), cpus: 1, memory: "512M".into() }
    }

    /// Another kernel in place of the first.
    pub fn kernel(mut self, kernel: &Path) -> Self {
        if let Some(path) = self.args.get_mut(1) {
            *path = kernel.into();
        }
        self
    }

    /// Another initramfs in place of the first.
    pub fn initrd(mut self, initrd: &Path) -> Self {
        if let Some(path) = self.args.get_mut(3) {
            *path = initrd.into();
        }
        self
    }

    /// Sets the number of vCPUs.
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Sets the guest's memory, `512M` or `6G`.
    pub fn memory(mut self, memory: &str) -> Self {
        memory.clone_into(&mut self.memory);
        self
    }

    /// Sets the machine's name.
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Adds kernel parameters.
    pub fn append(mut self, words: &str) -> Self {
        self.cmdline = format!("{} {words}", self.cmdline);
        self
    }

    /// Adds a disk: an image and further `,key=value`.
    pub fn disk(self, path: &Path, more: &str) -> Self {
        let value = format!("path={}{more}", path.display());
        self.arg("--disk").arg(&value)
    }

    /// Adds a NIC on a tap, with further `,key=value`.
    pub fn net(self, tap: &str, more: &str) -> Self {
        let value = format!("tap={tap}{more}");
        self.arg("--net").arg(&value)
    }

    /// Sets what a vCPU does when it has nothing to do, on a processor of its own, which `guest` and `poll` take.
    ///
    /// # Errors
    /// If the kernel does not say which processors there are for us.
    pub fn halting(self, halt: &str) -> anyhow::Result<Self> {
        let words = format!("halt={halt},pin={}", process::processor()?);
        Ok(self.arg("--vcpu").arg(&words))
    }

    /// Adds any argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.into());
        self
    }

    /// The command line as it stands.
    pub fn command(&self) -> Command {
        let mut command = self.context.command("strata");
        self.fill(&mut command);
        command
    }

    /// Appends `run` and all flags to a command that ends in `strata`.
    fn fill(&self, command: &mut Command) {
        command.args([
            "run",
            "--name",
            &self.name,
            "--cpus",
            &self.cpus.to_string(),
            "--memory",
            &self.memory,
        ]);
        command.args(["--cmdline", &self.cmdline]).args(&self.args);
    }

    /// Starts it.
    ///
    /// # Errors
    /// If the supervisor cannot be started.
    pub fn start(self) -> anyhow::Result<Running> {
        let command = self.command();
        self.start_as(command)
    }

    /// Starts it as another user.
    ///
    /// # Errors
    /// If the supervisor cannot be started.
    pub fn start_by(self, outsider: &Outsider) -> anyhow::Result<Running> {
        let mut command = outsider.strata(self.context);
        self.fill(&mut command);
        self.start_as(command)
    }

    fn start_as(self, mut command: Command) -> anyhow::Result<Running> {
        let process = process::start(&format!("strata run {}", self.name), &mut command)?;
        let run_dir = self.context.run_dir().join(&self.name);
        Ok(Running { process, run_dir })
    }
}

/// A machine that has been started. Ends with the case if not before.
pub struct Running {
    process: Process,
    run_dir: PathBuf,
}

impl Running {
    /// Waits for `guest: TEXT` on the console.
    ///
    /// # Errors
    /// If it does not come; with the ends of the console and of standard error.
    pub fn guest(&self, text: &str) -> anyhow::Result<String> {
        let wanted = format!("guest: {text}");
        let line = self.process.output.wait_whole(&wanted);
        line.with_context(|| self.process.errors.tail(20)).map_err(flat)
    }

    /// Waits for `guest: KEY VALUE` on the console and gives the value.
    ///
    /// # Errors
    /// As [`Running::guest`].
    pub fn guest_value(&self, key: &str) -> anyhow::Result<String> {
        let value = self.process.output.value(&format!("guest: {key}"));
        value.with_context(|| self.process.errors.tail(20)).map_err(flat)
    }

    /// Process id of one of the machine's processes: `vmm`, `disk0`, `net0`; from its pid file.
    ///
    /// # Errors
    /// If there is no such file.
    pub fn pid_of(&self, id: &str) -> anyhow::Result<i32> {
        let path = self.run_dir.join(format!("{id}.pid"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        text.trim().parse().with_context(|| format!("{} holds no number", path.display()))
    }

    /// Its folder below the run folder.
    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }
}

/// The whole chain as one text, since the tails are what matters.
fn flat(error: anyhow::Error) -> anyhow::Error {
    let parts: Vec<String> = error.chain().map(ToString::to_string).collect();
    anyhow::anyhow!(parts.into_iter().rev().collect::<Vec<_>>().join("\n"))
}

impl Deref for Running {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}
