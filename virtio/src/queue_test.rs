use super::*;
use crate::driver::{Buf, DriverQueue};
use crate::spec::{F_EVENT_IDX, F_VERSION_1, RING_FEATURES};
use crate::trace::{Access, Field, record};

const N: u16 = 8;
const DATA: u64 = 0x1_0000;
const PLAIN: u64 = F_VERSION_1;

fn pair(features: u64) -> (DriverQueue, Queue) {
    let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0x1000, N, features).unwrap();
    let queue = Queue::new(&driver.setup(0, 0).unwrap()).unwrap();
    (driver, queue)
}

fn post(driver: &mut DriverQueue) -> u16 {
    driver.add(&[Buf::readable(DATA, 16), Buf::writable(DATA + 64, 64)]).unwrap()
}

fn take(queue: &mut Queue) -> u16 {
    let mut chain = Chain::new();
    assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)));
    chain.head()
}

#[test]
fn requests_go_round_the_ring_many_times() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    let mut chain = Chain::new();
    // More than 65536, so that the free-running indices wrap.
    for round in 0..70_000u32 {
        let head = post(&mut driver);
        assert!(matches!(queue.pop(&mut chain), Ok(Popped::Empty)), "not yet published");
        driver.publish();
        assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)));
        assert_eq!(chain.head(), head);
        assert_eq!((chain.readable_len(), chain.writable_len()), (16, 64));
        assert!(queue.push(head, round));
        assert_eq!(driver.poll(), None, "not yet published");
        queue.publish();
        assert_eq!(driver.poll(), Some((head, round)));
    }
    assert_eq!(queue.base(), (70_000u32 % 65_536) as u16);
    assert_eq!(queue.in_flight(), 0);
}

#[test]
fn a_setup_that_cannot_be_is_refused() {
    let memory = Arc::new(Memory::anonymous(0x1_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0x1000, N, RING_FEATURES).unwrap();
    type Case = (&'static str, fn(&mut QueueSetup), fn(&RingError) -> bool);
    let cases: [Case; 10] = [
        ("size 0", |s| s.size = 0, |e| matches!(e, RingError::Size { size: 0 })),
        ("size 3", |s| s.size = 3, |e| matches!(e, RingError::Size { size: 3 })),
        ("size 65535", |s| s.size = 65535, |e| matches!(e, RingError::Size { .. })),
        ("desc at 8", |s| s.desc = 8, |e| matches!(e, RingError::Misaligned { align: 16, .. })),
        ("avail at 1", |s| s.avail = 1, |e| matches!(e, RingError::Misaligned { align: 2, .. })),
        ("used at 2", |s| s.used = 2, |e| matches!(e, RingError::Misaligned { align: 4, .. })),
        ("desc past the end", |s| s.desc = 0xff90, |e| matches!(e, RingError::Outside { .. })),
        ("avail past the end", |s| s.avail = 0x1_0000 - 20, |e| matches!(e, RingError::Outside { .. })),
        ("used past the end", |s| s.used = 0x1_0000 - 68, |e| matches!(e, RingError::Outside { .. })),
        ("used wraps", |s| s.used = u64::MAX - 3, |e| matches!(e, RingError::Outside { .. })),
    ];
    for (name, change, expected) in cases {
        let mut setup = driver.setup(0, 0).unwrap();
        change(&mut setup);
        let error = Queue::new(&setup).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
    }
    // Without EVENT_IDX there is no event field behind the rings.
    let mut setup = driver.setup(0, 0).unwrap();
    setup.features = PLAIN;
    (setup.avail, setup.used) = (0x1_0000 - 20, 0x1_0000 - 128);
    Queue::new(&setup).unwrap();
}

#[test]
fn a_region_shifted_against_its_pages_gives_no_misaligned_pointers() {
    let fd = tempfile::tempfile().unwrap();
    fd.set_len(0x1_0000).unwrap();
    let spec =
        crate::memory::RegionSpec { gpa: 0, size: 0x8000, user_addr: 0, fd: fd.into(), fd_offset: 0x1001 };
    let memory = Arc::new(Memory::new(vec![spec]).unwrap());
    let plain = Arc::new(Memory::anonymous(0x8000).unwrap());
    let mut setup = DriverQueue::new(&plain, 0x1000, N, RING_FEATURES).unwrap().setup(0, 0).unwrap();
    setup.memory = memory;
    assert!(matches!(Queue::new(&setup), Err(RingError::Misaligned { .. })));
}

#[test]
fn a_broken_ring_is_an_error_for_good() {
    type Case = (&'static str, fn(&Memory, [u64; 3]), fn(&RingError) -> bool);
    let cases: [Case; 5] = [
        (
            "jump ahead",
            |m, [_, avail, _]| m.write_obj(avail + 2, N + 1).unwrap(),
            |e| matches!(e, RingError::AvailJump { from: 0, to: 9, size: 8 }),
        ),
        (
            "jump back",
            |m, [_, avail, _]| m.write_obj(avail + 2, u16::MAX).unwrap(),
            |e| matches!(e, RingError::AvailJump { to: u16::MAX, .. }),
        ),
        (
            "head outside",
            |m, [_, avail, _]| m.write_at(avail + 2, &[1, 0, 8, 0]).unwrap(),
            |e| matches!(e, RingError::HeadOutOfRange { head: 8, size: 8 }),
        ),
        (
            "head far outside",
            |m, [_, avail, _]| m.write_at(avail + 2, &[1, 0, 0xff, 0xff]).unwrap(),
            |e| matches!(e, RingError::HeadOutOfRange { head: 0xffff, .. }),
        ),
        (
            "head twice",
            |m, [_, avail, _]| m.write_at(avail + 2, &[2, 0, 3, 0, 3, 0]).unwrap(),
            |e| matches!(e, RingError::HeadTwice { head: 3 }),
        ),
    ];
    for (name, damage, expected) in cases {
        let (driver, mut queue) = pair(RING_FEATURES);
        damage(driver.memory(), driver.addresses());
        let mut chain = Chain::new();
        let error = (0..3).find_map(|_| queue.pop(&mut chain).err()).expect(name);
        assert!(expected(&error), "{name}: {error}");
        assert!(queue.is_broken());
        assert!(!queue.has_work(), "{name}: nobody may spin on it");
        assert!(!queue.arm_kicks());
        // Repaired by the driver: still broken.
        driver.memory().write_obj(driver.addresses()[1] + 2, 0u16).unwrap();
        assert!(matches!(queue.pop(&mut chain), Err(RingError::Broken)));
    }
}

#[test]
fn a_malformed_chain_gives_its_head_to_be_answered() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    let good = post(&mut driver);
    let bad = driver.add(&[Buf::readable(u64::MAX, 16)]).unwrap();
    let last = post(&mut driver);
    driver.publish();
    assert_eq!(take(&mut queue), good);
    let mut chain = Chain::new();
    let popped = queue.pop(&mut chain).unwrap();
    assert!(matches!(popped, Popped::Malformed { head, .. } if head == bad), "{popped:?}");
    assert!(queue.push(bad, 0));
    assert_eq!(take(&mut queue), last);
    queue.publish();
    assert_eq!(driver.poll(), Some((bad, 0)));
}

#[test]
fn only_what_was_taken_can_be_answered() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    let head = post(&mut driver);
    driver.publish();
    assert!(!queue.push(head, 1));
    assert!(!queue.push(0xffff, 1));
    assert_eq!(take(&mut queue), head);
    assert!(queue.push(head, 1));
    assert!(!queue.push(head, 1), "answered twice");
    assert!(queue.publish());
    assert!(!queue.publish(), "nothing new");
    assert_eq!(driver.poll(), Some((head, 1)));
    assert_eq!(driver.poll(), None);
}

#[test]
fn unpop_puts_requests_back_last_one_first() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    let heads = [post(&mut driver), post(&mut driver), post(&mut driver)];
    driver.publish();
    let mut chains: Vec<Chain> = heads.iter().map(|_| Chain::new()).collect();
    for chain in &mut chains {
        assert!(matches!(queue.pop(chain), Ok(Popped::Chain)));
    }
    queue.unpop(&chains[2]);
    queue.unpop(&chains[1]);
    queue.unpop(&chains[1]); // a second time changes nothing
    assert_eq!((queue.base(), queue.in_flight()), (1, 1));
    assert!(queue.has_work());
    assert_eq!([take(&mut queue), take(&mut queue)], [heads[1], heads[2]]);
}

#[test]
fn the_avail_index_is_read_once_per_batch() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    for _ in 0..4 {
        post(&mut driver);
    }
    driver.publish();
    let accesses = record(|| {
        for _ in 0..4 {
            take(&mut queue);
        }
    });
    assert_eq!(accesses, [Access::Load(Field::AvailIdx)]);
    let shown = record(|| {
        (0..4).for_each(|i| assert!(queue.push(i * 2, 0)));
        queue.publish();
    });
    assert_eq!(shown.iter().filter(|a| **a == Access::Store(Field::UsedIdx)).count(), 1);
}

#[test]
fn event_idx_asks_for_exactly_one_kick_per_sleep() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    assert!(!queue.arm_kicks());
    post(&mut driver);
    assert!(driver.kick(), "armed");
    post(&mut driver);
    assert!(!driver.kick(), "passed already");
    assert!(queue.arm_kicks(), "work is there: no sleep");
    take(&mut queue);
    take(&mut queue);
    queue.suppress_kicks();
    post(&mut driver);
    assert!(!driver.kick(), "polled");
    take(&mut queue);
    assert!(!queue.arm_kicks());
    post(&mut driver);
    assert!(driver.kick());
}

#[test]
fn a_ring_can_begin_without_a_kick() {
    for features in [RING_FEATURES, PLAIN] {
        let (mut driver, mut queue) = pair(features);
        queue.suppress_first_kick();
        post(&mut driver);
        post(&mut driver);
        assert!(!driver.kick(), "nobody asked");
        assert!(queue.arm_kicks());
    }
}

#[test]
fn without_event_idx_flags_say_it() {
    let (mut driver, mut queue) = pair(PLAIN);
    post(&mut driver);
    assert!(driver.kick(), "flags start clear");
    queue.suppress_kicks();
    post(&mut driver);
    assert!(!driver.kick());
    assert!(queue.arm_kicks());
    post(&mut driver);
    assert!(driver.kick());
    // Calls: always unless the driver says no.
    for _ in 0..2 {
        let head = take(&mut queue);
        queue.push(head, 0);
        assert!(queue.publish());
    }
    driver.suppress_calls();
    let head = take(&mut queue);
    queue.push(head, 0);
    assert!(!queue.publish());
}

#[test]
fn event_idx_calls_when_the_index_passes_the_event() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    let mut answer = |driver: &mut DriverQueue| {
        post(driver);
        driver.publish();
        let head = take(&mut queue);
        queue.push(head, 0);
        let call = queue.publish();
        driver.poll().unwrap();
        call
    };
    assert!(answer(&mut driver), "the first after a start always calls");
    driver.suppress_calls();
    assert!(!answer(&mut driver));
    assert!(!answer(&mut driver));
    assert!(!driver.arm_calls());
    assert!(answer(&mut driver));
    assert!(!answer(&mut driver));
}

#[test]
fn passed_agrees_with_counting() {
    // The event is passed if it is among the indices old, old + 1, ..., new - 1.
    for old in [0u16, 5, 65_530, 65_535] {
        for step in 0..20u16 {
            let new = old.wrapping_add(step);
            for event in (0..40).map(|i| old.wrapping_sub(10).wrapping_add(i)) {
                let counted = (0..step).any(|i| old.wrapping_add(i) == event);
                assert_eq!(passed(event, new, old), counted, "event {event}, {old} to {new}");
            }
        }
    }
}

#[test]
fn a_restart_goes_on_where_the_stop_left() {
    let (mut driver, mut queue) = pair(RING_FEATURES);
    let first = post(&mut driver);
    let second = post(&mut driver);
    driver.publish();
    assert_eq!(take(&mut queue), first);
    queue.push(first, 0);
    queue.publish();
    let base = queue.base();
    drop(queue);
    let mut queue = Queue::new(&driver.setup(0, base).unwrap()).unwrap();
    assert_eq!(take(&mut queue), second);
    queue.push(second, 7);
    assert!(queue.publish(), "the driver may be asleep since before the restart");
    assert_eq!((driver.poll(), driver.poll()), (Some((first, 0)), Some((second, 7))));
}

#[test]
fn event_idx_without_the_feature_reads_no_event_field() {
    let (mut driver, mut queue) = pair(PLAIN);
    assert_eq!(driver.setup(0, 0).unwrap().features & F_EVENT_IDX, 0);
    post(&mut driver);
    driver.publish();
    let head = take(&mut queue);
    let loads = record(|| {
        queue.push(head, 0);
        queue.publish();
    });
    assert!(loads.contains(&Access::Load(Field::CallWish)));
}
