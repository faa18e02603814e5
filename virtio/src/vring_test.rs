use std::sync::Arc;

use super::*;
use crate::driver::{Buf, DriverQueue};
use crate::memory::Memory;
use crate::spec::RING_FEATURES;

const DATA: u64 = 0x1_0000;

fn pair() -> (DriverQueue, Vring) {
    let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0x1000, 8, RING_FEATURES).unwrap();
    let vring = Vring::new(driver.setup(3, 0).unwrap()).unwrap();
    (driver, vring)
}

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
