//! Shows that no wake-up is lost between the two sides of a ring: takes the order of accesses that the real code
//! makes, and tries every interleaving of both sides on a machine with store buffers (x86-TSO: a store becomes
//! visible some time after it was made, a fence waits for that).

use std::collections::HashSet;
use std::sync::Arc;

use crate::chain::Chain;
use crate::driver::{Buf, DriverQueue};
use crate::memory::Memory;
use crate::queue::{Popped, Queue, passed};
use crate::spec::{F_VERSION_1, RING_FEATURES};
use crate::trace::{Access, Field, record};

/// How many things the producer produces.
const COUNT: u16 = 3;

/// The two shared variables: how far the producer is, and what the consumer asked to be woken for.
const INDEX: usize = 0;
const WISH: usize = 1;

/// One side's accesses in the model's terms.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Store(usize),
    Load(usize),
    Fence,
}

/// What both sides do, and how a wish is understood.
struct Protocol {
    /// To show one thing more; a load of WISH decides about waking.
    produce: Vec<Step>,
    /// Where waking is put off: what decides about it at last, any time after it was decided that it is owed.
    later: Vec<Step>,
    /// It is then decided for everything produced since waking was owed, not only for the last.
    remembers: bool,
    /// To fall asleep; a load of INDEX decides about it.
    arm: Vec<Step>,
    /// After waking up.
    suppress: Vec<Step>,
    event_idx: bool,
}

impl Protocol {
    /// The wish to be woken for anything after `seen`.
    fn armed(&self, seen: u16) -> u16 {
        if self.event_idx { seen } else { 0 }
    }

    /// The wish not to be woken.
    fn suppressed(&self, seen: u16) -> u16 {
        if self.event_idx { seen.wrapping_sub(1) } else { 1 }
    }

    fn wants(&self, wish: u16, new: u16, old: u16) -> bool {
        if self.event_idx { passed(wish, new, old) } else { wish == 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Consumer {
    Arming(usize),
    Asleep,
    Looking,
    Suppressing(usize),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    memory: [u16; 2],
    buffers: [Vec<(usize, u16)>; 2],
    produced: u16,
    producer: usize,
    /// Waking is owed, for what was produced from here on.
    owed: Option<u16>,
    seen: u16,
    consumer: Consumer,
    kicked: bool,
}

impl State {
    fn load(&self, side: usize, variable: usize) -> u16 {
        let own = self.buffers[side].iter().rev().find(|(at, _)| *at == variable);
        own.map_or(self.memory[variable], |(_, value)| *value)
    }

    /// Every state that one step of one side, or of its store buffer, can lead to.
    fn successors(&self, protocol: &Protocol) -> Vec<State> {
        let mut out = Vec::new();
        for side in 0..2 {
            if !self.buffers[side].is_empty() {
                let mut next = self.clone();
                let (variable, value) = next.buffers[side].remove(0);
                next.memory[variable] = value;
                out.push(next);
            }
        }
        out.extend(self.produce(protocol));
        out.extend(self.call(protocol));
        out.extend(self.consume(protocol));
        out
    }

    fn produce(&self, protocol: &Protocol) -> Option<State> {
        if self.produced == COUNT {
            return None;
        }
        let mut next = self.clone();
        let new = self.produced + 1;
        match protocol.produce[self.producer] {
            Step::Store(variable) => next.buffers[0].push((variable, new)),
            Step::Fence if !self.buffers[0].is_empty() => return None,
            Step::Fence => {}
            Step::Load(variable) => {
                let wants = protocol.wants(self.load(0, variable), new, new - 1);
                if protocol.later.is_empty() {
                    next.kicked |= wants;
                } else if wants && self.owed.is_none() {
                    next.owed = Some(new - 1);
                }
            }
        }
        next.producer += 1;
        if next.producer == protocol.produce.len() {
            (next.producer, next.produced) = (0, new);
        }
        Some(next)
    }

    /// The time is over: a call that is owed is made, or found not to be wanted any more.
    fn call(&self, protocol: &Protocol) -> Option<State> {
        let from = self.owed.filter(|_| self.producer == 0)?;
        assert!(protocol.later.iter().all(|step| *step == Step::Load(WISH)), "{:?}", protocol.later);
        let from = if protocol.remembers { from } else { self.produced - 1 };
        let wants = protocol.wants(self.load(0, WISH), self.produced, from);
        Some(State { owed: None, kicked: self.kicked | wants, ..self.clone() })
    }

    fn consume(&self, protocol: &Protocol) -> Option<State> {
        let mut next = self.clone();
        next.consumer = match self.consumer {
            Consumer::Asleep if !self.kicked => return None,
            Consumer::Asleep => {
                next.kicked = false;
                Consumer::Looking
            }
            Consumer::Looking => {
                next.seen = self.load(1, INDEX);
                Consumer::Suppressing(0)
            }
            Consumer::Suppressing(at) => match protocol.suppress.get(at) {
                Some(Step::Store(variable)) => {
                    next.buffers[1].push((*variable, protocol.suppressed(self.seen)));
                    Consumer::Suppressing(at + 1)
                }
                Some(step) => panic!("{step:?}"),
                None => Consumer::Arming(0),
            },
            Consumer::Arming(at) => match protocol.arm.get(at) {
                Some(Step::Store(variable)) => {
                    next.buffers[1].push((*variable, protocol.armed(self.seen)));
                    Consumer::Arming(at + 1)
                }
                Some(Step::Fence) if !self.buffers[1].is_empty() => return None,
                Some(Step::Fence) => Consumer::Arming(at + 1),
                Some(Step::Load(variable)) if self.load(1, *variable) != self.seen => Consumer::Looking,
                Some(Step::Load(_)) => Consumer::Arming(at + 1),
                None => Consumer::Asleep,
            },
        };
        Some(next)
    }
}

/// The number of states, or one in which the consumer sleeps for ever beside work.
fn explore(protocol: &Protocol) -> Result<usize, State> {
    let first = State {
        memory: [0, 0],
        buffers: [Vec::new(), Vec::new()],
        produced: 0,
        producer: 0,
        owed: None,
        seen: 0,
        consumer: Consumer::Suppressing(0),
        kicked: false,
    };
    let mut known = HashSet::from([first.clone()]);
    let mut open = vec![first];
    while let Some(state) = open.pop() {
        let successors = state.successors(protocol);
        if successors.is_empty() && state.memory[INDEX] != state.seen {
            return Err(state);
        }
        for next in successors {
            if known.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    Ok(known.len())
}

fn steps(accesses: Vec<Access>, index: Field, wish: Field) -> Vec<Step> {
    let variable = |field| if field == index { INDEX } else { WISH };
    accesses
        .into_iter()
        .filter_map(|access| match access {
            Access::Load(field) if field == index || field == wish => Some(Step::Load(variable(field))),
            Access::Store(field) if field == index || field == wish => Some(Step::Store(variable(field))),
            Access::Fence => Some(Step::Fence),
            _ => None,
        })
        .collect()
}

fn pair(features: u64) -> (DriverQueue, Queue) {
    let memory = Arc::new(Memory::anonymous(0x10_0000).unwrap());
    let driver = DriverQueue::new(&memory, 0x1000, 8, features).unwrap();
    let queue = Queue::new(&driver.setup(0, 0).unwrap()).unwrap();
    (driver, queue)
}

/// The driver produces requests, the device sleeps.
fn kicks(features: u64) -> Protocol {
    let (mut driver, mut queue) = pair(features);
    let (index, wish) = (Field::AvailIdx, Field::KickWish);
    driver.add(&[Buf::readable(0x8000, 1)]).unwrap();
    let produce = record(|| assert!(driver.kick()));
    assert!(matches!(queue.pop(&mut Chain::new()), Ok(Popped::Chain)));
    let suppress = record(|| queue.suppress_kicks());
    let arm = record(|| assert!(!queue.arm_kicks()));
    Protocol {
        produce: steps(produce, index, wish),
        later: Vec::new(),
        remembers: true,
        arm: steps(arm, index, wish),
        suppress: steps(suppress, index, wish),
        event_idx: features == RING_FEATURES,
    }
}

/// The device produces answers, the driver sleeps. (The driver under test is ours; a guest's is its own affair,
/// but the device's half is the same.)
fn calls(features: u64) -> Protocol {
    let (mut driver, mut queue) = pair(features);
    let (index, wish) = (Field::UsedIdx, Field::CallWish);
    driver.add(&[Buf::readable(0x8000, 1)]).unwrap();
    driver.publish();
    let mut chain = Chain::new();
    assert!(matches!(queue.pop(&mut chain), Ok(Popped::Chain)));
    let produce = record(|| {
        queue.push(chain.head(), 0);
        queue.publish();
    });
    driver.poll().unwrap();
    let suppress = record(|| driver.suppress_calls());
    let arm = record(|| assert!(!driver.arm_calls()));
    Protocol {
        produce: steps(produce, index, wish),
        later: Vec::new(),
        remembers: true,
        arm: steps(arm, index, wish),
        suppress: steps(suppress, index, wish),
        event_idx: features == RING_FEATURES,
    }
}

/// The same where the device puts its calls off.
fn late_calls(features: u64) -> Protocol {
    let (_, queue) = pair(features);
    let later = record(|| assert!(!queue.still_wants_call(0) || features != RING_FEATURES));
    Protocol { later: steps(later, Field::UsedIdx, Field::CallWish), ..calls(features) }
}

const BOTH: [u64; 2] = [RING_FEATURES, F_VERSION_1];

#[test]
fn no_kick_is_lost() {
    for features in BOTH {
        let protocol = kicks(features);
        let states = explore(&protocol).unwrap_or_else(|lost| panic!("{lost:?}"));
        assert!(states > 200, "{states}: nothing was explored");
    }
}

#[test]
fn no_call_is_lost() {
    for features in BOTH {
        let protocol = calls(features);
        explore(&protocol).unwrap_or_else(|lost| panic!("{lost:?}"));
    }
}

#[test]
fn no_call_that_is_put_off_is_lost() {
    for features in BOTH {
        let at_once = explore(&calls(features)).unwrap_or_else(|lost| panic!("{lost:?}"));
        let states = explore(&late_calls(features)).unwrap_or_else(|lost| panic!("{lost:?}"));
        assert!(states > at_once, "{states}: nothing was put off");
    }
}

#[test]
fn the_search_finds_a_call_that_is_only_for_the_last_answer() {
    let protocol = Protocol { remembers: false, ..late_calls(RING_FEATURES) };
    assert!(explore(&protocol).is_err());
}

#[test]
fn the_search_finds_what_a_missing_fence_or_a_wrong_order_loses() {
    for make in [kicks, calls, late_calls] {
        for features in BOTH {
            let mut protocol = make(features);
            protocol.produce.retain(|step| *step != Step::Fence);
            assert!(explore(&protocol).is_err(), "the producer's fence {features:#x}");
            let mut protocol = make(features);
            protocol.arm.retain(|step| *step != Step::Fence);
            assert!(explore(&protocol).is_err(), "the consumer's fence");
            let mut protocol = make(features);
            protocol.arm.reverse();
            assert!(explore(&protocol).is_err(), "looking before asking");
            let mut protocol = make(features);
            protocol.produce.reverse();
            assert!(explore(&protocol).is_err(), "looking at the wish before showing the work");
        }
    }
}
