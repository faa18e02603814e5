//! What a case is, and what it is given: a folder, the programs, the kernels.
//!
//! Called by: `cases/`. A case fails by error or panic, and skips by the error of [`skip`].

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use strata_rig::Place;

use crate::guest;
use crate::image;
use crate::process::{self, Process};
use crate::programs::Programs;
use crate::strata::Machine;

/// Where a case can run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// KVM that runs guests: natively with hardware behind it, else in the rig.
    Kvm,
    /// QEMU's TCG on the host itself; slow inside the rig, so it never runs there.
    Host,
}

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    /// `boot::bzimage`.
    pub name: &'static str,
    /// Where it runs.
    pub needs: Needs,
    /// The test itself.
    pub run: fn(&Context) -> anyhow::Result<()>,
}

impl Case {
    /// A case that boots guests with KVM.
    pub fn kvm(name: &'static str, run: fn(&Context) -> anyhow::Result<()>) -> Self {
        Self { name, needs: Needs::Kvm, run }
    }

    /// A case for the host itself.
    pub fn host(name: &'static str, run: fn(&Context) -> anyhow::Result<()>) -> Self {
        Self { name, needs: Needs::Host, run }
    }
}

/// An error that means: not a failure, the thing to test is not here.
#[derive(Debug)]
pub struct Skipped(pub String);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}", self.0)
    }
}

impl std::error::Error for Skipped {}

/// Ends a case without a verdict: `return Err(skip("no hugetlbfs here"))`.
pub fn skip(why: impl Into<String>) -> anyhow::Error {
    Skipped(why.into()).into()
}

/// What a running case has.
pub struct Context {
    /// The clone and its cache.
    pub place: Place,
    /// The binaries under test.
    pub programs: Programs,
    dir: PathBuf,
}

impl Context {
    /// A context whose files go below `dir`.
    ///
    /// # Errors
    /// If the folders cannot be made.
    pub fn new(place: &Place, programs: &Programs, dir: &Path) -> anyhow::Result<Self> {
        let context = Self { place: place.clone(), programs: programs.clone(), dir: dir.to_owned() };
        for dir in [context.run_dir(), context.temporary()] {
            std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(context)
    }

    /// A file of this case.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where `strata` keeps its running machines in this case; must be empty at the end.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// Where programs put temporary files in this case; must be empty at the end.
    pub fn temporary(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    /// An initramfs that runs `script`.
    ///
    /// # Errors
    /// As [`guest::initrd`].
    pub fn initrd(&self, script: &str) -> anyhow::Result<PathBuf> {
        let path = self.file(&format!("initrd-{:x}", script.len()));
        guest::initrd(&self.place, &path, script, &[])?;
        Ok(path)
    }

    /// An empty (sparse) image of `mib` MiB.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn disk(&self, name: &str, mib: u64) -> anyhow::Result<PathBuf> {
        let path = self.file(name);
        image::empty(&path, mib << 20)?;
        Ok(path)
    }

    /// A command for one of the programs under test, with this case's folders in its environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.path(program));
        command.env("STRATA_RUN_DIR", self.run_dir()).env("TMPDIR", self.temporary());
        command.env("STRATA_LIBEXEC", self.programs.dir());
        command
    }

    /// Runs a program under test with `args` to its end.
    ///
    /// # Errors
    /// If it cannot be started or does not end.
    pub fn run(&self, program: &str, args: &[&str]) -> anyhow::Result<Process> {
        let mut process = self.start(program, args)?;
        process.wait()?;
        Ok(process)
    }

    /// Starts a program under test.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, program: &str, args: &[&str]) -> anyhow::Result<Process> {
        process::start(program, self.command(program).args(args))
    }

    /// A machine to be: the bzImage, `script` as its initramfs, one vCPU, 512 MiB.
    ///
    /// # Errors
    /// If the initramfs cannot be made.
    pub fn machine(&self, script: &str) -> anyhow::Result<Machine<'_>> {
        let initrd = self.initrd(script)?;
        Ok(Machine::new(self, &self.place.guest_vmlinuz(), &initrd))
    }
}
