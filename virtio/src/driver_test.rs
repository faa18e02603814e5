use std::sync::Arc;

use super::*;
use crate::spec::RING_FEATURES;

fn queue(size: u16) -> DriverQueue {
    let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
    DriverQueue::new(&memory, 0x1000, size, RING_FEATURES).unwrap()
}

/// Answers `head` the way a device would, without one.
fn answer(queue: &mut DriverQueue, used: u16, head: u16) {
    let [.., at] = queue.addresses();
    let slot = u64::from(used % queue.size());
    queue.memory().write_obj(at + 4 + slot * 8, u32::from(head)).unwrap();
    queue.memory().write_obj(at + 2, used + 1).unwrap();
}

#[test]
fn descriptors_come_back_in_any_order() {
    let mut queue = queue(8);
    let buf = Buf::writable(0x8000, 1);
    let heads: Vec<u16> = [3, 1, 4].map(|n| queue.add(&vec![buf; n]).unwrap()).into();
    assert_eq!(queue.free(), 0);
    assert_eq!(queue.add(&[buf]), None);
    for (used, at) in (0u16..).zip([1, 2, 0]) {
        answer(&mut queue, used, heads[at]);
        assert_eq!(queue.poll().map(|(head, _)| head), Some(heads[at]));
    }
    assert_eq!(queue.free(), 8);
    // All eight in one chain: no descriptor is in it twice.
    let head = queue.add(&[buf; 8]).unwrap();
    let [desc, ..] = queue.addresses();
    let mut at = head;
    let mut seen = vec![head];
    while queue.memory().read_obj::<u16>(desc + u64::from(at) * 16 + 12).unwrap() & DESC_NEXT != 0 {
        at = queue.memory().read_obj(desc + u64::from(at) * 16 + 14).unwrap();
        seen.push(at);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..8).collect::<Vec<_>>());
}

#[test]
fn a_footprint_holds_the_whole_ring() {
    for size in [1, 2, 8, 256, 32768] {
        let memory = Arc::new(Memory::anonymous(0x1000 + footprint(size)).unwrap());
        DriverQueue::new(&memory, 0x1000, size, RING_FEATURES).unwrap();
        let memory = Arc::new(Memory::anonymous(0x1000 + footprint(size) - 1).unwrap());
        assert!(DriverQueue::new(&memory, 0x1000, size, RING_FEATURES).is_err(), "{size}");
    }
}

#[test]
fn nothing_is_no_request() {
    assert_eq!(queue(8).add(&[]), None);
    assert_eq!(queue(8).poll(), None);
    assert_eq!(queue(8).wait(Duration::from_millis(1)), None);
}
