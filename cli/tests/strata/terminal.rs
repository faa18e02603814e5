#![allow(unsafe_code)] // a process with a terminal of its own needs pre_exec

//! On a terminal: all keys are the guest's but Ctrl-], and the terminal is left as it was found.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};

use nix::libc;
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;

use crate::launcher::{Launcher, Place, no_kvm, wait_for};

struct Terminal {
    slave: OwnedFd,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
    before: Termios,
    child: Child,
}

impl Terminal {
    /// Runs a command as a shell in the foreground of a new terminal would.
    fn run(mut command: Command) -> Self {
        let pty = openpty(None, None).unwrap();
        let before = tcgetattr(pty.slave.as_fd()).unwrap();
        let slave = || pty.slave.try_clone().unwrap();
        command.stdin(slave()).stdout(slave()).stderr(slave());
        // SAFETY: two system calls between fork and exec.
        unsafe {
            command.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let child = command.spawn().unwrap();
        let keyboard = File::from(pty.master);
        let mut master = keyboard.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(bytes) = master.read(&mut buffer) {
                shown.lock().unwrap().extend_from_slice(&buffer[..bytes]);
            }
        });
        Self { slave: pty.slave, keyboard, screen, before, child }
    }

    fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    fn wait_for(&self, text: &str) {
        let screen = || String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned();
        wait_for(text, || screen().contains(text).then_some(()));
    }

    fn flags(&self) -> LocalFlags {
        tcgetattr(self.slave.as_fd()).unwrap().local_flags
    }

    fn ended(&mut self) -> Option<i32> {
        let status = wait_for("the end", || self.child.try_wait().unwrap());
        assert_eq!(tcgetattr(self.slave.as_fd()).unwrap(), self.before, "the terminal was not restored");
        status.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn machine(place: &Place, mode: &str) -> Terminal {
    let mut command = place.strata(&["run", "--kernel", "vmlinuz", "--name", "m"]);
    command.env("FAKE_VMM", mode);
    let terminal = Terminal::run(command);
    terminal.wait_for("fake console");
    assert!(!terminal.flags().intersects(LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO));
    terminal
}

#[test]
fn ctrl_c_is_the_guests_and_the_escape_offers_the_end() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut terminal = machine(&place, "serve");
    terminal.press("a\x03b\x1ac\x1c");
    terminal.wait_for("A\x03B\x1aC\x1c");
    terminal.press("\x1d");
    terminal.wait_for("q presses the power button");
    terminal.press("xd\x1d\x1de");
    terminal.wait_for("D");
    terminal.wait_for("\x1dE");
    terminal.press("\x1dq");
    assert_eq!(terminal.ended(), Some(0));
    assert!(place.is_empty());
}

#[test]
fn the_escape_can_kill() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut terminal = machine(&place, "deaf");
    terminal.press("\x1dk");
    assert_eq!(terminal.ended(), Some(1));
    terminal.wait_for("killed before the guest had powered off");
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut terminal = machine(&place, "serve");
    kill(Pid::from_raw(terminal.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(terminal.ended(), Some(0));
}

#[test]
fn a_terminal_attaches_and_detaches() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let mut launcher = Launcher::start(&place, &["--name", "m", "--console", "off"], &[]);
    wait_for("the machine", || place.output(&["pause", "m"]).status.success().then_some(()));
    let mut terminal = Terminal::run(place.strata(&["console", "m"]));
    terminal.wait_for("Ctrl-] detaches");
    terminal.wait_for("fake console");
    terminal.press("\x03hello");
    terminal.wait_for("\x03HELLO");
    terminal.press("\x1d");
    assert_eq!(terminal.ended(), Some(0));
    assert!(place.output(&["stop", "m"]).status.success());
    assert!(launcher.wait().success());
}

#[test]
fn top_is_live_on_a_terminal_and_leaves_it_as_it_was() {
    let place = Place::new();
    for end in ["q", "\x03", "TERM"] {
        let mut terminal = Terminal::run(place.strata(&["top", "--interval", "100ms"]));
        terminal.wait_for("q quits");
        terminal.wait_for("0 machines, ");
        assert!(!terminal.flags().intersects(LocalFlags::ICANON | LocalFlags::ISIG | LocalFlags::ECHO));
        match end {
            "TERM" => kill(Pid::from_raw(terminal.child.id().try_into().unwrap()), Signal::SIGTERM).unwrap(),
            keys => terminal.press(keys),
        }
        assert_eq!(terminal.ended(), Some(0), "{end:?}");
        // Back from the alternate screen, with a cursor.
        terminal.wait_for("\x1b[?25h\x1b[?1049l");
    }
    let once = Terminal::run(place.strata(&["top", "--once", "--interval", "100ms"]));
    once.wait_for("0 machines, ");
    assert!(!once.screen.lock().unwrap().contains(&0x1b), "escape sequences in a snapshot");
}
