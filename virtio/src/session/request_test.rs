use std::os::fd::OwnedFd;

use super::*;

fn fd() -> OwnedFd {
    tempfile::tempfile().unwrap().into()
}

fn parse(code: u32, body: &[u8], fds: usize) -> Result<Request, RequestError> {
    let fds = (0..fds).map(|_| fd()).collect();
    Request::parse(Message { code, need_reply: false, body: body.to_vec(), fds })
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// Every request there is: code, a body that is right, the descriptors it needs.
fn right() -> Vec<(u32, Vec<u8>, usize)> {
    vec![
        (1, vec![], 0),
        (2, words(&[1, 2]), 0),
        (3, vec![], 0),
        (4, vec![], 0),
        (5, words(&[&[2, 0][..], &[0; 16]].concat()), 2),
        (8, words(&[0, 256]), 0),
        (9, words(&[0; 10]), 0),
        (10, words(&[0, 0]), 0),
        (11, words(&[0, 0]), 0),
        (12, words(&[0, 0]), 1),
        (13, words(&[0, 0]), 1),
        (14, words(&[0, 0]), 1),
        (15, vec![], 0),
        (16, words(&[0, 0]), 0),
        (17, vec![], 0),
        (18, words(&[0, 1]), 0),
        (21, vec![], 1),
        (24, words(&[0, 8, 0, 0, 0]), 0),
        (25, words(&[0, 8, 0, 0, 0]), 0),
        (31, words(&[0, 0, 0, 0, 0x80_0001, 0]), 0),
        (32, words(&[0, 0, 0, 0, 0x80_0001]), 1),
        (34, vec![], 0),
        (36, vec![], 0),
        (37, words(&[0; 10]), 1),
        (38, words(&[0; 10]), 0),
        (39, words(&[0, 0]), 0),
        (40, vec![], 0),
    ]
}

#[test]
fn every_request_is_understood_and_no_other_length_is() {
    for (code, body, fds) in right() {
        parse(code, &body, fds).unwrap_or_else(|error| panic!("{code}: {error}"));
        let mut longer = body.clone();
        longer.push(0);
        assert!(parse(code, &longer, fds).is_err(), "{code}: a byte more");
        if !body.is_empty() {
            assert!(parse(code, &body[1..], fds).is_err(), "{code}: a byte less");
            assert!(parse(code, &[], fds).is_err(), "{code}: nothing");
        }
        if fds > 0 {
            assert!(parse(code, &body, fds - 1).is_err(), "{code}: a descriptor less");
            assert!(parse(code, &body, fds + 1).is_err(), "{code}: a descriptor more");
        } else {
            assert!(parse(code, &body, 1).is_ok(), "{code}: a stray descriptor is closed");
        }
    }
}

#[test]
fn codes_of_others_are_not_known() {
    for code in [0, 6, 7, 19, 20, 22, 23, 26, 27, 28, 29, 30, 33, 35, 41, 42, 43, 44, 45, 0xffff_ffff] {
        assert!(matches!(parse(code, &[], 0), Err(RequestError::Unknown(c)) if c == code), "{code}");
    }
}

#[test]
fn values_outside_the_specification_are_refused() {
    for (code, body, fds) in [
        (18, words(&[0, 2]), 0),
        (9, words(&[&[0, 1][..], &[0; 8]].concat()), 0), // a dirty log, which is not offered
        (12, words(&[0x200, 0]), 1),
        (12, words(&[0, 1]), 1),
        (5, words(&[0, 0]), 0),
        (5, words(&[33, 0]), 0),
        (5, words(&[u32::MAX, 0]), 0),
        (24, words(&[0, u32::MAX, 0]), 0),
    ] {
        assert!(parse(code, &body, fds).is_err(), "{code} {body:?}");
    }
}

#[test]
fn bit_8_says_there_is_no_descriptor() {
    let with = parse(12, &words(&[3, 0]), 1).unwrap();
    assert!(matches!(with, Request::SetVringKick { index: 3, fd: Some(_) }));
    let without = parse(12, &words(&[0x103, 0]), 0).unwrap();
    assert!(matches!(without, Request::SetVringKick { index: 3, fd: None }));
}

#[test]
fn fields_come_out_where_they_went_in() {
    let bytes: Vec<u8> = (0..40).collect();
    let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
    let Request::AddMemReg(region) = parse(37, &bytes, 1).unwrap() else { panic!() };
    assert_eq!(
        [region.gpa, region.size, region.user_addr, region.fd_offset],
        [u64_at(8), u64_at(16), u64_at(24), u64_at(32)]
    );
    let mut body = bytes.clone();
    body.splice(0..8, words(&[1, 0]));
    let Request::SetVringAddr { index: 1, addresses } = parse(9, &body, 0).unwrap() else { panic!() };
    assert_eq!([addresses.desc, addresses.used, addresses.avail], [u64_at(8), u64_at(16), u64_at(24)]);
    let Request::SetInflightFd { len, offset, queues, size, .. } = parse(32, &bytes[..20], 1).unwrap() else {
        panic!()
    };
    assert_eq!((len, offset, queues, size), (u64_at(0), u64_at(8), 0x1110, 0x1312));
}

#[test]
fn random_bytes_never_panic() {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    for _ in 0..100_000 {
        let body: Vec<u8> = (0..random() % 80).map(|_| random() as u8 & 3).collect();
        let _ = parse((random() % 50) as u32, &body, 0);
    }
}
