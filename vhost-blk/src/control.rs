//! Control of a running disk: Varlink (<https://varlink.org>) on a unix socket, by hand.
//!
//! Six methods do not need an asynchronous runtime, and the memory of one is more than that of the whole backend.
//! Called by `main`, which gives it a thread; it talks to the queues through the [`Disk`] alone, by atomics.
//! Clients are of the host and are served one after another; one that does not speak for a while is dropped.
//!
//! Refuses, with Varlink's own errors, unknown methods and wrong parameters; drops clients whose messages are no
//! JSON, or longer than 64 KiB.

mod calls;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Weak;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use strata_virtio::session::ConfigChange;

use crate::disk::Disk;

#[cfg(test)]
#[path = "control_test.rs"]
mod control_test;

/// Longest message.
const LONGEST: usize = 64 << 10;
/// How long a client may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Enough for a message and its answer; the default of 8 MiB is only address space, but counts where limits are.
const STACK: usize = 256 << 10;

/// Answers clients for as long as the process lives.
///
/// # Errors
/// No thread is left.
pub fn spawn(listener: UnixListener, disk: Weak<Disk>, change: ConfigChange) -> io::Result<()> {
    let serve = move || {
        loop {
            match listener.accept() {
                Ok((client, _)) => {
                    // At the end the disk goes first.
                    let Some(disk) = disk.upgrade() else { return };
                    if let Err(error) = attend(client, &disk, &change) {
                        tracing::debug!("a control client is dropped: {error}");
                    }
                }
                // A client that went before it was accepted, or no descriptor left for now.
                Err(error) => {
                    tracing::debug!("no control client: {error}");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    };
    std::thread::Builder::new().name("control".into()).stack_size(STACK).spawn(serve).map(drop)
}

/// One client's calls: JSON objects, each followed by a zero byte.
fn attend(client: UnixStream, disk: &Disk, change: &ConfigChange) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let mut received = Vec::new();
    loop {
        while let Some(end) = received.iter().position(|byte| *byte == 0) {
            let message: Vec<u8> = received.drain(..=end).collect();
            let message = message.split_last().map_or(&[][..], |(_, message)| message);
            if let Some(reply) = calls::answer(message, disk, change)? {
                send(&client, &reply)?;
            }
        }
        if received.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message longer than 64 KiB"));
        }
        wait(&client, PollFlags::POLLIN)?;
        let mut part = [0; 4096];
        match io::Read::read(&mut &client, &mut part) {
            Ok(0) => return Ok(()),
            Ok(length) => received.extend(part.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(mut client: &UnixStream, reply: &[u8]) -> io::Result<()> {
    let mut rest = reply;
    while !rest.is_empty() {
        match io::Write::write(&mut client, rest) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(client, PollFlags::POLLOUT)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(client: &UnixStream, what: PollFlags) -> io::Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(client.as_fd(), what)], timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
