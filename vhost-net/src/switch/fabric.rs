//! The switch proper: takes frames from the ports' transmit rings, learns where addresses are, and delivers into the
//! receive rings of those the frames are for. All of it is one thread's: no lock, and nothing shared but counters and
//! each port's link. What the control side wants comes as messages ([`super::order`]).
//!
//! ```text
//!   port A tx ring --take--> Frame --of VLAN? source? learn--> destination known? --one port--> Lane B --> rx ring
//!                                       |  no: dropped, counted       | no, or a group             | no buffers
//!                                       v                             v                            v
//!                                     answered                 every port of the VLAN         waits, bounded
//! ```
//! A port's turn is a batch; then the rings it delivered into are shown, one call each. A frame is delivered before
//! its request is answered, so nothing is under way between two turns.

use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use strata_virtio::chain::Chain;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Progress, Service, Source, Sources};

use super::forward::{Member, Room, Taker, forward, refuse, segments};
use super::frame::{Frame, USUAL};
use super::lane::Lane;
use super::order::{Order, Queue};
use super::table::Table;
use super::uplink::Uplink;
use super::{Port, Settings};
use crate::batch::DEPTH;
use crate::guard::ENOUGH as KEPT;
use crate::header::{Allowed, HEADER};
use crate::pair::answer_resubmitted;

/// Bytes of a port's frames before others have their turn.
const TURN: usize = 512 << 10;
/// The longest sleep while a ring has no kick.
const WITHOUT_KICK: Duration = Duration::from_millis(1);
/// Place of the uplink among the sources; the ports' rings come after it.
const UPLINK: usize = 0;

/// All ports and the table, on one thread.
#[derive(Debug)]
pub struct Fabric {
    members: Vec<Member>,
    table: Table,
    orders: Receiver<Order>,
    chains: Vec<Chain>,
    kept: Box<[u8; HEADER + KEPT]>,
    room: Room,
    /// Whose turn is first.
    first: usize,
    began: Instant,
    /// Seconds since then.
    now: u32,
    /// Started rings without a kick.
    unkicked: usize,
}

impl Fabric {
    /// A switch with these ports, nothing started. An uplink serves the port it comes with.
    #[must_use]
    pub fn new(
        settings: &Settings,
        ports: &[Arc<Port>],
        uplink: Option<(usize, Uplink)>,
        orders: Receiver<Order>,
    ) -> Self {
        let member = |port: &Arc<Port>| Member {
            port: Arc::clone(port),
            tx: None,
            lane: None,
            uplink: None,
            touched: false,
            paused: false,
        };
        let mut members: Vec<Member> = ports.iter().map(member).collect();
        if let Some((at, uplink)) = uplink
            && let Some(member) = members.get_mut(at)
        {
            member.uplink = Some(Box::new(uplink));
        }
        Self {
            table: Table::new(members.len(), settings.ageing),
            members,
            orders,
            chains: std::iter::repeat_with(Chain::new).take(DEPTH).collect(),
            kept: Box::new([0; HEADER + KEPT]),
            room: Room::default(),
            first: 0,
            began: Instant::now(),
            now: 0,
            unkicked: 0,
        }
    }

    /// A port's turn: takes a batch of frames and delivers them. Whether there was any.
    fn turn(&mut self, at: usize) -> bool {
        let Some(mut taker) = self.members.get_mut(at).and_then(|member| member.tx.take()) else {
            return false;
        };
        let taken = self.take(at, &mut taker);
        self.members
            .iter_mut()
            .filter_map(|member| member.uplink.as_mut().map(|up| (up, &member.port)))
            .for_each(|(uplink, port)| uplink.flush(&port.stats));
        for chain in self.chains.iter().take(taken) {
            // The device writes nothing into a transmitted frame.
            taker.vring.push(chain.head(), 0);
        }
        // A malformed request is answered on the way, without being taken.
        taker.vring.flush();
        if let Some(member) = self.members.get_mut(at) {
            member.tx = Some(taker);
        }
        self.show();
        taken > 0
    }

    fn take(&mut self, at: usize, taker: &mut Taker) -> usize {
        let Self { members, table, chains, kept, room, now, .. } = self;
        let Some(port) = members.get(at).map(|member| Arc::clone(&member.port)) else { return 0 };
        let keep = if port.guard.is_on() { KEPT } else { USUAL };
        let mut allowance = port.from_guest.allowance();
        let (mut count, mut bytes) = (0, 0);
        for chain in chains.iter_mut() {
            if bytes >= TURN || allowance.is_spent() || !taker.vring.next(chain) {
                break;
            }
            count += 1;
            match Frame::of_request(chain, kept, keep, taker.allowed) {
                Ok(frame) => {
                    bytes += frame.len();
                    allowance.take(frame.len(), segments(&frame));
                    forward(members, table, room, at, &frame, *now);
                }
                Err(unfit) => refuse(&port.stats, unfit),
            }
        }
        let paused = allowance.is_spent();
        allowance.settle(&port.from_guest);
        if let Some(member) = members.get_mut(at) {
            member.paused = paused;
        }
        count
    }

    /// Passes on what came over the uplink. Whether there was any.
    fn receive(&mut self) -> bool {
        let Some(at) = self.members.iter().position(|member| member.uplink.is_some()) else { return false };
        let Some(mut uplink) = self.members.get_mut(at).and_then(|member| member.uplink.take()) else {
            return false;
        };
        let count = uplink.read();
        let Self { members, table, room, now, .. } = self;
        if let Some(port) = members.get(at).map(|member| Arc::clone(&member.port)) {
            for bytes in uplink.frames() {
                match Frame::of_bytes(bytes, Uplink::ALLOWED) {
                    Ok(frame) => forward(members, table, room, at, &frame, *now),
                    Err(unfit) => refuse(&port.stats, unfit),
                }
            }
        }
        if let Some(member) = self.members.get_mut(at) {
            member.uplink = Some(uplink);
        }
        self.show();
        count > 0
    }

    /// Shows every receive ring that was delivered into.
    fn show(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.touched) {
            member.touched = false;
            if let Some(lane) = &mut member.lane {
                lane.vring_mut().flush();
            }
        }
    }

    /// Delivers what waits for buffers. Whether anything could be done.
    fn catch_up(&mut self) -> bool {
        let mut any = false;
        for member in &mut self.members {
            if let Some(lane) = member.lane.as_mut().filter(|lane| lane.waits()) {
                any |= lane.drain(&member.port.stats);
                lane.vring_mut().flush();
            }
        }
        any
    }

    fn obey(&mut self, order: Order, sources: &mut Sources<'_>) {
        match order {
            Order::Start { port, queue, vring, features, done } => {
                let added = sources.add(place(port, queue), &Source::kick(&vring));
                let failed = added.as_ref().err().map(std::io::Error::kind);
                if failed.is_none() {
                    self.plug(port, queue, *vring, features);
                }
                let _ = done.send(failed);
            }
            Order::Stop { port, queue, done } => {
                let _ = done.send(self.stop(port, queue, sources));
            }
            Order::Rows { done } => {
                self.tick();
                let _ = done.send(self.rows());
            }
            Order::Forget { port } => self.table.forget(port as u16),
        }
    }

    fn stop(&mut self, port: usize, queue: Queue, sources: &mut Sources<'_>) -> Option<Box<Vring>> {
        let vring = self.unplug(port, queue)?;
        sources.remove(place(port, queue), &Source::kick(&vring));
        Some(Box::new(vring))
    }

    /// Begins to serve a port's queue, for a driver that accepted `features`. Its kick is the caller's to watch.
    pub fn plug(&mut self, port: usize, queue: Queue, vring: Vring, features: u64) {
        let Some(member) = self.members.get_mut(port) else { return };
        self.unkicked += usize::from(vring.kick().is_none());
        match queue {
            Queue::Receive => member.lane = Some(Lane::new(vring, features)),
            Queue::Transmit => member.tx = Some(Taker { vring, allowed: Allowed::new(features) }),
        }
        self.suppress_kicks();
    }

    /// Serves a queue no longer: gives it back, drained.
    pub fn unplug(&mut self, port: usize, queue: Queue) -> Option<Vring> {
        let member = self.members.get_mut(port)?;
        let vring = match queue {
            Queue::Receive => {
                // Its addresses may turn up somewhere else.
                self.table.forget(port as u16);
                member.lane.take()?.stop(&member.port.stats)
            }
            Queue::Transmit => {
                let mut vring = member.tx.take()?.vring;
                member.paused = false;
                answer_resubmitted(&mut vring);
                vring
            }
        };
        self.unkicked = self.unkicked.saturating_sub(usize::from(vring.kick().is_none()));
        Some(vring)
    }

    /// What the table holds.
    #[must_use]
    pub fn rows(&self) -> Vec<super::table::Row> {
        self.table.rows(self.now)
    }

    fn tick(&mut self) {
        self.now = u32::try_from(self.began.elapsed().as_secs()).unwrap_or(u32::MAX);
    }

    fn rings(&mut self) -> impl Iterator<Item = &mut Vring> {
        self.members.iter_mut().flat_map(|member| {
            let lane = member.lane.as_mut().map(Lane::vring_mut);
            lane.into_iter().chain(member.tx.as_mut().map(|taker| &mut taker.vring))
        })
    }
}

/// Place of a ring among the sources.
fn place(port: usize, queue: Queue) -> usize {
    UPLINK + 1 + 2 * port + usize::from(queue == Queue::Transmit)
}

impl Service for Fabric {
    fn process(&mut self) -> Progress {
        self.tick();
        let mut worked = self.catch_up();
        let count = self.members.len();
        for number in 0..count {
            worked |= self.turn((self.first + number) % count);
        }
        self.first = (self.first + 1) % count.max(1);
        worked |= self.receive();
        if worked { Progress::Worked } else { Progress::Idle }
    }

    fn has_work(&mut self) -> bool {
        self.members.iter_mut().any(|member| {
            let sends = member.tx.as_ref().is_some_and(|taker| taker.vring.queue().has_work());
            let takes =
                || member.lane.as_ref().is_some_and(|lane| lane.waits() && lane.vring().queue().has_work());
            (sends && !member.paused)
                || takes()
                || member.uplink.as_mut().is_some_and(|up| up.looks_readable())
        })
    }

    fn suppress_kicks(&mut self) {
        self.rings().for_each(|vring| vring.queue_mut().suppress_kicks());
    }

    fn prepare_sleep(&mut self) -> bool {
        let mut work = false;
        for member in &mut self.members {
            if let Some(taker) = &mut member.tx {
                work |= taker.vring.queue_mut().arm_kicks() && !member.paused;
            }
            // New buffers matter only where something waits for them.
            if let Some(lane) = member.lane.as_mut().filter(|lane| lane.waits()) {
                work |= lane.vring_mut().queue_mut().arm_kicks();
            }
        }
        work
    }

    fn sources(&self) -> Vec<Source<'_>> {
        let uplink = self.members.iter().find_map(|member| member.uplink.as_ref());
        uplink.map(|uplink| Source::readable_lazily(uplink.fd())).into_iter().collect()
    }

    fn wake_after(&self) -> Option<Duration> {
        let paused = self.members.iter().filter(|member| member.paused);
        let next = paused.map(|member| member.port.from_guest.wait()).min();
        let unkicked = (self.unkicked > 0).then_some(WITHOUT_KICK);
        next.into_iter().chain(unkicked).min()
    }

    fn nudged(&mut self, sources: &mut Sources<'_>) {
        while let Ok(order) = self.orders.try_recv() {
            self.obey(order, sources);
        }
    }

    fn drain(&mut self) {
        // Nothing is under way between two turns.
        self.rings().for_each(answer_resubmitted);
    }
}

#[cfg(test)]
#[path = "fabric_test.rs"]
mod fabric_test;
