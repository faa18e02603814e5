//! Where a frame goes: learnt from, checked against VLANs and rules, and delivered to each port as that takes it.
//!
//! Called by [`super::fabric`], which owns the ports and the table; all of it runs on its thread. Refuses, counted at the
//! port it came from: frames of no proper sender, of VLANs the port does not carry, for reserved addresses.

use std::sync::Arc;

use strata_virtio::limit::Throttle;
use strata_virtio::vring::Vring;

use super::Port;
use super::fit::{Fit, fit};
use super::frame::{Frame, Out, Unfit};
use super::lane::Lane;
use super::segment;
use super::stats::PortStats;
use super::table::{Learnt, Table};
use super::uplink::Uplink;
use crate::header::Allowed;

/// A transmit queue, while it is started.
#[derive(Debug)]
pub(super) struct Taker {
    pub(super) vring: Vring,
    pub(super) allowed: Allowed,
}

/// What a port is to the thread.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) port: Arc<Port>,
    pub(super) tx: Option<Taker>,
    pub(super) lane: Option<Lane>,
    pub(super) uplink: Option<Box<Uplink>>,
    /// Its receive ring has something to show.
    pub(super) touched: bool,
    /// It sends more than it may, and waits.
    pub(super) paused: bool,
}

/// Where frames for a port are made fit.
#[derive(Debug, Default)]
pub(super) struct Room {
    whole: Vec<u8>,
    piece: Vec<u8>,
}

/// What a frame is to a limit on packets.
pub(super) fn segments(frame: &Frame<'_>) -> u64 {
    let [_, gso, _, _, g0, g1, ..] = *frame.header();
    let size = u16::from_le_bytes([g0, g1]).max(1);
    if gso == 0 { 1 } else { (frame.len() as u64).div_ceil(u64::from(size)) }
}

#[cold]
pub(super) fn refuse(stats: &PortStats, unfit: Unfit) {
    static LIES: Throttle = Throttle::new(5, 60);
    match unfit {
        Unfit::Short => stats.tx_drop_short.add(1),
        Unfit::Long => stats.tx_drop_long.add(1),
        Unfit::Lie(lie) => {
            stats.tx_drop_header.add(1);
            if LIES.allow() {
                tracing::warn!(%lie, "a frame was dropped for what its header says");
            }
        }
    }
}

/// Learns from a frame that came in at `from` and delivers it to whom it is for.
#[inline]
pub(super) fn forward(
    members: &mut [Member],
    table: &mut Table,
    room: &mut Room,
    from: usize,
    frame: &Frame<'_>,
    now: u32,
) {
    let Some(port) = members.get(from).map(|member| Arc::clone(&member.port)) else { return };
    let stats = &port.stats;
    if !port.link() {
        return stats.tx_drop_link.add(1);
    }
    let Some(vlan) = port.vlans.of(frame.tci(), frame.inner()) else { return stats.tx_drop_vlan.add(1) };
    let (source, destination) = (frame.source(), frame.destination());
    if source.is_group() || source.bytes() == [0; 6] {
        return stats.tx_drop_source.add(1);
    }
    if let Err(why) = port.guard.check(frame.kept()) {
        return stats.guard.refused(why);
    }
    if let [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f] = destination.bytes() {
        return stats.tx_drop_reserved.add(1);
    }
    match table.learn(vlan, source, from as u16, now) {
        Learnt::Known | Learnt::New => {}
        Learnt::Moved => stats.moved.add(1),
        Learnt::Full => stats.table_full.add(1),
    }
    let known = if destination.is_group() { None } else { table.find(vlan, destination, now) };
    if let Some(to) = known {
        let to = usize::from(to);
        let Some(member) = members.get_mut(to) else { return };
        if to == from || port.isolated && member.port.isolated {
            return stats.tx_drop_filtered.add(1);
        }
        deliver(member, room, frame, vlan);
    } else {
        stats.tx_flooded.add(1);
        for (to, member) in members.iter_mut().enumerate() {
            let apart = port.isolated && member.port.isolated;
            if to != from && !apart && member.is_there() && member.port.vlans.carry(vlan) {
                deliver(member, room, frame, vlan);
            }
        }
    }
    stats.tx_frames.add(1);
    stats.tx_bytes.add(frame.len() as u64);
}

impl Member {
    fn is_there(&self) -> bool {
        self.port.link() && (self.lane.is_some() || self.uplink.is_some())
    }
}

/// Delivers a frame to one port, as that takes it.
#[inline]
fn deliver(member: &mut Member, room: &mut Room, frame: &Frame<'_>, vlan: u16) {
    let stats = &member.port.stats;
    if !member.is_there() {
        return stats.rx_drop_link.add(1);
    }
    let limit = &member.port.to_guest;
    if limit.is_on() {
        let mut allowance = limit.allowance();
        if allowance.is_spent() {
            return stats.rx_drop_rate.add(1);
        }
        allowance.take(frame.len(), segments(frame));
        allowance.settle(limit);
    }
    let tag = member.port.vlans.tagged(vlan, frame.inner()).then_some(vlan);
    let Ok(out) = frame.out(tag) else { return stats.rx_drop_uncut.add(1) };
    if let Some(uplink) = &mut member.uplink {
        return uplink.queue(&out, stats);
    }
    let Some(lane) = &mut member.lane else { return };
    member.touched = true;
    match fit(lane.features(), frame.header()) {
        Fit::AsIs => lane.deliver(&out, stats),
        other => make_fit(lane, room, &out, other, stats),
    }
}

/// Does for a port what its driver did not accept to do.
#[cold]
fn make_fit(lane: &mut Lane, room: &mut Room, out: &Out<'_>, fit: Fit, stats: &PortStats) {
    let Room { whole, piece } = room;
    if !out.gather(whole) {
        return;
    }
    let done = match fit {
        Fit::AsIs | Fit::Complete => {
            stats.rx_completed.add(1);
            segment::complete(whole).map(|()| lane.deliver(&Out::of_bytes(whole), stats))
        }
        Fit::Cut => {
            stats.rx_cut.add(1);
            segment::cut(whole, piece, |piece| lane.deliver(&Out::of_bytes(piece), stats))
        }
    };
    if let Err(why) = done {
        static UNCUT: Throttle = Throttle::new(5, 60);
        stats.rx_drop_uncut.add(1);
        if UNCUT.allow() {
            tracing::warn!(%why, "a frame was dropped");
        }
    }
}
