#![allow(unsafe_code)] // Command::pre_exec: what the child does between fork and exec

//! One child process: how it is started, what it says, how it ends.
//!
//! Owns that a child dies with the launcher (PDEATHSIG), that the terminal's Ctrl-C does not reach it (a process
//! group of its own), that it inherits exactly the descriptors it is told of, and that what it writes to standard
//! error reaches ours line by line, with its name before it and without control characters.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getppid};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::say::{print, say};
use crate::upgrade::version::Version;

/// A line longer than this is cut: it is for people.
const LONGEST_LINE: usize = 1024;

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    /// Its name in front of what it says: the device's id, or `vmm`.
    pub(crate) id: String,
    pub(crate) path: PathBuf,
    /// The very file, if it is to stay the same whatever becomes of the path.
    pub(crate) version: Option<Version>,
    pub(crate) args: Vec<String>,
    /// Descriptors it gets, under the numbers they have here.
    pub(crate) descriptors: Vec<Arc<OwnedFd>>,
}

impl Program {
    /// The program's name without its folder.
    pub(crate) fn name(&self) -> String {
        self.path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// What to execute: the path, unless another file lies there by now.
    pub(crate) fn executable(&self) -> PathBuf {
        match &self.version {
            Some(version) if !version.is_at(&self.path) => version.handle(),
            _ => self.path.clone(),
        }
    }
}

/// How a child ended.
#[derive(Debug)]
pub(crate) struct Death {
    pub(crate) status: ExitStatus,
    /// What it said of its end on standard error: the last line, or with exit status 2, a wrong command line, the
    /// one that says what is wrong, which advice follows.
    pub(crate) last_words: Option<String>,
}

impl Death {
    /// `exit status 1: LAST WORDS`, `killed by SIGSEGV`, ...
    pub(crate) fn describe(&self) -> String {
        let how = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (_, Some(number)) => match Signal::try_from(number) {
                Ok(signal) => format!("killed by {signal}"),
                Err(_) => format!("killed by signal {number}"),
            },
            _ => self.status.to_string(),
        };
        // Whoever was killed by others did not know: its last line has nothing to do with it.
        let knew = matches!(self.status.signal(), None | Some(libc::SIGABRT));
        match &self.last_words {
            Some(words) if knew => format!("{how}: {words}"),
            _ => how,
        }
    }
}

/// A child cannot be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {}", program.display())]
pub(crate) struct StartError {
    program: PathBuf,
    source: io::Error,
}

/// What a child said, as far as it matters.
#[derive(Debug, Default)]
struct Words {
    last: Option<String>,
    /// The first line that begins with `error: `.
    refusal: Option<String>,
}

/// A running child.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pid: u32,
    signals: mpsc::UnboundedSender<Signal>,
}

impl Running {
    /// Sends a signal, if the child still lives. SIGKILL goes to its whole process group.
    pub(crate) fn signal(&self, signal: Signal) {
        // Through the task that reaps it: only that one knows that the pid is still the child's.
        let _ = self.signals.send(signal);
    }
}

/// Starts `program`; `died` is called with its end, once.
///
/// Call from the main thread only: PDEATHSIG follows the thread that forks.
pub(crate) fn spawn(
    program: &Program,
    died: impl FnOnce(Death) + Send + 'static,
) -> Result<Running, StartError> {
    start(program, Stdio::null(), died)
}

/// The same, and what it writes to standard output reaches ours in the same way.
pub(crate) fn spawn_heard(
    program: &Program,
    died: impl FnOnce(Death) + Send + 'static,
) -> Result<Running, StartError> {
    start(program, Stdio::piped(), died)
}

fn start(
    program: &Program,
    stdout: Stdio,
    died: impl FnOnce(Death) + Send + 'static,
) -> Result<Running, StartError> {
    let mut command = Command::new(program.executable());
    command.arg0(&program.path).args(&program.args);
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    let launcher = nix::unistd::getpid();
    let descriptors: Vec<RawFd> = program.descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
    // SAFETY: the closure runs in the forked child before exec and only makes system calls, none of which
    // allocates or takes a lock.
    unsafe {
        command.pre_exec(move || prepare(launcher, &descriptors));
    }
    let mut child = command.spawn().map_err(|source| StartError { program: program.path.clone(), source })?;
    let pid = child.id().unwrap_or_default();
    let last_words = Arc::new(Mutex::new(Words::default()));
    let listener = child
        .stderr
        .take()
        .map(|stderr| tokio::spawn(pass_on(program.id.clone(), stderr, Some(Arc::clone(&last_words)))));
    let output = child.stdout.take().map(|stdout| tokio::spawn(pass_on(program.id.clone(), stdout, None)));
    let (signals, mut wanted) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let status = loop {
            tokio::select! {
                status = child.wait() => break status,
                Some(signal) = wanted.recv() => send(pid, signal),
            }
        };
        // What it said last may still be in the pipe. A grandchild that keeps the pipe open is not waited for.
        for listener in listener.into_iter().chain(output) {
            let _ = tokio::time::timeout(Duration::from_millis(500), listener).await;
        }
        let status = status.unwrap_or_else(|_| ExitStatus::from_raw(libc::SIGKILL));
        let Words { last, refusal } =
            std::mem::take(&mut *last_words.lock().unwrap_or_else(PoisonError::into_inner));
        let last_words = if status.code() == Some(2) { refusal.or(last) } else { last };
        died(Death { status, last_words });
    });
    Ok(Running { pid, signals })
}

/// In the child, between fork and exec.
fn prepare(launcher: Pid, descriptors: &[RawFd]) -> io::Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The launcher may have died before the line above; then nobody will tell us.
    if getppid() != launcher {
        return Err(io::ErrorKind::Interrupted.into());
    }
    for fd in descriptors {
        // SAFETY: fcntl with F_SETFD touches no memory; the descriptor is open in the parent and so here.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn send(pid: u32, signal: Signal) {
    let Ok(pid) = i32::try_from(pid) else { return };
    let pid = Pid::from_raw(pid);
    let _ = if signal == Signal::SIGKILL { killpg(pid, signal) } else { kill(pid, signal) };
}

/// Reads lines until the pipe ends, says each; those of standard error are kept in `words`, those of standard output
/// go to ours.
async fn pass_on(id: String, pipe: impl AsyncRead + Unpin, words: Option<Arc<Mutex<Words>>>) {
    let mut reader = BufReader::new(pipe);
    let mut line = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let bytes = reader.read(&mut buffer).await.unwrap_or(0);
        let ended = bytes == 0;
        for byte in buffer.iter().take(bytes) {
            match byte {
                b'\n' => finish(&id, &mut line, words.as_deref()),
                byte if line.len() < LONGEST_LINE => line.push(*byte),
                _ => {}
            }
        }
        if ended {
            return finish(&id, &mut line, words.as_deref());
        }
    }
}

fn finish(id: &str, line: &mut Vec<u8>, words: Option<&Mutex<Words>>) {
    let text = printable(line);
    line.clear();
    if text.trim().is_empty() {
        return;
    }
    let Some(words) = words else {
        // Nobody listening is no reason to fail.
        let _ = print(&format!("[{id}] {text}\n"));
        return;
    };
    say(format_args!("[{id}] {text}"));
    let mut words = words.lock().unwrap_or_else(PoisonError::into_inner);
    if words.refusal.is_none()
        && let Some(refusal) = text.strip_prefix("error: ")
    {
        words.refusal = Some(refusal.to_owned());
    }
    words.last = Some(text);
}

/// The line without anything a terminal would act on: a process may be in its guest's hands.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    text.trim_end().chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_not_driven_by_what_processes_say() {
        assert_eq!(printable(b"\x1b[2Jgone\r\n"), "\u{fffd}[2Jgone");
        assert_eq!(printable("ümlaut\tok\u{9b}1m".as_bytes()), "ümlaut\tok\u{fffd}1m");
        assert_eq!(printable(b"\xff\xfe"), "\u{fffd}\u{fffd}");
    }

    #[test]
    fn deaths_are_described_with_the_last_words() {
        let death = |raw, words: Option<&str>| {
            Death { status: ExitStatus::from_raw(raw), last_words: words.map(str::to_owned) }.describe()
        };
        assert_eq!(death(0x100, Some("a.img is in use")), "exit status 1: a.img is in use");
        assert_eq!(death(libc::SIGABRT, Some("panicked")), "killed by SIGABRT: panicked");
        assert_eq!(death(libc::SIGSYS, Some("INFO connected")), "killed by SIGSYS");
    }
}
