//! The hub's reading thread: input of the primary place and of all clients, merged in the order it comes.
//!
//! Reads nobody while the guest's input is full, so that what was typed waits where it is.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::hub::Shared;

/// What one attempt to read gave.
enum Got {
    Bytes,
    Nothing,
    /// A pty that nobody has open on the other side: it may come back.
    Absent,
    End,
}

/// Runs until the hub stops.
pub(super) fn run(shared: &Shared, mut primary: Option<OwnedFd>) {
    let mut absent = false;
    while !shared.is_stopping() {
        let clients = shared.clients();
        let full = shared.room() == 0;
        let mut fds = vec![PollFd::new(shared.wake.as_fd(), PollFlags::POLLIN)];
        let watch_primary = !full && !absent && primary.is_some();
        if let Some(primary) = primary.as_ref().filter(|_| watch_primary) {
            fds.push(PollFd::new(primary.as_fd(), PollFlags::POLLIN));
        }
        if !full {
            fds.extend(clients.iter().map(|client| PollFd::new(client.as_fd(), PollFlags::POLLIN)));
        }
        let limit = if absent { PollTimeout::from(500_u16) } else { PollTimeout::NONE };
        match poll(&mut fds, limit) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => {
                tracing::error!(%errno, "the console can no longer be read");
                return;
            }
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        drop(fds);
        let mut ready = ready.into_iter();
        if ready.next() == Some(true) {
            let mut count = [0; 8];
            let _ = nix::unistd::read(&shared.wake, &mut count);
        }
        absent = false;
        if watch_primary && ready.next() == Some(true) {
            match primary.as_ref().map(|fd| read_some(shared, fd)) {
                Some(Got::End) => primary = None,
                Some(Got::Absent) => absent = true,
                _ => {}
            }
        }
        for (client, _) in clients.iter().zip(ready).filter(|(_, ready)| *ready) {
            if matches!(read_some(shared, client), Got::End | Got::Absent) {
                detach(shared, client);
            }
        }
    }
}

fn detach(shared: &Shared, client: &Arc<OwnedFd>) {
    tracing::debug!(client = client.as_raw_fd(), "a console client has gone");
    shared.detach(client);
}

/// Reads once, at most what there is room for.
fn read_some(shared: &Shared, fd: &OwnedFd) -> Got {
    let mut bytes = [0; 4096];
    let room = shared.room().min(bytes.len());
    let Some(bytes) = bytes.get_mut(..room).filter(|bytes| !bytes.is_empty()) else { return Got::Nothing };
    match nix::unistd::read(fd, bytes) {
        Ok(0) => Got::End,
        Ok(count) => {
            shared.put_input(bytes.get(..count).unwrap_or_default());
            Got::Bytes
        }
        Err(Errno::EINTR | Errno::EAGAIN) => Got::Nothing,
        Err(Errno::EIO) => Got::Absent,
        Err(_) => Got::End,
    }
}
