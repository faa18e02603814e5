//! A stream of bytes through a guest: sent to it on one connection, expected back from it on another.
//!
//! Owns: two listeners in a network namespace of the caller's choice and a thread on each. Called by: cases that break
//! the network while it is used. What is sent is made from a number, so nothing has to be kept to compare with.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CloneFlags, setns};

/// Bytes of one write.
const CHUNK: usize = 16 << 10;

/// A running stream.
pub struct Stream {
    /// The port that the guest reads from.
    pub down: u16,
    /// The port that it writes to.
    pub up: u16,
    over: Arc<AtomicBool>,
    returned: Arc<AtomicU64>,
    sender: JoinHandle<anyhow::Result<u64>>,
    receiver: JoinHandle<anyhow::Result<()>>,
}

impl Stream {
    /// Listens on two ports in the network namespace that the file `network` is, and serves one client on each.
    ///
    /// # Errors
    /// If the namespace cannot be entered or there is no port to listen on.
    pub fn open(network: &Path) -> anyhow::Result<Self> {
        let ((sends, down), (receives, up)) = listeners(network)?;
        let (over, returned) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (ends, counts) = (Arc::clone(&over), Arc::clone(&returned));
        let sender = std::thread::spawn(move || send(&sends, &ends));
        let receiver = std::thread::spawn(move || receive(&receives, &counts));
        Ok(Self { down, up, over, returned, sender, receiver })
    }

    /// Bytes that have come back so far, all as they were sent.
    ///
    /// # Errors
    /// If the stream has ended, and should not have.
    pub fn returned(&self) -> anyhow::Result<u64> {
        ensure!(!self.sender.is_finished() && !self.receiver.is_finished(), "the stream broke");
        Ok(self.returned.load(Ordering::Acquire))
    }

    /// Sends no more, waits for what is under way, and gives how many bytes made the round, all of them.
    ///
    /// # Errors
    /// If a byte is missing or another.
    pub fn finish(self) -> anyhow::Result<u64> {
        self.over.store(true, Ordering::Release);
        let panicked = |_| anyhow!("a thread of the stream panicked");
        let sent = self.sender.join().map_err(panicked)?.context("sending")?;
        self.receiver.join().map_err(panicked)?.context("receiving")?;
        let returned = self.returned.load(Ordering::Acquire);
        ensure!(sent == returned, "{sent} bytes were sent, {returned} came back");
        Ok(sent)
    }
}

/// Two listeners of the namespace. A socket stays in the namespace that its thread was in.
#[allow(clippy::type_complexity)]
fn listeners(network: &Path) -> anyhow::Result<((TcpListener, u16), (TcpListener, u16))> {
    let namespace = File::open(network).with_context(|| format!("cannot open {}", network.display()))?;
    let listen = move || -> anyhow::Result<_> {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the network namespace")?;
        let one = || -> anyhow::Result<_> {
            let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 0)))?;
            let port = listener.local_addr()?.port();
            Ok((listener, port))
        };
        Ok((one()?, one()?))
    };
    std::thread::spawn(listen).join().map_err(|_| anyhow!("a thread panicked"))?
}

fn send(listener: &TcpListener, over: &AtomicBool) -> anyhow::Result<u64> {
    let (mut stream, _) = listener.accept()?;
    let (mut numbers, mut chunk, mut sent) = (Numbers::new(), vec![0; CHUNK], 0);
    while !over.load(Ordering::Acquire) {
        numbers.fill(&mut chunk);
        stream.write_all(&chunk)?;
        sent += chunk.len() as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    // Until the guest has closed its side too.
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest)?;
    Ok(sent)
}

fn receive(listener: &TcpListener, returned: &AtomicU64) -> anyhow::Result<()> {
    let (mut stream, _) = listener.accept()?;
    let (mut numbers, mut got, mut expected) = (Numbers::new(), vec![0; CHUNK], Vec::new());
    loop {
        let count = stream.read(&mut got)?;
        if count == 0 {
            return Ok(());
        }
        expected.resize(count, 0);
        numbers.fill(&mut expected);
        let before = returned.fetch_add(count as u64, Ordering::AcqRel);
        ensure!(got.get(..count) == Some(expected.as_slice()), "other bytes came back after byte {before}");
    }
}

/// An endless row of bytes, the same each time (xorshift64).
struct Numbers {
    state: u64,
    word: [u8; 8],
    used: usize,
}

impl Numbers {
    fn new() -> Self {
        Self { state: 0x9e37_79b9_7f4a_7c15, word: [0; 8], used: 8 }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.used == self.word.len() {
                self.state ^= self.state << 13;
                self.state ^= self.state >> 7;
                self.state ^= self.state << 17;
                (self.word, self.used) = (self.state.to_le_bytes(), 0);
            }
            *byte = self.word.get(self.used).copied().unwrap_or_default();
            self.used += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn echo(stream: &Stream, spoil: bool) {
        let mut down = TcpStream::connect(("127.0.0.1", stream.down)).unwrap();
        let mut up = TcpStream::connect(("127.0.0.1", stream.up)).unwrap();
        std::thread::spawn(move || {
            let mut bytes = vec![0; 5000];
            let mut left = spoil;
            while let Ok(count @ 1..) = down.read(&mut bytes) {
                if std::mem::take(&mut left) {
                    bytes[0] ^= 1;
                }
                if up.write_all(&bytes[..count]).is_err() {
                    return;
                }
            }
        });
    }

    #[test]
    fn what_comes_back_is_what_was_sent() {
        let stream = Stream::open(Path::new("/proc/self/ns/net")).unwrap();
        echo(&stream, false);
        while stream.returned().unwrap() < 100_000 {
            std::thread::yield_now();
        }
        assert!(stream.finish().unwrap() >= 100_000);
    }

    #[test]
    fn another_byte_is_noticed() {
        let stream = Stream::open(Path::new("/proc/self/ns/net")).unwrap();
        echo(&stream, true);
        while stream.returned().is_ok() {
            std::thread::yield_now();
        }
        assert!(stream.finish().is_err());
    }
}
