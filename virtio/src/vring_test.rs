use std::sync::Arc;

use super::*;
use crate::driver::{Buf, DriverQueue};
use crate::memory::Memory;
use crate::spec::{F_VERSION_1, RING_FEATURES};

const DATA: u64 = 0x1_0000;

fn pair() -> (DriverQueue, Vring) {
    pair_of(RING_FEATURES, 8)
}

fn pair_of(features: u64, size: u16) -> (DriverQueue, Vring) {
    let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0x1000, size, features).unwrap();
    let vring = Vring::new(driver.setup(3, 0).unwrap()).unwrap();
    (driver, vring)
}

/// The driver asks for `count` things, and the device answers them.
fn round(driver: &mut DriverQueue, vring: &mut Vring, count: u16) {
    for _ in 0..count {
        driver.add(&[Buf::writable(DATA, 8)]).unwrap();
    }
    driver.publish();
    let mut chain = Chain::new();
    while vring.next(&mut chain) {
        vring.push(chain.head(), 8);
    }
    assert!(vring.flush());
}

const LONG: Duration = Duration::from_secs(3600);

#[test]
fn malformed_requests_are_answered_on_the_way() {
    let (mut driver, mut vring) = pair();
    let bad = driver.add(&[Buf::readable(u64::MAX, 1)]).unwrap();
    let good = driver.add(&[Buf::readable(DATA, 1)]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert!(vring.next(&mut chain));
    assert_eq!(chain.head(), good);
    assert!(!vring.next(&mut chain));
    assert!(vring.flush(), "the refusal is shown though nothing else was answered");
    assert_eq!(driver.poll(), Some((bad, 0)));
    assert_eq!((vring.stats().requests.get(), vring.stats().malformed.get()), (1, 1));
    assert!(!driver.take_error());
}

#[test]
fn a_broken_ring_writes_err_once_and_has_no_more() {
    let (mut driver, mut vring) = pair();
    driver.add(&[Buf::readable(DATA, 1)]).unwrap();
    driver.memory().write_obj(driver.addresses()[1] + 2, 100u16).unwrap();
    let mut chain = Chain::new();
    assert!(!vring.next(&mut chain));
    assert!(driver.take_error());
    assert!(!vring.next(&mut chain));
    assert!(!driver.take_error());
    assert!(!vring.queue().has_work());
    assert_eq!(vring.state().base, 0);
}

#[test]
fn a_batch_is_one_call_and_a_polling_driver_gets_none() {
    let (mut driver, mut vring) = pair();
    let mut chain = Chain::new();
    let mut round = |driver: &mut DriverQueue| {
        for _ in 0..3 {
            driver.add(&[Buf::writable(DATA, 8)]).unwrap();
        }
        driver.publish();
        while vring.next(&mut chain) {
            vring.push(chain.head(), 8);
        }
        assert!(vring.flush());
        assert!(!vring.flush(), "nothing left to show");
        while driver.poll().is_some() {}
        driver.take_call()
    };
    assert!(round(&mut driver));
    driver.suppress_calls();
    assert!(!round(&mut driver));
    driver.arm_calls();
    assert!(round(&mut driver));
    assert_eq!(vring.stats().calls.get(), 2);
    assert_eq!(vring.stats().batches.get(), 3);
}

#[test]
fn answers_shown_early_still_owe_their_call() {
    let (mut driver, mut vring) = pair();
    driver.add(&[Buf::writable(DATA, 8)]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert!(vring.next(&mut chain));
    vring.push(chain.head(), 8);
    assert!(vring.show());
    assert!(driver.poll().is_some());
    assert!(!driver.take_call());
    assert!(!vring.flush(), "shown already");
    assert!(driver.take_call());
}

#[test]
fn a_call_put_off_is_made_when_its_time_is_over_and_the_answers_are_there_before() {
    for features in [RING_FEATURES, F_VERSION_1] {
        let (mut driver, vring) = pair_of(features, 8);
        let mut vring = vring.calling_within(LONG);
        round(&mut driver, &mut vring, 2);
        assert!(!vring.call_is_due() && !driver.take_call());
        vring.call_now();
        assert!(driver.take_call(), "not slept over");
        assert!(driver.poll().is_some() && driver.poll().is_some());

        let (mut driver, vring) = pair_of(features, 8);
        let mut vring = vring.calling_within(Duration::from_nanos(1));
        round(&mut driver, &mut vring, 2);
        while !driver.take_call() {
            vring.flush();
        }
        assert!(!vring.call_is_due() && vring.stats().calls.get() == 1);
    }
}

#[test]
fn a_driver_that_has_seen_the_answers_meanwhile_is_not_called_for_them() {
    for features in [RING_FEATURES, F_VERSION_1] {
        let (mut driver, vring) = pair_of(features, 8);
        let mut vring = vring.calling_within(LONG);
        round(&mut driver, &mut vring, 3);
        while driver.poll().is_some() {}
        if features == RING_FEATURES {
            assert!(!driver.arm_calls(), "it waits for the next one");
        } else {
            driver.suppress_calls();
        }
        vring.call_now();
        assert!(!driver.take_call());
        driver.arm_calls();
        // What comes next is called for, also while the call before is still put off.
        round(&mut driver, &mut vring, 1);
        round(&mut driver, &mut vring, 1);
        vring.call_now();
        assert!(driver.take_call());
    }
}

#[test]
fn a_call_is_for_all_answers_since_it_was_first_owed() {
    let (mut driver, vring) = pair_of(RING_FEATURES, 8);
    let mut vring = vring.calling_within(LONG);
    // The driver waits for the first and asks for nothing in between.
    (0..3).for_each(|_| round(&mut driver, &mut vring, 1));
    vring.call_now();
    assert!(driver.take_call());
    vring.call_now();
    assert!(!driver.take_call(), "once");
}

#[test]
fn many_answers_are_not_kept_waiting() {
    let (mut driver, vring) = pair_of(RING_FEATURES, 128);
    let mut vring = vring.calling_within(LONG);
    round(&mut driver, &mut vring, MOST_UNCALLED - 1);
    assert!(!driver.take_call());
    round(&mut driver, &mut vring, 1);
    assert!(driver.take_call());
}

#[test]
fn a_call_descriptor_is_no_file() {
    let (driver, _) = pair();
    let mut setup = driver.setup(0, 0).unwrap();
    // Whoever serves the file would say when a write to it ends.
    setup.call = Some(tempfile::tempfile().unwrap().into());
    assert!(matches!(Vring::new(setup), Err(StartError::Resource { what: "an eventfd", .. })));
}

#[test]
fn a_full_call_descriptor_does_not_block() {
    let (mut driver, _) = pair();
    // A pipe instead of an eventfd, blocking and full: a peer's idea of a trap.
    let (_reader, writer) = nix::unistd::pipe().unwrap();
    let mut setup = driver.setup(0, 0).unwrap();
    setup.call = Some(writer.try_clone().unwrap());
    let mut vring = Vring::new(setup).unwrap();
    while nix::unistd::write(&writer, &[0; 4096]).is_ok() {}
    driver.add(&[Buf::writable(DATA, 8)]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert!(vring.next(&mut chain));
    vring.push(chain.head(), 8);
    assert!(vring.flush());
    assert_eq!(vring.stats().calls.get(), 1);
}
