//! Starts inmates, as one user or another.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigHandler, Signal, signal};
use strata_sandbox::Role;

/// As whom an inmate is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum User {
    /// As whoever runs the tests, maybe root.
    Same,
    /// As an unprivileged user; only root can.
    Plain,
}

/// Of the users there are in no database, one nobody uses.
pub(crate) const PLAIN: u32 = 31_234;

/// Every user this run can be and that can have user namespaces. In a chroot, as on a machine that never left its
/// initramfs, that is root alone; `life` has a case for it.
pub(crate) fn users() -> Vec<User> {
    use std::os::unix::fs::MetadataExt;
    let inode = |path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino())).ok();
    let in_chroot = is_root() && inode("/proc/1/root") != inode("/");
    if is_root() && is_mapped(PLAIN) && !in_chroot { vec![User::Same, User::Plain] } else { vec![User::Same] }
}

/// Whether there is such a user here: in a user namespace maybe not.
pub(crate) fn is_mapped(uid: u32) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.lines().any(|line| {
        let numbers: Vec<u32> = line.split_whitespace().map(|number| number.parse().unwrap()).collect();
        uid >= numbers[0] && uid - numbers[0] < numbers[2]
    })
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// What inmates inherit must not depend on who runs the tests: nohup ignores SIGHUP, a shell's background job SIGINT
/// and SIGQUIT, and an ignored signal ends nobody.
#[allow(unsafe_code)] // signal
pub(crate) fn as_from_a_shell() {
    for ignored in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: no handler is installed, and no thread but this one runs yet.
        unsafe { signal(ignored, SigHandler::SigDfl) }.unwrap();
    }
}

/// How far an inmate goes into its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not at all: the control.
    Open,
    /// One step.
    Isolated,
    /// Both.
    Locked,
}

pub(crate) const ROLES: [Role; 3] = [Role::Vmm, Role::Blk, Role::Net];

pub(crate) fn command(user: User, role: Role, stage: Stage, act: &[&str]) -> Command {
    // Not by its path, which the unprivileged user may have no way to.
    let mut command = Command::new("/proc/self/exe");
    command.args(["inmate", role.program(), &format!("{stage:?}")]).args(act);
    command.current_dir("/").env_remove("STRATA_SECCOMP").env_remove("RUST_BACKTRACE");
    if user == User::Plain {
        command.uid(PLAIN).gid(PLAIN);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running inmate that has said it is ready.
pub(crate) struct Inmate {
    pub(crate) child: Child,
    pub(crate) said: BufReader<std::process::ChildStdout>,
}

impl Inmate {
    pub(crate) fn start(user: User, role: Role, stage: Stage, act: &[&str]) -> Self {
        Self::from(command(user, role, stage, act))
    }

    pub(crate) fn from(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        if line != "ready\n" {
            let mut error = String::new();
            child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
            panic!("{command:?} said {line:?}, {error}, {:?}", child.wait());
        }
        Self { child, said }
    }

    /// The process that was started: the reaper, if there is a sandbox.
    pub(crate) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The process in the sandbox.
    pub(crate) fn inner(&self) -> i32 {
        strata_sandbox::inner(self.pid()).unwrap()
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Ends it by closing its standard input.
    pub(crate) fn finish(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        self.child.wait().unwrap()
    }
}

/// How an inmate ended and what it said.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) said: String,
    pub(crate) error: String,
}

impl Ended {
    pub(crate) fn refused(&self) -> bool {
        self.status.signal() == Some(libc::SIGSYS)
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:?}, said {:?}, {:?}", self.status, self.said, self.error)
    }
}

pub(crate) fn run(mut command: Command) -> Ended {
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        status: output.status,
        said: String::from_utf8_lossy(&output.stdout).into_owned(),
        error: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Only root of the host can enter a chroot that shows all of it.
pub(crate) fn can_chroot() -> bool {
    is_root() && is_mapped(65534)
}

/// The command, in a chroot that shows the same files.
#[allow(unsafe_code)] // pre_exec
pub(crate) fn in_chroot(mut command: Command) -> (Command, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let root = std::ffi::CString::new(dir.path().to_str().unwrap()).unwrap();
    let enter = move || {
        let none: Option<&std::ffi::CStr> = None;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(none, c"/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some(c"/"), root.as_c_str(), none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        nix::unistd::chroot(root.as_c_str())?;
        nix::unistd::chdir(c"/")?;
        Ok(())
    };
    // SAFETY: it makes system calls only.
    unsafe { command.pre_exec(enter) };
    (command, dir)
}

/// Waits until `holds`, generously.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < end, "{what}: not within a minute");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Whether there is such a process that is not a zombie.
pub(crate) fn lives(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z')))
}
