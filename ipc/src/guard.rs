//! A connected socket that keeps its peer within bounds, under zlink's framing.
//!
//! zlink reads a message into a buffer that may grow to 100 MiB, keeps every descriptor a peer sends until the
//! message is complete, and waits without end for a peer to take a reply. Here a message longer than the limit,
//! a reply left unread or a silence longer than the limit ends the connection, and descriptors are closed on arrival.

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::net::UnixStream;
use zlink::connection::PassedCredentials;
use zlink::connection::socket::{ReadHalf, ReadResult, Socket, WriteHalf};
use zlink::tokio::unix::Stream;

/// What a peer may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Bytes between two NULs.
    pub(crate) message: usize,
    /// How long a reply may wait for room in the socket.
    pub(crate) write: Duration,
    /// How long the peer may say nothing.
    pub(crate) idle: Duration,
}

/// A stream within [`Bounds`].
#[derive(Debug)]
pub(crate) struct Guarded {
    stream: Stream,
    bounds: Bounds,
}

impl Guarded {
    pub(crate) fn new(stream: UnixStream, bounds: Bounds) -> zlink::Result<Self> {
        Ok(Self { stream: stream.try_into()?, bounds })
    }
}

impl Socket for Guarded {
    type ReadHalf = GuardedRead;
    type WriteHalf = GuardedWrite;

    const CAN_TRANSFER_FDS: bool = true;

    fn split(self) -> (GuardedRead, GuardedWrite) {
        let (read, write) = self.stream.split();
        (
            GuardedRead { half: read, limit: self.bounds.message, idle: self.bounds.idle, open: 0 },
            GuardedWrite { half: write, limit: self.bounds.write },
        )
    }
}

/// Counts the bytes since the last NUL.
#[derive(Debug)]
pub(crate) struct GuardedRead {
    half: <Stream as Socket>::ReadHalf,
    limit: usize,
    idle: Duration,
    open: usize,
}

impl ReadHalf for GuardedRead {
    async fn read(&mut self, buf: &mut [u8]) -> zlink::Result<ReadResult> {
        // Dropping the result's other parts closes what descriptors came: no method takes any.
        let bytes = in_time(self.idle, self.half.read(buf)).await?.bytes_read();
        let fresh = buf.get(..bytes).unwrap_or_default();
        self.open = match fresh.iter().rposition(|byte| *byte == 0) {
            Some(nul) => bytes - nul - 1,
            None => self.open.saturating_add(bytes),
        };
        // zlink keeps at most what was read since its last complete message, so this bounds its buffer too.
        if self.open > self.limit {
            return Err(zlink::Error::BufferOverflow);
        }
        Ok(ReadResult::new(bytes))
    }
}

/// Gives up on a peer that does not read.
#[derive(Debug)]
pub(crate) struct GuardedWrite {
    half: <Stream as Socket>::WriteHalf,
    limit: Duration,
}

impl WriteHalf for GuardedWrite {
    async fn write(
        &mut self,
        buf: &[u8],
        fds: &[impl AsFd],
        credentials: Option<&PassedCredentials>,
    ) -> zlink::Result<()> {
        in_time(self.limit, self.half.write(buf, fds, credentials)).await
    }
}

async fn in_time<T>(limit: Duration, io: impl Future<Output = zlink::Result<T>>) -> zlink::Result<T> {
    match tokio::time::timeout(limit, io).await {
        Ok(result) => result,
        Err(_) => Err(zlink::Error::Io(std::io::ErrorKind::TimedOut.into())),
    }
}
