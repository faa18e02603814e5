//! Peers that say nonsense, half of it, or too much; and the end of a session from any state.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;

use vhost::VhostBackend;

use super::*;

fn raw(code: u32, flags: u32, body: &[u8]) -> Vec<u8> {
    let mut message = wire::header(code, flags, body.len() as u32);
    message.extend_from_slice(body);
    message
}

#[test]
fn streams_that_make_no_sense_end_their_session_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("toy.sock");
    let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let backend = backend(Endpoint::Listener(listener));
    let header = |code, flags, size| wire::header(code, flags, size);
    for (name, bytes) in [
        ("version 0", raw(1, 0, &[])),
        ("version 2", raw(1, 2, &[])),
        ("a reply", raw(1, 5, &[])),
        ("unknown flags", raw(1, 0x11, &[])),
        ("a long body", header(1, 1, 4097)),
        ("a very long body", header(1, 1, u32::MAX)),
        ("unknown request", raw(4711, 1, &[])),
        ("unknown request that wants a reply", raw(4711, 9, &[])),
        ("short body", raw(2, 1, &[0; 7])),
        ("no descriptor", raw(12, 1, &[0; 8])),
        ("ring that is not there", raw(11, 1, &[9, 0, 0, 0, 0, 0, 0, 0])),
        ("zeros", vec![0; 4096]),
        ("ones", vec![0xff; 4096]),
    ] {
        let mut stream = UnixStream::connect(&path).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let _ = stream.write_all(&bytes);
        let mut back = Vec::new();
        // The end, or a reset since unread bytes were left.
        let ended = stream.read_to_end(&mut back);
        assert!(ended.is_ok() || ended.unwrap_err().kind() == std::io::ErrorKind::ConnectionReset, "{name}");
        assert!(back.is_empty(), "{name}: {back:?}");
    }
    // Cut off in the middle of header and body.
    for bytes in [&raw(1, 1, &[])[..5], &raw(2, 1, &[0; 8])[..15]] {
        UnixStream::connect(&path).unwrap().write_all(bytes).unwrap();
    }
    Frontend::connect(&path, RING_FEATURES).expect("the backend is alive");
    drop(backend);
}

#[test]
fn a_message_may_come_byte_by_byte() {
    let (_backend, mut stream) = pair();
    stream.set_read_timeout(Some(LONG)).unwrap();
    for byte in raw(2, 1, &RING_FEATURES.to_ne_bytes()).into_iter().chain(raw(1, 1, &[])) {
        stream.write_all(&[byte]).unwrap();
    }
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_eq!(reply[12..], (RING_FEATURES | F_PROTOCOL_FEATURES).to_ne_bytes());
}

#[test]
fn stop_reaches_a_session_wherever_it_waits() {
    // Half a header; half a body; replies nobody reads.
    let flood: Vec<u8> = (0..100_000).flat_map(|_| raw(1, 1, &[])).collect();
    for bytes in [raw(1, 1, &[])[..5].to_vec(), raw(2, 1, &[0; 8])[..15].to_vec(), flood] {
        let (mut backend, mut stream) = pair();
        stream.set_nonblocking(true).unwrap();
        let _ = stream.write_all(&bytes);
        std::thread::sleep(Duration::from_millis(10));
        backend.stop.write(1).unwrap();
        assert_eq!(backend.end(), Ended::Stopped);
    }
}

#[test]
fn stop_in_the_middle_of_a_session_drains() {
    let (mut backend, stream) = pair();
    let (memory, mut queue) = guest();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.set_memory(&memory).unwrap();
    frontend.start(0, &queue, 0).unwrap();
    exchange(&mut queue, 1);
    backend.stop.write(1).unwrap();
    assert_eq!(backend.end(), Ended::Stopped);
    assert_eq!(backend.take_log().split_off(2), ["stop 0 at 1", "reset"]);
}

#[test]
fn status_is_kept_and_zero_resets() {
    let (backend, mut stream) = pair();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let mut get = |bytes: Vec<u8>| {
        stream.write_all(&bytes).unwrap();
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).unwrap();
        u64::from_ne_bytes(reply[12..].try_into().unwrap())
    };
    let set = |status: u64| raw(39, 1, &status.to_ne_bytes());
    assert_eq!(get([set(15), raw(40, 1, &[])].concat()), 15);
    assert_eq!(get([set(0), raw(40, 1, &[])].concat()), 0);
    assert_eq!(backend.take_log(), ["reset"]);
}

#[test]
fn stray_descriptors_are_closed() {
    let (_backend, stream) = pair();
    let mut reply = [0; 20];
    let mut ask = || {
        let (probe, other) = UnixStream::pair().unwrap();
        let fds = [other.as_raw_fd(); 20];
        let control = [nix::sys::socket::ControlMessage::ScmRights(&fds)];
        let bytes = raw(1, 1, &[]);
        let iov = [std::io::IoSlice::new(&bytes)];
        let flags = nix::sys::socket::MsgFlags::empty();
        nix::sys::socket::sendmsg::<()>(stream.as_raw_fd(), &iov, &control, flags, None).unwrap();
        drop(other);
        (&stream).read_exact(&mut reply).unwrap();
        probe
    };
    // The other end is closed once the backend has closed its twenty copies, which it does before it replies.
    let mut probe = ask();
    probe.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!(probe.read(&mut [0]).unwrap(), 0);
}

#[test]
fn random_sessions_end_in_order() {
    let mut state = 7u64;
    let mut random = move |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let (mut done, mut refused) = (0, 0);
    for _ in 0..300 {
        let (mut device, log) = toy();
        let mut bytes = Vec::new();
        for _ in 0..40 {
            // Codes and lengths that fit more often than not, values near what makes sense.
            let (code, words, fds) = [
                (2, 2, 0),
                (5, 10, 1),
                (8, 2, 0),
                (9, 10, 0),
                (10, 2, 0),
                (11, 2, 0),
                (12, 2, 1),
                (13, 2, 1),
                (14, 2, 1),
                (16, 2, 0),
                (18, 2, 0),
                (24, 5, 0),
                (25, 5, 0),
                (31, 6, 0),
                (32, 6, 1),
                (34, 0, 0),
                (37, 10, 1),
                (38, 10, 0),
                (39, 2, 0),
                (3, 0, 0),
            ][random(20) as usize];
            let fds = if random(20) == 0 { random(4) } else { fds };
            bytes.extend([code, fds as u8, words * 4, 0]);
            for at in 0..words {
                let value: u32 = match (code, at, random(8)) {
                    (2, 0, 0..6) => RING_FEATURES as u32,
                    (2, 1, 0..6) => (RING_FEATURES >> 32) as u32,
                    (5, 0, _) => 1,
                    (5 | 37, 4, 0..6) => 0x1_0000,
                    (8, 1, 0..6) => 128,
                    (9, 2 | 4 | 6, 0..7) => 0x1000 * u32::from(at),
                    (24 | 25, 1, _) => 8,
                    (31 | 32, 4, _) => 0x80_0002,
                    (32, 0, 0..6) => 0x1_0000,
                    (_, _, 0..4) => 0,
                    (_, _, 4..6) => random(3) as u32,
                    _ => random(1 << 32) as u32,
                };
                bytes.extend(value.to_ne_bytes());
            }
        }
        let descriptor = || {
            let fd = nix::sys::memfd::memfd_create(c"fuzz", nix::sys::memfd::MFdFlags::empty()).unwrap();
            nix::unistd::ftruncate(&fd, 0x1_0000).unwrap();
            fd
        };
        // Kicks and calls would be files here: a memfd cannot be waited for, which the device has to bear.
        let counts = replay(&mut device, &bytes, descriptor);
        done += counts.0;
        refused += counts.1;
        assert!(device.workers.is_empty());
        assert!(device.memory.upgrade().is_none());
        assert_eq!(log.lock().unwrap().last().unwrap(), "reset");
    }
    assert!(done > 3000 && refused > 1000, "{done} done, {refused} refused");
}

#[test]
fn wrong_values_are_refused_one_by_one() {
    let (_backend, stream) = pair();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    for num in [0, 3, 512, 32768] {
        frontend.inner().set_vring_num(0, num).expect_err("queue size");
    }
    frontend.inner().set_vring_num(1, 256).expect_err("beyond that queue's maximum");
    frontend.inner().set_features(1 << 40).expect_err("not offered");
    assert!(frontend.inflight(3, 128).is_err(), "three queues of two");
}

#[test]
fn a_refusal_nobody_hears_of_ends_the_session() {
    let (mut backend, stream) = pair();
    let mut frontend = Frontend::over(stream, RING_FEATURES).unwrap();
    frontend.inner().set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::empty());
    let _ = frontend.inner().set_vring_num(0, 3);
    assert_eq!(backend.end(), Ended::Disconnected);
}
