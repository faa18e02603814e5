use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;

fn pipe() -> (std::fs::File, OwnedFd) {
    let (read, write) = nix::unistd::pipe().unwrap();
    (read.into(), write)
}

fn stream(fd: OwnedFd) -> UnixStream {
    let stream = UnixStream::from(fd);
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn exactly(from: &mut impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// Takes input until `len` bytes have come.
fn taken(hub: &Hub, len: usize) -> Vec<u8> {
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < len {
        assert!(start.elapsed() < Duration::from_secs(20), "only {} bytes came", all.len());
        let mut bytes = [0; 512];
        let count = hub.take(&mut bytes);
        all.extend_from_slice(&bytes[..count]);
        if count == 0 {
            std::thread::yield_now();
        }
    }
    all
}

#[test]
fn output_reaches_everybody_and_newcomers_get_the_past() {
    let (mut primary, output) = pipe();
    let hub = Hub::new(Terminal { input: None, output: Some(output) }).unwrap();
    let mut early = stream(hub.attach().unwrap());
    hub.write(b"hello ");
    let mut late = stream(hub.attach().unwrap());
    hub.write(b"world");
    for reader in [&mut early, &mut late] {
        assert_eq!(exactly(reader, 11), b"hello world");
    }
    assert_eq!(exactly(&mut primary, 11), b"hello world");
    assert!(hub.flush(Duration::from_secs(20)));
    assert_eq!(hub.lost(), 0);
}

#[test]
fn only_recent_output_is_kept() {
    let hub = Hub::new(Terminal::default()).unwrap();
    hub.write(&vec![b'a'; RECENT]);
    hub.write(b"end");
    let mut client = stream(hub.attach().unwrap());
    let past = exactly(&mut client, RECENT);
    assert_eq!(past.iter().filter(|byte| **byte == b'a').count(), RECENT - 3);
    assert!(past.ends_with(b"end"));
    hub.write(&vec![b'b'; 3 * RECENT]);
    assert!(hub.flush(Duration::ZERO), "there is no primary place to wait for");
}

#[test]
fn a_slow_client_loses_bytes_and_holds_up_nobody() {
    let (mut primary, output) = pipe();
    let hub = Hub::new(Terminal { input: None, output: Some(output) }).unwrap();
    let slow = hub.attach().unwrap();
    let chunk = [b'x'; 4096];
    let reader = std::thread::spawn(move || exactly(&mut primary, 512 * 4096).len());
    for _ in 0..512 {
        hub.write(&chunk);
    }
    assert_eq!(reader.join().unwrap(), 512 * 4096);
    assert!(hub.lost() > 0);
    // And one that goes away is forgotten.
    drop(slow);
    hub.write(b"more");
    assert!(hub.shared.clients().is_empty());
}

#[test]
fn a_stuck_primary_place_is_waited_for_once() {
    let (_unread, output) = pipe();
    let hub = Hub::new(Terminal { input: None, output: Some(output) }).unwrap();
    let chunk = vec![b'x'; 64 << 10];
    for _ in 0..6 {
        hub.write(&chunk);
    }
    assert!(hub.shared.out().stuck && hub.lost() > 0);
    let start = Instant::now();
    for _ in 0..1000 {
        hub.write(&chunk);
    }
    assert!(start.elapsed() < 100 * PATIENCE, "each write waited");
    assert!(!hub.flush(Duration::from_millis(1)));
}

#[test]
fn input_comes_from_the_primary_place_and_from_clients() {
    let (input, mut typed) = nix::unistd::pipe().map(|(r, w)| (r, std::fs::File::from(w))).unwrap();
    let hub = Hub::new(Terminal { input: Some(input), output: None }).unwrap();
    typed.write_all(b"one").unwrap();
    assert_eq!(taken(&hub, 3), b"one");
    let mut client = stream(hub.attach().unwrap());
    client.write_all(b"two").unwrap();
    assert_eq!(taken(&hub, 3), b"two");
    // The end of the primary input is not the end of input.
    drop(typed);
    client.write_all(b"three").unwrap();
    assert_eq!(taken(&hub, 5), b"three");
}

#[test]
fn input_beyond_the_bound_waits_with_its_sender() {
    let hub = Hub::new(Terminal::default()).unwrap();
    let mut client = stream(hub.attach().unwrap());
    let total = 4 * INPUT;
    let sender = std::thread::spawn(move || {
        for chunk in 0..total / 1024 {
            client.write_all(&[chunk as u8; 1024]).unwrap();
        }
        client
    });
    let got = taken(&hub, total);
    for (chunk, bytes) in got.chunks(1024).enumerate() {
        assert!(bytes.iter().all(|byte| *byte == chunk as u8), "in order, none lost");
        assert!(hub.shared.input().len() <= INPUT + 4096);
    }
    drop(sender.join().unwrap());
}

#[test]
fn clients_are_limited() {
    let hub = Hub::new(Terminal::default()).unwrap();
    let held: Vec<_> = (0..CLIENTS_MAX).map(|_| hub.attach().unwrap()).collect();
    hub.attach().unwrap_err();
    drop(held);
    let start = Instant::now();
    while hub.attach().is_err() {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
}

#[test]
fn a_pty_without_a_reader_is_no_end() {
    let pty = nix::pty::openpty(None, None).unwrap();
    let input = pty.master.try_clone().unwrap();
    drop(pty.slave);
    let hub = Hub::new(Terminal { input: Some(input), output: Some(pty.master) }).unwrap();
    hub.write(b"to nobody\n");
    assert!(hub.flush(Duration::from_secs(20)));
    assert!(!hub.shared.out().deaf);
}
