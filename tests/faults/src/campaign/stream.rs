//! A TCP stream between the kernels at both ends of a card: the guest's sends, the host's sends it back, the guest's
//! compares every byte. Goes on for as long as it is let, and then to its last byte.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use strata_faults::Random;

use crate::place::{HOST, Network};

/// A frozen stream is lost after this; TCP itself backs off to a minute between attempts.
const LOST: Duration = Duration::from_secs(180);
/// Between two pieces: the load is there to be checked.
const PACE: Duration = Duration::from_millis(2);
const PIECE: usize = 8192;

/// A running stream.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    sender: JoinHandle<anyhow::Result<u64>>,
    receiver: JoinHandle<anyhow::Result<u64>>,
    echo: JoinHandle<std::io::Result<()>>,
    /// Both ends, to hang up.
    ends: Arc<Mutex<Vec<TcpStream>>>,
}

impl Stream {
    /// Begins one; waits for the connection.
    pub(crate) fn begin(network: &Network, seed: u64) -> anyhow::Result<Self> {
        let listener = network.host.run(|| TcpListener::bind((HOST, 0)))??;
        let address = listener.local_addr()?;
        let ends = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&ends);
        let echo = std::thread::spawn(move || echo(&listener, &noted));
        let client = network
            .guest
            .run(move || TcpStream::connect_timeout(&address, LOST))?
            .context("no connection")?;
        client.set_read_timeout(Some(LOST))?;
        client.set_write_timeout(Some(LOST))?;
        note(&ends, &client);
        let (stop, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (out, stopped) = (client.try_clone()?, Arc::clone(&stop));
        let sender = std::thread::spawn(move || send(out, seed, &stopped));
        let seen = Arc::clone(&bytes);
        let receiver = std::thread::spawn(move || receive(client, seed, &seen));
        Ok(Self { stop, bytes, sender, receiver, echo, ends })
    }

    /// Bytes that have come back so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Sends no more, and waits until all that was sent has come back.
    pub(crate) fn finish(self) -> anyhow::Result<u64> {
        self.stop.store(true, Ordering::Release);
        let joined = |_| anyhow::anyhow!("a stream's thread panicked");
        let sent = self.sender.join().map_err(joined)?.context("sending")?;
        let received = self.receiver.join().map_err(joined)?.context("receiving")?;
        self.echo.join().map_err(joined)?.context("echoing")?;
        ensure!(sent == received, "a stream lost bytes: {sent} sent, {received} came back");
        Ok(received)
    }

    /// Gives it up with its machine.
    pub(crate) fn abandon(self) {
        self.stop.store(true, Ordering::Release);
        for end in self.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
        let _ = (self.sender.join(), self.receiver.join(), self.echo.join());
    }
}

fn note(ends: &Mutex<Vec<TcpStream>>, end: &TcpStream) {
    ends.lock().unwrap_or_else(PoisonError::into_inner).extend(end.try_clone());
}

fn echo(listener: &TcpListener, ends: &Mutex<Vec<TcpStream>>) -> std::io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    note(ends, &stream);
    stream.set_read_timeout(Some(LOST))?;
    stream.set_write_timeout(Some(LOST))?;
    let mut piece = vec![0; PIECE];
    loop {
        match stream.read(&mut piece)? {
            0 => return stream.shutdown(Shutdown::Write),
            len => stream.write_all(piece.get(..len).unwrap_or_default())?,
        }
    }
}

/// The next piece of the stream that follows from its seed.
fn piece(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PIECE);
    while bytes.len() < PIECE {
        bytes.extend(random.next().to_le_bytes());
    }
    bytes
}

fn send(mut stream: TcpStream, seed: u64, stop: &AtomicBool) -> anyhow::Result<u64> {
    let mut random = Random::new(seed);
    let mut sent = 0;
    while !stop.load(Ordering::Acquire) {
        stream.write_all(&piece(&mut random))?;
        sent += PIECE as u64;
        std::thread::sleep(PACE);
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

fn receive(mut stream: TcpStream, seed: u64, seen: &AtomicU64) -> anyhow::Result<u64> {
    let mut random = Random::new(seed);
    let mut got = vec![0; PIECE];
    let mut received = 0;
    loop {
        let mut filled = 0;
        while let Some(rest) = got.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match stream.read(rest)? {
                0 if filled == 0 => return Ok(received),
                0 => bail!("the stream ended in the middle of a piece, after {received} bytes and {filled}"),
                len => filled += len,
            }
        }
        ensure!(got == piece(&mut random), "wrong bytes after {received}");
        received += PIECE as u64;
        seen.store(received, Ordering::Relaxed);
    }
}
