//! Packets and streams over the guest's NIC; the other end is in the host's test process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, ensure};

/// Bytes of a datagram: one Ethernet frame.
const DATAGRAM: usize = 1400;
const MIB: u64 = 1 << 20;
/// An answer that takes longer is lost. Generous: the machine may be software.
const PATIENCE: Duration = Duration::from_secs(60);

fn connected(address: &str) -> anyhow::Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("no UDP socket")?;
    socket.connect(address).with_context(|| format!("cannot reach {address}"))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub(crate) fn udp_send(
    address: &str,
    count: u64,
    go: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let socket = connected(address)?;
    go()?;
    let datagram = [0x55; DATAGRAM];
    for _ in 0..count {
        socket.send(&datagram).context("cannot send")?;
    }
    Ok(count)
}

pub(crate) fn udp_receive(
    address: &str,
    count: u64,
    go: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let socket = connected(address)?;
    go()?;
    socket.send(&count.to_le_bytes()).context("cannot say hello")?;
    let mut datagram = [0; 2 * DATAGRAM];
    // The last datagram says that it is: some may be lost on the way when the socket's buffer is full.
    let mut received = 0;
    loop {
        let length = socket.recv(&mut datagram).context("no more datagrams come")?;
        if length < DATAGRAM {
            socket.send(&[0]).context("cannot say goodbye")?;
            return Ok(received);
        }
        received += 1;
    }
}

pub(crate) fn tcp_send(
    address: &str,
    mib: u64,
    go: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    go()?;
    let piece = vec![0x55; 128 << 10];
    for _ in 0..mib * MIB / piece.len() as u64 {
        stream.write_all(&piece)?;
    }
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = [0];
    stream.read_exact(&mut answer).context("the other end did not get it all")?;
    Ok(mib)
}

pub(crate) fn tcp_receive(
    address: &str,
    mib: u64,
    go: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("cannot reach {address}"))?;
    go()?;
    stream.write_all(&mib.to_le_bytes())?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let (mut piece, mut left) = (vec![0; 128 << 10], mib * MIB);
    while left > 0 {
        let got = stream.read(&mut piece)? as u64;
        ensure!(got > 0 && got <= left, "{left} bytes are missing at the end");
        left -= got;
    }
    Ok(mib)
}

pub(crate) fn requests(
    address: &str,
    count: u64,
    go: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let socket = connected(address)?;
    go()?;
    let mut answer = [0; 16];
    for _ in 0..count {
        socket.send(&[1]).context("cannot send")?;
        let length = socket.recv(&mut answer).context("no answer")?;
        ensure!(length == 1, "an answer of {length} bytes");
    }
    Ok(count)
}
