//! The world of the switch's tests: guests with drivers of ours, and a round of the switch whenever the test says so.

use std::sync::mpsc::channel;

use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::spec::RING_FEATURES;

use super::super::super::vlans::{Set, Vlans};
use super::super::*;
use crate::features as feature;
use crate::mac::Mac;

pub(super) const OFFLOADS: u64 = feature::CSUM
    | feature::GUEST_CSUM
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6;
pub(super) const FEATURES: u64 = RING_FEATURES | OFFLOADS | feature::MRG_RXBUF;
pub(super) const PLAIN: [u8; HEADER] = [0; HEADER];
pub(super) const EVERYONE: [u8; 6] = [0xff; 6];
pub(super) const SIZE: u16 = 64;
pub(super) const TX: u64 = 0x10_0000;
pub(super) const RX: u64 = 0x80_0000;
pub(super) const STRIDE: u64 = 0x1_2000;

pub(super) fn mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

pub(super) fn ethernet(to: [u8; 6], from: [u8; 6], number: u8, len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5, number]].concat();
    frame.extend((frame.len()..len).map(|at| at as u8 ^ number));
    frame
}

pub(super) fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tci.to_be_bytes(), &frame[12..]].concat()
}

/// A driver over memory of its own.
pub(super) struct Guest {
    pub(super) memory: Arc<Memory>,
    pub(super) rx: DriverQueue,
    pub(super) tx: DriverQueue,
    pub(super) buffer: u32,
}

impl Guest {
    pub(super) fn new(features: u64, buffer: u32) -> Self {
        let memory = Arc::new(Memory::anonymous(32 << 20).unwrap());
        let queue = |gpa| DriverQueue::new(&memory, gpa, SIZE, features).unwrap();
        Self { rx: queue(0x1000), tx: queue(0x1_0000), memory: Arc::clone(&memory), buffer }
    }

    pub(super) fn post(&mut self, count: usize) {
        for _ in 0..count {
            // Each head has a place of its own; it is known once the request is made, and nothing is shown yet.
            let head = self.rx.add(&[Buf::writable(RX, self.buffer)]).unwrap();
            let gpa = RX + u64::from(head) * STRIDE;
            self.memory.write_at(gpa, &vec![0xee; self.buffer as usize]).unwrap();
            self.memory.write_obj(self.rx.addresses()[0] + 16 * u64::from(head), gpa).unwrap();
        }
        self.rx.publish();
    }

    pub(super) fn address(&self, head: u16) -> u64 {
        self.memory.read_obj(self.rx.addresses()[0] + 16 * u64::from(head)).unwrap()
    }

    pub(super) fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let slot = u64::from(SIZE - self.tx.free());
        let gpa = TX + slot * STRIDE;
        self.memory.write_at(gpa, &[&header[..], frame].concat()).unwrap();
        // In three pieces, so that none of the switch's own steps falls on their bounds.
        let len = (HEADER + frame.len()) as u32;
        let cut = (len / 2).min(20);
        let bufs = [
            Buf::readable(gpa, cut),
            Buf::readable(gpa + u64::from(cut), len - cut - 1),
            Buf::readable(gpa + u64::from(len) - 1, 1),
        ];
        self.tx.add(&bufs).expect("a free descriptor");
        self.tx.publish();
    }

    /// The next frame received, header and frame; checks that nothing was written behind it.
    pub(super) fn receive(&mut self) -> Option<([u8; HEADER], Vec<u8>)> {
        let (mut all, mut buffers) = (Vec::new(), 1);
        let mut taken = 0;
        while taken < buffers {
            let (head, len) = self.rx.poll()?;
            let mut whole = vec![0; self.buffer as usize];
            self.memory.read_at(self.address(head), &mut whole).unwrap();
            assert!(whole[len as usize..].iter().all(|byte| *byte == 0xee), "written behind the used length");
            all.extend(&whole[..len as usize]);
            if taken == 0 {
                buffers = u16::from_le_bytes([all[10], all[11]]);
            }
            taken += 1;
        }
        let frame = all.split_off(HEADER);
        let mut header: [u8; HEADER] = all.try_into().unwrap();
        [header[10], header[11]] = [0, 0];
        Some((header, frame))
    }

    pub(super) fn frames(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.receive().map(|(_, frame)| frame)).collect()
    }
}

pub(super) struct Lab {
    pub(super) fabric: Fabric,
    pub(super) ports: Vec<Arc<Port>>,
    pub(super) guests: Vec<Guest>,
}

impl Lab {
    pub(super) fn new(ports: Vec<Port>) -> Self {
        Self::with(ports, |_| (FEATURES, 2048))
    }

    pub(super) fn with(ports: Vec<Port>, of: impl Fn(usize) -> (u64, u32)) -> Self {
        let ports: Vec<Arc<Port>> = ports.into_iter().map(Arc::new).collect();
        let fabric = Fabric::new(&Settings::default(), &ports, None, channel().1);
        let mut lab = Self { fabric, ports, guests: Vec::new() };
        for port in 0..lab.ports.len() {
            let (features, buffer) = of(port);
            lab.guests.push(Guest::new(features, buffer));
            lab.plug(port, features);
            lab.guests[port].post(16);
        }
        lab
    }

    pub(super) fn plug(&mut self, port: usize, features: u64) {
        for (queue, driver) in
            [(Queue::Receive, &self.guests[port].rx), (Queue::Transmit, &self.guests[port].tx)]
        {
            let stats = &self.ports[port].stats;
            let vring = Vring::new(driver.setup(queue as u16, 0).unwrap()).unwrap();
            let counted = if queue == Queue::Receive { &stats.rx_ring } else { &stats.tx_ring };
            self.fabric.plug(port, queue, vring.counting_in(Arc::clone(counted)), features);
        }
    }

    pub(super) fn run(&mut self) {
        while self.fabric.process() == Progress::Worked {}
        for guest in &mut self.guests {
            while guest.tx.poll().is_some() {}
        }
    }

    pub(super) fn send(&mut self, port: usize, frame: &[u8]) {
        self.guests[port].send(PLAIN, frame);
        self.run();
    }

    /// What each port got.
    pub(super) fn received(&mut self) -> Vec<Vec<Vec<u8>>> {
        self.guests.iter_mut().map(Guest::frames).collect()
    }

    pub(super) fn count(&self, port: usize, name: &str) -> u64 {
        self.ports[port].stats.list().into_iter().find(|(other, _)| *other == name).unwrap().1
    }
}

pub(super) fn access(number: u8, vlan: u16) -> Port {
    Port::new(format!("p{number}"), Mac::new(mac(number)), Vlans::Access(vlan))
}

pub(super) fn trunk(number: u8, native: Option<u16>, tags: &[u16]) -> Port {
    let carried = Set::new(tags.iter().copied().chain(native));
    Port::new(format!("p{number}"), Mac::new(mac(number)), Vlans::Trunk { native, carried })
}

pub(super) fn none() -> Vec<Vec<u8>> {
    Vec::new()
}
