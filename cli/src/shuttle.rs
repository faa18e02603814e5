//! Bytes between standard input and output and a console's socket.
//!
//! Two plain threads: making a terminal non-blocking would make it so for the shell behind it too. The reading
//! one cannot be stopped and is left to end with the process.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::escape::{CHOICES, Escape, Key, Mode};
use crate::say::say;
use crate::terminal::{Raw, foreground};

/// Standard input and output as a machine's console, until dropped.
#[derive(Debug)]
pub(crate) struct Shuttle {
    /// Disconnected when all output has been written.
    written: mpsc::Receiver<()>,
    _raw: Option<Raw>,
}

impl Shuttle {
    /// Starts. `key` hears the keys that are ours if standard input is a terminal; `closed` is called when the
    /// console's end is reached and written.
    ///
    /// # Errors
    /// The kernel's, when a descriptor or a thread cannot be had.
    pub(crate) fn start(
        console: UnixStream,
        mode: Mode,
        mut key: impl FnMut(Key) + Send + 'static,
        closed: impl FnOnce() + Send + 'static,
    ) -> io::Result<Self> {
        let raw = Raw::enter();
        let mode = if raw.is_some() { mode } else { Mode::Transparent };
        let mut input = File::from(stdin().as_fd().try_clone_to_owned()?);
        let mut output = File::from(stdout().as_fd().try_clone_to_owned()?);
        let mut from_console = console.try_clone()?;
        let mut to_console = console;
        // A job in the background would be stopped for reading its terminal.
        if !stdin().is_terminal() || foreground() {
            thread::Builder::new().name("console-in".into()).spawn(move || {
                let _ = read_keys(&mut input, &mut to_console, mode, &mut key);
                // At the end of input the console stays open: the guest goes on writing.
            })?;
        }
        let (done, written) = mpsc::channel();
        thread::Builder::new().name("console-out".into()).spawn(move || {
            let _ = write_out(&mut from_console, &mut output);
            drop(done);
            closed();
        })?;
        Ok(Self { written, _raw: raw })
    }

    /// Waits until what the machine wrote is out, now that it has ended; not for ever, in case a process that
    /// outlives it keeps the socket open.
    pub(crate) fn finish(self) {
        let _ = self.written.recv_timeout(Duration::from_secs(2));
    }
}

fn read_keys(
    input: &mut File,
    console: &mut UnixStream,
    mode: Mode,
    key: &mut impl FnMut(Key),
) -> io::Result<()> {
    let mut escape = Escape::new(mode);
    let mut buffer = [0; 4096];
    let mut out = Vec::new();
    loop {
        let bytes = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        out.clear();
        escape.feed(buffer.get(..bytes).unwrap_or_default(), &mut out, |pressed| match pressed {
            Key::Asked => say(format_args!("\n{CHOICES}")),
            pressed => key(pressed),
        });
        console.write_all(&out)?;
    }
}

/// Until the console ends. When nobody takes the output any more it is thrown away: a guest must not stand
/// still because a pipe broke.
fn write_out(console: &mut UnixStream, output: &mut File) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    let mut broken = false;
    loop {
        let bytes = match console.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if !broken && output.write_all(buffer.get(..bytes).unwrap_or_default()).is_err() {
            broken = true;
        }
    }
}
