//! Over a pair of datagram sockets, which keep frames apart as a tap does.
#![allow(unsafe_code)] // lends its own buffers to the kernel

use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;

use super::*;

fn batches() -> (UnixDatagram, Vec<Batch>) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_nonblocking(true).unwrap();
    let ring = Batch::new(theirs.as_fd()).unwrap();
    if !ring.has_ring() {
        eprintln!("skipped: no io_uring here, only system calls are tried");
    }
    (ours, vec![Batch::plain(theirs.as_fd()).unwrap(), ring])
}

#[test]
fn frames_go_out_in_order_and_each_has_its_result() {
    let (ours, batches) = batches();
    for mut batch in batches {
        let mut frames: Vec<Vec<u8>> = (0..DEPTH).map(|n| vec![n as u8; 10 + n]).collect();
        let mut scatter = Scatter::default();
        for frame in &mut frames {
            // In two pieces, every other one.
            let cut = if frame.len() % 2 == 0 { 5 } else { 0 };
            let (first, second) = frame.split_at_mut(cut);
            if !first.is_empty() {
                scatter.own(first);
            }
            scatter.own(second);
            scatter.end();
        }
        let mut results = Vec::new();
        // SAFETY: the frames outlive the call.
        unsafe { batch.write(&scatter, &mut results) };
        assert_eq!(results, (0..DEPTH).map(|n| 10 + n as i32).collect::<Vec<_>>());
        for frame in &frames {
            let mut got = [0; 200];
            let len = ours.recv(&mut got).unwrap();
            assert_eq!(&got[..len], frame);
        }
    }
}

#[test]
fn reads_take_what_there_is_and_do_not_wait() {
    let (ours, batches) = batches();
    for mut batch in batches {
        for n in 0..10u8 {
            ours.send(&[n; 30]).unwrap();
        }
        let mut buffers = vec![vec![0xee; 20]; DEPTH];
        let mut behind = vec![vec![0xee; 20]; DEPTH];
        let mut scatter = Scatter::default();
        for (buffer, behind) in buffers.iter_mut().zip(&mut behind) {
            scatter.own(buffer);
            scatter.own(behind);
            scatter.end();
        }
        let mut results = Vec::new();
        // SAFETY: the buffers outlive the call.
        unsafe { batch.read(&scatter, &mut results) };
        let expected: Vec<i32> = (0..DEPTH).map(|n| if n < 10 { 30 } else { -libc::EAGAIN }).collect();
        assert_eq!(results, expected);
        for n in 0..10u8 {
            assert_eq!(buffers[n as usize], [n; 20]);
            assert_eq!(behind[n as usize][..10], [n; 10]);
            assert_eq!(behind[n as usize][10..], [0xee; 10]);
        }
    }
}

/// The ring serves nothing but reads and writes of its one file.
#[test]
fn a_ring_is_restricted() {
    let (ours, batches) = batches();
    let Some(mut ring) = batches.into_iter().find_map(|batch| batch.ring) else { return };
    let mut value = [0u8; 4];
    let other = ours.as_fd().as_raw_fd();
    let entries = [
        opcode::Nop::new().build(),
        opcode::Read::new(types::Fd(other), value.as_mut_ptr(), 4).build(),
        opcode::Accept::new(TAP, std::ptr::null_mut(), std::ptr::null_mut()).build(),
        opcode::Close::new(TAP).build(),
    ];
    for entry in entries {
        // SAFETY: the buffer outlives the call.
        unsafe { ring.submission().push(&entry) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let done = ring.completion().next().unwrap();
        assert_eq!(done.result(), -libc::EACCES, "{entry:?}");
    }
    assert!(ring.submitter().register_files(&[other]).is_err(), "and its files cannot be changed");
}
