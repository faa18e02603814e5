//! The other end of a guest's network loads: sinks, sources and an echo on the host's address of the tap.
//!
//! Owns: the sockets and a thread for each, until dropped. Called by: the exit-budget cases and the exit bench; the
//! guest's end is `guest-load`.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use crate::net::HOST;

/// How often a thread looks whether it is still wanted.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of a datagram, as `guest-load` has it.
const DATAGRAM: usize = 1400;

/// Addresses to give to `guest-load`.
pub struct Peers {
    /// Takes datagrams.
    pub udp_sink: String,
    /// Sends as many datagrams as it is asked for.
    pub udp_source: String,
    /// Takes a stream and says when it has all of it.
    pub tcp_sink: String,
    /// Sends as many MiB as it is asked for.
    pub tcp_source: String,
    /// Sends back what it gets.
    pub echo: String,
    wanted: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Peers {
    /// Opens all of them; the tap is up.
    ///
    /// # Errors
    /// If there are no sockets to be had.
    pub fn start() -> anyhow::Result<Self> {
        let wanted = Arc::new(AtomicBool::new(true));
        let mut threads = Vec::new();
        let mut udp = |serve: fn(&UdpSocket, &[u8], std::net::SocketAddr)| {
            let socket = UdpSocket::bind((HOST, 0)).context("no UDP socket on the tap")?;
            socket.set_read_timeout(Some(LOOK))?;
            let (address, wanted) = (address(socket.local_addr()?), wanted.clone());
            threads.push(std::thread::spawn(move || {
                let mut datagram = [0; 2 * DATAGRAM];
                while wanted.load(Ordering::Acquire) {
                    if let Ok((length, from)) = socket.recv_from(&mut datagram) {
                        serve(&socket, datagram.get(..length).unwrap_or_default(), from);
                    }
                }
            }));
            anyhow::Ok(address)
        };
        let udp_sink = udp(|_, _, _| {})?;
        let echo = udp(|socket, datagram, from| drop(socket.send_to(datagram, from)))?;
        let udp_source = udp(flood)?;
        let mut tcp = |serve: fn(TcpStream) -> std::io::Result<()>| {
            let listener = TcpListener::bind((HOST, 0)).context("no TCP socket on the tap")?;
            listener.set_nonblocking(true)?;
            let (address, wanted) = (address(listener.local_addr()?), wanted.clone());
            threads.push(std::thread::spawn(move || {
                while wanted.load(Ordering::Acquire) {
                    match listener.accept() {
                        Ok((stream, _)) => drop(stream.set_nonblocking(false).and_then(|()| serve(stream))),
                        Err(_) => std::thread::sleep(LOOK),
                    }
                }
            }));
            anyhow::Ok(address)
        };
        let tcp_sink = tcp(swallow)?;
        let tcp_source = tcp(pour)?;
        Ok(Self { udp_sink, udp_source, tcp_sink, tcp_source, echo, wanted, threads })
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.wanted.store(false, Ordering::Release);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn address(at: impl ToSocketAddrs) -> String {
    at.to_socket_addrs().ok().and_then(|mut all| all.next()).map_or_else(String::new, |one| one.to_string())
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// As many datagrams as `asked` says, then a short one until the guest has it and answers.
fn flood(socket: &UdpSocket, asked: &[u8], to: std::net::SocketAddr) {
    let full = [0x55; DATAGRAM];
    for _ in 0..number(asked) {
        let _ = socket.send_to(&full, to);
    }
    for _ in 0..600 {
        let _ = socket.send_to(&[0], to);
        match socket.recv_from(&mut [0; 16]) {
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            _ => return,
        }
    }
}

fn swallow(mut stream: TcpStream) -> std::io::Result<()> {
    let mut piece = vec![0; 256 << 10];
    while stream.read(&mut piece)? > 0 {}
    stream.write_all(&[1])
}

fn pour(mut stream: TcpStream) -> std::io::Result<()> {
    let mut asked = [0; 8];
    stream.read_exact(&mut asked)?;
    let piece = vec![0x55; 256 << 10];
    for _ in 0..u64::from_le_bytes(asked) * 4 {
        stream.write_all(&piece)?;
    }
    // Kept open until the guest has it all and closes.
    while stream.read(&mut asked)? > 0 {}
    Ok(())
}
