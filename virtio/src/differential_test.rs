//! The same random rings, served by ours and by the `virtio-queue` crate: same requests, same used rings, same
//! wishes.

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue as Other, QueueT};
use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::chain::{Chain, ChainError};
use crate::device::QueueSetup;
use crate::memory::Memory;
use crate::queue::{Popped, Queue};
use crate::spec::{DESC_WRITE, RING_FEATURES};

const N: u16 = 16;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const SIZE: u64 = 0x1_0000;

/// A small generator (xorshift64*), so that every run sees the same rings.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn often(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// Writes a descriptor that makes sense most of the time.
fn scatter(memory: &Memory, random: &mut Random, table: u64, index: u64, count: u64, indirect: bool) {
    let at = table + index * 16;
    let wild = random.often(3);
    let is_table = indirect && random.often(20);
    let (addr, len) = match (wild, is_table) {
        (true, _) => (random.next() >> random.below(64), random.next() as u32),
        (_, true) => {
            (TABLES + random.below(64) * 0x100, (random.below(8) * 16 + random.below(20) / 19) as u32)
        }
        _ => (0x8000 + random.below(0x8000), random.below(0x100) as u32),
    };
    let mut flags = u16::from(random.often(50)) | if random.often(40) { DESC_WRITE } else { 0 };
    if is_table {
        flags = 4 | u16::from(random.often(5));
    }
    let next = if random.often(97) { (index + 1) % count } else { random.below(count + 2) };
    memory.write_obj(at, addr).unwrap();
    memory.write_obj(at + 8, len).unwrap();
    memory.write_obj(at + 12, flags).unwrap();
    memory.write_obj(at + 14, next as u16).unwrap();
}

fn memory(random: &mut Random) -> Arc<Memory> {
    let memory = Memory::anonymous(SIZE).unwrap();
    for i in 0..u64::from(N) {
        scatter(&memory, random, DESC, i, N.into(), true);
    }
    for table in 0..64 {
        for i in 0..8 {
            let nested = random.often(2);
            scatter(&memory, random, TABLES + table * 0x100, i, 8, nested);
        }
    }
    Arc::new(memory)
}

fn ours(memory: &Arc<Memory>) -> Queue {
    Queue::new(&QueueSetup {
        index: 0,
        size: N,
        desc: DESC,
        avail: AVAIL,
        used: USED,
        features: RING_FEATURES,
        base: 0,
        kick: None,
        call: None,
        err: None,
        memory: Arc::clone(memory),
        inflight: None,
        inherited: false,
    })
    .unwrap()
}

fn theirs(memory: &Memory) -> Other {
    let mut queue = Other::new(N).unwrap();
    queue.set_size(N);
    queue.set_desc_table_address(Some(DESC as u32), Some(0));
    queue.set_avail_ring_address(Some(AVAIL as u32), Some(0));
    queue.set_used_ring_address(Some(USED as u32), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    assert!(queue.is_valid(memory));
    queue
}

/// Host address, length, direction of each buffer of a chain that makes sense, as the crate walks it.
fn walk(memory: &Memory, chain: impl Iterator<Item = Descriptor>) -> Vec<(usize, usize, bool)> {
    chain
        .filter(|desc| desc.len() > 0)
        .map(|desc| {
            let host = GuestMemoryBackend::get_host_address(memory, GuestAddress(desc.addr().0)).unwrap();
            (host as usize, desc.len() as usize, desc.is_write_only())
        })
        .collect()
}

fn flat(chain: &Chain) -> Vec<(usize, usize, bool)> {
    let side = |list: &[crate::memory::IoSlice], write| {
        list.iter().map(|piece| (piece.as_ptr() as usize, piece.len(), write)).collect::<Vec<_>>()
    };
    [side(chain.readable(), false), side(chain.writable(), true)].concat()
}

fn image(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; 6 + usize::from(N) * 8];
    memory.read_at(USED, &mut bytes).unwrap();
    bytes
}

#[test]
fn random_rings_are_served_alike() {
    let (mut good, mut bad) = (0u32, 0u32);
    for seed in 1..400u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Two copies of the same guest: one each, since both write.
        let mine = memory(&mut random);
        let yours = Memory::anonymous(SIZE).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        mine.read_at(0, &mut bytes).unwrap();
        yours.write_at(0, &bytes).unwrap();

        let (mut queue, mut other) = (ours(&mine), theirs(&yours));
        let mut chain = Chain::new();
        let (mut avail, mut answered) = (0u16, 0u16);
        for _ in 0..60 {
            let posted = random.below(4) as u16;
            for i in 0..posted {
                // No head twice before its answer: the crate does not mind, ours does.
                let head = avail.wrapping_add(i) % N;
                for memory in [&*mine, &yours] {
                    memory.write_obj(AVAIL + 4 + u64::from(avail.wrapping_add(i) % N) * 2, head).unwrap();
                }
            }
            avail = avail.wrapping_add(posted);
            let event = random.below(20) as u16;
            for memory in [&*mine, &yours] {
                memory.write_obj(AVAIL + 2, avail).unwrap();
                memory.write_obj(AVAIL + 4 + u64::from(N) * 2, answered.wrapping_add(event)).unwrap();
            }
            for _ in 0..posted {
                let theirs = other.pop_descriptor_chain(&yours).unwrap();
                let head = match queue.pop(&mut chain).unwrap() {
                    Popped::Empty => panic!("seed {seed}: theirs found a request"),
                    Popped::Chain => {
                        good += 1;
                        let expected = walk(&yours, theirs.clone());
                        // Same offsets; the two memories lie at different addresses.
                        let base = |m: &Memory| m.slice(0, 1).unwrap().as_ptr() as usize;
                        let shift = |list: Vec<(usize, usize, bool)>, base: usize| {
                            list.into_iter().map(|(at, len, w)| (at - base, len, w)).collect::<Vec<_>>()
                        };
                        assert_eq!(
                            shift(flat(&chain), base(&mine)),
                            shift(expected, base(&yours)),
                            "seed {seed}"
                        );
                        chain.head()
                    }
                    Popped::Malformed { head, why } => {
                        bad += 1;
                        check_malformed(&yours, theirs.clone(), &why);
                        head
                    }
                };
                assert_eq!(head, theirs.head_index());
                let len = random.next() as u32;
                assert!(queue.push(head, len));
                other.add_used(&yours, head, len).unwrap();
                answered = answered.wrapping_add(1);
            }
            if posted > 0 {
                let calls = [queue.publish(), other.needs_notification(&yours).unwrap()];
                // Ours always calls the first time, see `Queue::called`.
                assert_eq!(calls[0], calls[1] || answered == posted, "seed {seed}");
            }
            let more = other.enable_notification(&yours).unwrap();
            assert_eq!(queue.arm_kicks(), more);
            assert_eq!(image(&mine), image(&yours), "seed {seed}");
            assert_eq!(other.used_idx(&*mine, Ordering::Relaxed).unwrap(), Wrapping(answered));
        }
    }
    assert!(good > 10_000 && bad > 1_000, "{good} good, {bad} bad: a poor mixture");
}

/// What ours refuses, the crate either ends early without a word or hands out as it is.
fn check_malformed(memory: &Memory, chain: virtio_queue::DescriptorChain<&Memory>, why: &ChainError) {
    let descs: Vec<Descriptor> = chain.take(usize::from(N) + 100).collect();
    let ended = descs.last().is_some_and(|last| !last.has_next() && !last.refers_to_indirect_table());
    match why {
        // These are not checked there; ours has a reason to refuse each.
        ChainError::Memory(_) => assert!(
            !ended
                || descs.iter().any(|desc| {
                    memory.segments(desc.addr().0, desc.len() as usize, 9, &mut Vec::new()).is_err()
                })
        ),
        ChainError::Order => {
            assert!(descs.windows(2).any(|pair| pair[0].is_write_only() && !pair[1].is_write_only()))
        }
        ChainError::TooLarge { .. } => {
            assert!(descs.iter().map(|desc| u64::from(desc.len())).sum::<u64>() > u64::from(u32::MAX));
        }
        ChainError::IndirectContinued => {}
        _ => assert!(!ended, "{why}: {descs:?}"),
    }
}
