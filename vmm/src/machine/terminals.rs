//! The guest's two terminals: hvc0 behind a virtio console, and COM1 if there is one. Each has a hub, so that people
//! can attach to either over the control socket.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::endpoint::Endpoint;
use crate::console::Console;
use crate::console::hub::Hub;
use crate::legacy::uart::Line;
use crate::pci::PciDevice;

/// How long the last words of a guest may take to reach a reader that is slow.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Both, as far as the machine has them.
#[derive(Default)]
pub(super) struct Terminals {
    console: Option<Arc<Hub>>,
    serial: Option<(Line, Arc<Hub>)>,
    // See `Endpoint::peer`.
    _peers: Vec<OwnedFd>,
}

/// A hub as the UART writes to it.
struct Wire(Arc<Hub>);

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Terminals {
    /// Starts what moves their bytes. Also gives the console's device.
    ///
    /// # Errors
    /// No descriptor or thread is left.
    pub(super) fn new(
        console: Option<Endpoint>,
        serial: Option<Endpoint>,
    ) -> io::Result<(Self, Option<PciDevice>)> {
        let mut terminals = Self::default();
        let mut device = None;
        if let Some(endpoint) = console {
            let hub = terminals.hub(endpoint)?;
            device = Some(Console::device("console".to_owned(), Arc::clone(&hub)).0);
            terminals.console = Some(hub);
        }
        if let Some(endpoint) = serial {
            let hub = terminals.hub(endpoint)?;
            let line = Line::new(Arc::new(Mutex::new(Wire(Arc::clone(&hub)))));
            feed(Arc::clone(&hub), line.clone())?;
            terminals.serial = Some((line, hub));
        }
        Ok((terminals, device))
    }

    fn hub(&mut self, endpoint: Endpoint) -> io::Result<Arc<Hub>> {
        self._peers.extend(endpoint.peer);
        Hub::new(endpoint.terminal).map(Arc::new)
    }

    /// The UART.
    pub(super) fn line(&self) -> Option<&Line> {
        self.serial.as_ref().map(|(line, _)| line)
    }

    /// What people attach to: the console, or else the serial port.
    pub(super) fn main_hub(&self) -> Option<Arc<Hub>> {
        self.console.as_ref().or(self.serial.as_ref().map(|(_, hub)| hub)).cloned()
    }

    /// Waits until what the guest said has reached its readers, but not for ever.
    pub(super) fn flush(&self) {
        for hub in self.console.iter().chain(self.serial.iter().map(|(_, hub)| hub)) {
            let _ = hub.flush(LAST_WORDS);
        }
    }
}

/// Hands what is typed to the UART, on a thread of its own: it waits for the guest to make room.
fn feed(hub: Arc<Hub>, line: Line) -> io::Result<()> {
    let feed = move || {
        let mut bytes = [0; 256];
        loop {
            match hub.take(&mut bytes) {
                0 => {
                    let mut ready = [PollFd::new(hub.input_ready(), PollFlags::POLLIN)];
                    let _ = poll(&mut ready, PollTimeout::NONE);
                    let mut count = [0; 8];
                    let _ = nix::unistd::read(hub.input_ready().as_fd(), &mut count);
                }
                count => line.feed(bytes.get(..count).unwrap_or_default()),
            }
        }
    };
    thread::Builder::new().name("serial-in".into()).spawn(feed).map(drop)
}
