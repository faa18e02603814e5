//! What the guest's own service manager says of the guest, on a console that is there for nothing else.
//!
//! With `ready = "guest"` the guest has a second virtio console, /dev/hvc1, and writes to it the lines that a service
//! writes to its manager (sd_notify(3)): `READY=1` when it is up, `STATUS=text` for people. Made by the machine; lines
//! become events for its owner. A console and not vsock: it needs no driver that a guest could lack, no CID to be
//! unique on the host, and nothing on the host but this process.
//!
//! The guest's bytes are hostile: a line longer than [`LONGEST`] is dropped whole, what is not one of the two is
//! ignored, and its status is cut to printable characters and told to the host only so often.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use strata_virtio::limit::Throttle;

use super::Event;
use crate::console::Console;
use crate::console::hub::{Hub, Terminal};
use crate::pci::PciDevice;

/// Bytes of a line that is looked at.
const LONGEST: usize = 256;

/// One line of the guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It is up.
    Ready,
    /// What it does, for people; printable and short.
    Status(String),
}

/// The device, and the thread that listens to it.
///
/// # Errors
/// No descriptor or thread is left.
pub(super) fn device(events: Sender<Event>) -> io::Result<PciDevice> {
    // Not a pipe: the filter, which is in force by now, has no call that makes one.
    let (listens, says) = UnixStream::pair()?;
    let hub = Hub::new(Terminal { input: None, output: Some(says.into()) })?;
    let mut guest = File::from(OwnedFd::from(listens));
    let listen = move || {
        static TOLD: Throttle = Throttle::new(30, 60);
        let (mut lines, mut bytes) = (Lines::default(), [0; 512]);
        while let Ok(count @ 1..) = guest.read(&mut bytes) {
            for said in bytes.get(..count).unwrap_or_default().iter().filter_map(|byte| lines.push(*byte)) {
                if TOLD.allow() && events.send(Event::Guest(said)).is_err() {
                    return;
                }
            }
        }
    };
    thread::Builder::new().name("notify".into()).spawn(listen)?;
    Ok(Console::device("notify".to_owned(), Arc::new(hub)).0)
}

/// Bytes into lines. Public for its fuzz target, `ready`.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    overlong: bool,
}

impl Lines {
    /// Takes the next byte; what the line that it ends says.
    pub fn push(&mut self, byte: u8) -> Option<Said> {
        if byte != b'\n' {
            self.overlong |= self.line.len() >= LONGEST;
            if !self.overlong {
                self.line.push(byte);
            }
            return None;
        }
        let said = if self.overlong { None } else { read(&self.line) };
        self.line.clear();
        self.overlong = false;
        said
    }
}

fn read(line: &[u8]) -> Option<Said> {
    // The guest's terminal driver makes CR LF of LF unless it is told not to.
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line == b"READY=1" {
        return Some(Said::Ready);
    }
    let status = line.strip_prefix(b"STATUS=")?;
    let text = String::from_utf8_lossy(status);
    Some(Said::Status(text.chars().filter(|c| !c.is_control()).collect()))
}

#[cfg(test)]
#[path = "ready_test.rs"]
mod ready_test;
