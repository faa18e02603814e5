//! The switch: any frames from any of its ports, in requests of three shapes, to ports of all kinds. A port gets whole
//! frames, of a VLAN that it shares with their sender and that the tag names; a frame that asks for nothing comes out as it
//! went in, but for its tag; nothing is written behind a buffer's used length.
//!
//! The input: which ports are plain, a bit each; then frames, each with its port, its request's shape, its length in two
//! bytes. One switch serves all inputs, since to make one takes longer than most of them; between two it forgets.
#![no_main]

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::mpsc::channel;

use libfuzzer_sys::fuzz_target;
use strata_vhost_net::features as feature;
use strata_vhost_net::mac::Mac;
use strata_vhost_net::switch::fabric::Fabric;
use strata_vhost_net::switch::order::Queue;
use strata_vhost_net::switch::vlans::{Set, Vlans};
use strata_vhost_net::switch::{Port, Settings};
use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::vring::Vring;
use strata_virtio::worker::{Progress, Service};

const SIZE: u16 = 16;
/// Of a receive buffer.
const BUFFER: usize = 1536;
const TX: u64 = 0x1_0000;
const RX: u64 = 0x8_0000;
const HEADER: usize = 12;
const SENDS: u64 = feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN;
const TAKES: u64 =
    feature::GUEST_CSUM | feature::GUEST_TSO4 | feature::GUEST_TSO6 | feature::GUEST_ECN | feature::MRG_RXBUF;
/// The VLANs of each port; a trunk's first is its native one, which 0 says it has not.
const PORTS: [&[u16]; 6] = [&[10], &[20], &[0, 10, 20], &[1, 10, 20], &[1], &[10]];

fn is_trunk(port: usize) -> bool {
    PORTS[port].len() > 1
}

fn port(at: usize) -> Arc<Port> {
    let vlans = match *PORTS[at] {
        [own] => Vlans::Access(own),
        [native, ..] => {
            let native = Some(native).filter(|native| *native != 0);
            Vlans::Trunk { native, carried: Set::new(PORTS[at].iter().copied()) }
        }
        [] => unreachable!("a port has a VLAN"),
    };
    let mut port = Port::new(format!("p{at}"), Mac::new([2, 0, 0, 0, 0, at as u8]), vlans);
    port.isolated = matches!(at, 0 | 5);
    Arc::new(port)
}

struct Guest {
    memory: Arc<Memory>,
    rx: DriverQueue,
    tx: DriverQueue,
}

impl Guest {
    fn new(fabric: &mut Fabric, port: usize) -> Option<Self> {
        let memory = Arc::new(Memory::anonymous(1 << 20).ok()?);
        let queue = |gpa| DriverQueue::new(&memory, gpa, SIZE, 1 << 32).ok();
        let (rx, tx) = (queue(0x1000)?, queue(0x4000)?);
        for (queue, driver) in [(Queue::Receive, &rx), (Queue::Transmit, &tx)] {
            fabric.plug(port, queue, Vring::new(driver.setup(0, 0).ok()?).ok()?, 0);
        }
        let mut guest = Self { memory, rx, tx };
        (0..SIZE).for_each(|head| guest.refill(head, BUFFER));
        guest.rx.publish();
        Some(guest)
    }

    /// Gives the buffer of a head back, of which `used` bytes are to be filled again with what must not change behind what
    /// is delivered.
    fn refill(&mut self, head: u16, used: usize) {
        let gpa = RX + u64::from(head) * BUFFER as u64;
        self.memory.write_at(gpa, &[0xee; BUFFER][..used]).expect("in memory");
        let again = self.rx.add(&[Buf::writable(gpa, BUFFER as u32)]);
        assert_eq!(again, Some(head), "a buffer's place is its head's");
    }

    fn send(&mut self, bytes: &[u8], shape: u8) {
        let len = bytes.len() as u32;
        self.memory.write_at(TX, bytes).expect("in memory");
        let cut = u32::from(shape / 3).min(len);
        let part = |from: u32, to: u32| Buf::readable(TX + u64::from(from), to - from);
        let sent = match shape % 3 {
            0 => self.tx.add(&[part(0, len)]),
            1 => self.tx.add(&[part(0, cut), part(cut, len)]),
            // The last is the device's to write, which no frame has.
            _ => self.tx.add(&[part(0, cut), part(cut, len), Buf::writable(TX, 4)]),
        };
        assert!(sent.is_some(), "the ring is empty between frames");
        self.tx.publish();
    }

    /// A frame that came, header and all.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let (mut frame, mut left, mut taken) = (Vec::new(), None, Vec::new());
        while left != Some(0) {
            let Some((head, len)) = self.rx.poll() else {
                assert_eq!(left, None, "a frame is whole");
                return None;
            };
            let mut buffer = [0; BUFFER];
            self.memory.read_at(RX + u64::from(head) * BUFFER as u64, &mut buffer).expect("in memory");
            let (written, behind) = buffer.split_at(len as usize);
            assert!(behind.iter().all(|byte| *byte == 0xee), "written behind the used length");
            let buffers = left.unwrap_or_else(|| u16::from_le_bytes([written[10], written[11]]));
            left = Some(buffers.checked_sub(1).expect("a frame has buffers"));
            frame.extend_from_slice(written);
            taken.push((head, written.len()));
        }
        // The driver hands out first what it was given back last.
        taken.into_iter().rev().for_each(|(head, used)| self.refill(head, used));
        self.rx.publish();
        Some(frame)
    }
}

struct Lab {
    fabric: Fabric,
    guests: Vec<Guest>,
}

impl Lab {
    fn new() -> Option<Self> {
        let ports: Vec<Arc<Port>> = (0..PORTS.len()).map(port).collect();
        let mut fabric = Fabric::new(&Settings::default(), &ports, None, channel().1);
        let guests = (0..ports.len()).map(|at| Guest::new(&mut fabric, at)).collect::<Option<_>>()?;
        Some(Self { fabric, guests })
    }

    /// Drivers anew, of which some take no offloads. A port that is stopped is forgotten.
    fn start(&mut self, plain: u8) {
        for port in 0..PORTS.len() {
            let features = 1 << 32 | SENDS | if plain >> port & 1 == 1 { 0 } else { TAKES };
            for queue in [Queue::Receive, Queue::Transmit] {
                let vring = self.fabric.unplug(port, queue).expect("it was started");
                self.fabric.plug(port, queue, vring, features);
            }
        }
        assert_eq!(self.fabric.rows().len(), 0);
    }

    fn pass(&mut self, from: usize, shape: u8, bytes: &[u8]) {
        self.guests[from].send(bytes, shape);
        while self.fabric.process() == Progress::Worked {}
        assert!(self.guests[from].tx.poll().is_some(), "every request is answered");
        for to in 0..PORTS.len() {
            while let Some(frame) = self.guests[to].receive() {
                check(from, bytes, to, &frame);
                // For what waited for buffers.
                while self.fabric.process() == Progress::Worked {}
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    thread_local!(static LAB: RefCell<Option<Lab>> = RefCell::new(Lab::new()));
    LAB.with_borrow_mut(|lab| {
        let (Some(lab), Some((plain, mut rest))) = (lab, input.split_first()) else { return };
        lab.start(*plain);
        while let Some((&[from, shape, low, high], behind)) = rest.split_first_chunk() {
            let len = usize::from(u16::from_le_bytes([low, high]));
            let (bytes, next) = behind.split_at(len.min(behind.len()));
            rest = next;
            if !bytes.is_empty() {
                lab.pass(usize::from(from) % PORTS.len(), shape, bytes);
            }
        }
    });
});

fn tag(frame: &[u8]) -> Option<u16> {
    (frame[12..14] == [0x81, 0]).then(|| u16::from_be_bytes([frame[14], frame[15]]) & 0xfff)
}

fn without_tag(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &frame[if tag(frame).is_some() { 16 } else { 12 }..]].concat()
}

fn check(from: usize, sent: &[u8], to: usize, got: &[u8]) {
    assert!(from != to && !matches!((from, to), (0, 5) | (5, 0)), "from {from} to {to}");
    assert!(sent.len() >= HEADER + 14 && got.len() >= HEADER + 14);
    let (asks, sent, got) = (sent[0] & 1 != 0 || sent[1] != 0, &sent[HEADER..], &got[HEADER..]);
    let came = match (is_trunk(from), tag(sent)) {
        (true, Some(1..)) => tag(sent).unwrap_or(0),
        (_, None | Some(0)) => PORTS[from][0],
        (false, Some(_)) => panic!("a guest named VLAN {:?} at port {from}", tag(sent)),
    };
    assert!(came != 0 && PORTS[from].contains(&came) && PORTS[to].contains(&came), "{came}: {from} to {to}");
    // An access port's frames have no tag of ours, and what is inside says nothing there.
    if is_trunk(to) {
        assert_eq!(tag(got).unwrap_or(PORTS[to][0]), came, "from {from} to {to}");
    }
    if !asks {
        let got = if is_trunk(to) { without_tag(got) } else { got.to_vec() };
        assert_eq!(got, without_tag(sent));
    }
}
