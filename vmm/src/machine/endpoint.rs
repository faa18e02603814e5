#![allow(unsafe_code)] // takes over the descriptor named on the command line
//! Where a console's or serial port's bytes come from and go to. Opened before the sandbox.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};
use strata_config::Console;

use super::MachineError;
use crate::console::hub::Terminal;

/// A terminal, a file, or whatever the launcher gave.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// Both directions.
    pub(super) terminal: Terminal,
    /// The other side of a pseudo-terminal, kept so that output before somebody opens it is not an error.
    pub(super) peer: Option<OwnedFd>,
}

impl Endpoint {
    /// What `wanted` names; `None` if that is nothing. Standard input and output are `given`, if the launcher gave
    /// a descriptor.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn open(
        what: &str,
        wanted: &Console,
        given: Option<RawFd>,
    ) -> Result<Option<Self>, MachineError> {
        let failed = |source| MachineError::System { doing: format!("open the {what}"), source };
        let (terminal, peer) = match (wanted, given) {
            (Console::Off, _) => return Ok(None),
            (Console::Stdio, Some(fd)) => {
                // SAFETY: the command line names a descriptor that is ours to use; it is taken once, by whichever
                // of console and serial port has stdio, and the configuration allows only one of them.
                let both = unsafe { OwnedFd::from_raw_fd(fd) };
                (both_ways(both).map_err(failed)?, None)
            }
            (Console::Stdio, None) => {
                let input = io::stdin().as_fd().try_clone_to_owned().map_err(failed)?;
                let output = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
                (Terminal { input: Some(input), output: Some(output) }, None)
            }
            (Console::Pty, _) => {
                let pair = nix::pty::openpty(None, None).map_err(|errno| failed(errno.into()))?;
                let name = make_raw(&pair.slave).map_err(|errno| failed(errno.into()))?;
                eprintln!("vmm: the {what} is {name}");
                (both_ways(pair.master).map_err(failed)?, Some(pair.slave))
            }
            (Console::File(path), _) => {
                let file = OpenOptions::new().append(true).create(true).open(path).map_err(|source| {
                    MachineError::System { doing: format!("open {} for the {what}", path.display()), source }
                })?;
                (Terminal { input: None, output: Some(file.into()) }, None)
            }
        };
        Ok(Some(Self { terminal, peer }))
    }
}

fn both_ways(fd: OwnedFd) -> io::Result<Terminal> {
    Ok(Terminal { input: Some(fd.try_clone()?), output: Some(fd) })
}

/// Has the guest's terminal driver be the only one that echoes and edits; says the device's name.
fn make_raw(slave: &OwnedFd) -> nix::Result<String> {
    let mut settings = tcgetattr(slave)?;
    cfmakeraw(&mut settings);
    tcsetattr(slave, SetArg::TCSANOW, &settings)?;
    Ok(nix::unistd::ttyname(slave)?.display().to_string())
}
