//! Writes one capture to a client, until the client has enough. Runs on a thread of its own.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Source, pcapng};

/// How often a quiet NIC is looked at, in milliseconds; queue threads do not wake this one.
const LOOK: u8 = 20;
/// Bytes written at once.
const PIECE: usize = 256 << 10;

/// Writes what `source` has to `client` as pcapng, from interface `name`. The client ends it by closing its half: it
/// then gets what is still there, and counts. One that is slow loses frames, which are counted.
pub fn stream(source: &Source, mut client: UnixStream, name: &str) {
    // A client that is gone is the usual end.
    if let Err(error) = write(source, &mut client, name) {
        tracing::debug!("a capture ends: {error}");
    }
    let (passed, missing) = source.counts();
    tracing::info!(
        "{name}: a capture has ended; {passed} frames passed, {missing} of them are missing in it"
    );
}

fn write(source: &Source, client: &mut UnixStream, name: &str) -> io::Result<()> {
    client.set_nonblocking(false)?;
    let mut out = Vec::new();
    pcapng::begin(&mut out, concat!("strata vhost-net ", env!("CARGO_PKG_VERSION")), name, source.keep());
    loop {
        let wanted = !hung_up(client)?;
        while let Some(frame) = source.take() {
            pcapng::packet(&mut out, &frame);
            if out.len() >= PIECE {
                client.write_all(&out)?;
                out.clear();
            }
        }
        if !wanted {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
            let (passed, missing) = source.counts();
            pcapng::statistics(&mut out, time, passed, missing);
            return client.write_all(&out);
        }
        client.write_all(&out)?;
        out.clear();
    }
}

/// Waits a little; whether the client has closed its half meanwhile.
fn hung_up(client: &mut UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(client.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(LOOK)) {
        Ok(0) | Err(nix::Error::EINTR) => Ok(false),
        // It has nothing to say; what it says is not kept.
        Ok(_) => Ok(client.read(&mut [0; 64])? == 0),
        Err(error) => Err(error.into()),
    }
}
