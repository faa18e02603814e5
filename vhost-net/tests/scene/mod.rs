//! A whole card for a test: a tap in a namespace of its own, the device behind a real vhost-user socket, and a
//! driver in this process over memory of its own.
#![allow(dead_code, unreachable_pub)] // every test program uses a part of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // all of it is a test

use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::eventfd::EventFd;
use strata_vhost_net::device::{Net, Tuning};
use strata_vhost_net::features as feature;
use strata_vhost_net::host::{Namespace, Wire};
use strata_vhost_net::mac::Mac;
use strata_vhost_net::port::Settings;
use strata_vhost_net::tap::Tap;
use strata_virtio::driver::{Buf, DriverQueue, Frontend};
use strata_virtio::memory::Memory;
use strata_virtio::session::{ConfigChange, Endpoint, serve};
use strata_virtio::spec::{F_PROTOCOL_FEATURES, RING_FEATURES};

/// Long enough for any machine.
pub const LONG: Duration = Duration::from_secs(30);
/// Long enough to see that nothing comes.
pub const SHORT: Duration = Duration::from_millis(200);
pub const TAP: &str = "tap0";
pub const MAC: Mac = Mac::new([0x52, 0x54, 0, 1, 2, 3]);
pub const PEER: Mac = Mac::new([0x52, 0x54, 0, 9, 9, 9]);

/// The offloads a Linux driver takes.
pub const USUAL: u64 = RING_FEATURES
    | F_PROTOCOL_FEATURES
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::MAC
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::GUEST_ECN
    | feature::GUEST_UFO
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::HOST_ECN
    | feature::HOST_UFO
    | feature::MRG_RXBUF
    | feature::STATUS
    | feature::CTRL_VQ
    | feature::CTRL_RX
    | feature::CTRL_VLAN
    | feature::CTRL_MAC_ADDR
    | feature::CTRL_GUEST_OFFLOADS
    | feature::GUEST_ANNOUNCE
    | feature::MQ;

/// A namespace, or why the test cannot run.
pub fn namespace() -> Option<Namespace> {
    if let Err(error) = std::fs::metadata("/dev/net/tun") {
        eprintln!("skipped: /dev/net/tun: {error}");
        return None;
    }
    match Namespace::new() {
        Ok(namespace) => Some(namespace),
        Err(error) => {
            eprintln!("skipped: a network namespace needs root: {error}");
            None
        }
    }
}

/// The device, served by a thread.
pub struct Scene {
    pub namespace: Namespace,
    pub stats: Vec<strata_vhost_net::stats::PairStats>,
    pub card: Arc<strata_vhost_net::card::Card>,
    stop: Arc<EventFd>,
    server: Option<JoinHandle<Net>>,
    path: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

impl Scene {
    pub fn new(namespace: Namespace, pairs: usize, tuning: Tuning) -> Self {
        let tap = namespace.run(|| Tap::open(TAP, pairs, true)).unwrap().unwrap();
        namespace.ip(&format!("link set {TAP} up")).unwrap();
        Self::with_tap(namespace, tap, tuning)
    }

    pub fn with_tap(namespace: Namespace, tap: Tap, tuning: Tuning) -> Self {
        Self::with_settings(namespace, tap, Settings::default(), tuning)
    }

    pub fn with_settings(namespace: Namespace, tap: Tap, settings: Settings, tuning: Tuning) -> Self {
        let change = ConfigChange::default();
        let mut net = Net::new(tap, MAC, settings, tuning, change.clone()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let (stats, card) = (net.stats().to_vec(), Arc::clone(net.card()));
        let server = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                serve(Endpoint::Listener(listener), &mut net, &*stop, &change).unwrap();
                net
            }
        });
        Self { namespace, stats, card, stop, server: Some(server), path, _dir: dir }
    }

    /// Connects a driver with `pairs` started pairs of `size` descriptors each.
    pub fn guest(&self, wanted: u64, pairs: usize, size: u16) -> Guest {
        Guest::new(&self.path, wanted, pairs, size)
    }

    pub fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.path).unwrap()
    }

    pub fn wire(&self) -> Wire {
        self.namespace.wire(TAP, false).unwrap()
    }

    /// Ends the server; gives the device back.
    pub fn end(mut self) -> Net {
        self.stop.write(1).unwrap();
        self.server.take().unwrap().join().unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            let _ = self.stop.write(1);
            let _ = server.join();
        }
    }
}

/// Where things are in the driver's memory.
const RINGS: u64 = 0x1_0000;
const CONTROL: u64 = 0x1f_0000;
const BUFFERS: u64 = 0x20_0000;
const PER_QUEUE: u64 = 0x100_0000;
const MEMORY: u64 = 192 << 20;

/// A driver.
pub struct Guest {
    pub frontend: Frontend,
    pub memory: Arc<Memory>,
    pub rx: Vec<DriverQueue>,
    pub tx: Vec<DriverQueue>,
    pub control: Option<DriverQueue>,
    /// Size of a receive buffer.
    pub rx_size: u32,
}

impl Guest {
    pub fn new(path: &std::path::Path, wanted: u64, pairs: usize, size: u16) -> Self {
        let memory = Arc::new(Memory::anonymous(MEMORY).unwrap());
        let mut frontend = Frontend::connect(path, wanted).unwrap();
        let features = frontend.features;
        frontend.set_memory(&memory).unwrap();
        let queue = |index: u64| DriverQueue::new(&memory, RINGS + index * 0x1_0000, size, features).unwrap();
        let mut guest = Self {
            rx: (0..pairs as u64).map(|pair| queue(2 * pair)).collect(),
            tx: (0..pairs as u64).map(|pair| queue(2 * pair + 1)).collect(),
            control: None,
            memory: Arc::clone(&memory),
            frontend,
            rx_size: 2048,
        };
        for pair in 0..pairs {
            guest.frontend.start(2 * pair, &guest.rx[pair], 0).unwrap();
            guest.frontend.start(2 * pair + 1, &guest.tx[pair], 0).unwrap();
        }
        guest
    }

    /// Goes on with another backend: what a frontend does whose backend is gone. The used index says where.
    pub fn reconnect(&mut self, path: &std::path::Path) {
        let wanted = self.frontend.features | F_PROTOCOL_FEATURES;
        let mut frontend = Frontend::connect(path, wanted).unwrap();
        frontend.set_memory(&self.memory).unwrap();
        for pair in 0..self.rx.len() {
            for (index, queue) in [(2 * pair, &self.rx[pair]), (2 * pair + 1, &self.tx[pair])] {
                let used: u16 = self.memory.read_obj(queue.addresses()[2] + 2).unwrap();
                frontend.start(index, queue, u16::from_le(used)).unwrap();
            }
        }
        self.frontend = frontend;
    }

    /// Starts the control queue, which follows the `pairs` of the device.
    pub fn start_control(&mut self, pairs: usize) {
        let queue = DriverQueue::new(&self.memory, CONTROL, 16, self.frontend.features).unwrap();
        self.frontend.start(2 * pairs, &queue, 0).unwrap();
        self.control = Some(queue);
    }

    /// Sends a control command; the answer.
    pub fn command(&mut self, command: &[u8]) -> u8 {
        let (data, ack) = (CONTROL + 0x4000, CONTROL + 0x8000);
        self.memory.write_at(data, command).unwrap();
        self.memory.write_at(ack, &[0xaa]).unwrap();
        let queue = self.control.as_mut().unwrap();
        queue.add(&[Buf::readable(data, command.len() as u32), Buf::writable(ack, 1)]).unwrap();
        queue.publish();
        queue.kick();
        let (_, written) = queue.wait(LONG).expect("the command is answered");
        assert_eq!(written, 1);
        let mut answer = [0];
        self.memory.read_at(ack, &mut answer).unwrap();
        answer[0]
    }

    /// Where the buffer of a head is.
    fn buffer(queue: usize, slot: u64) -> u64 {
        BUFFERS + queue as u64 * PER_QUEUE + slot * 0x4000
    }

    /// Posts `count` receive buffers of `rx_size` bytes, one descriptor each, filled with a pattern.
    pub fn post(&mut self, pair: usize, count: usize) {
        for _ in 0..count {
            // The slot follows from the head the next request gets; with one descriptor each they are the same.
            let queue = &mut self.rx[pair];
            let before = queue.free();
            let probe = Self::buffer(2 * pair, 0);
            let head = queue.add(&[Buf::writable(probe, self.rx_size)]).expect("a free descriptor");
            assert_eq!(queue.free(), before - 1);
            let gpa = Self::buffer(2 * pair, u64::from(head));
            self.memory.write_at(gpa, &vec![0xee; self.rx_size as usize]).unwrap();
            // The driver's descriptor is still its own: nothing is published yet.
            let desc = queue.addresses()[0] + 16 * u64::from(head);
            self.memory.write_obj(desc, gpa.to_le()).unwrap();
        }
        self.rx[pair].publish();
        self.rx[pair].kick();
    }

    /// The next frame received with its header, however many buffers it took; checks that nothing was written
    /// behind it.
    pub fn receive(&mut self, pair: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        self.receive_within(pair, LONG)
    }

    pub fn receive_within(&mut self, pair: usize, limit: Duration) -> Option<(Vec<u8>, Vec<u8>)> {
        let (head, len) = self.rx[pair].wait(limit)?;
        let mut all = self.take(pair, head, len);
        assert!(all.len() >= 12, "a frame of {} bytes has no header", all.len());
        let buffers = u16::from_le_bytes([all[10], all[11]]);
        assert!(buffers >= 1);
        for _ in 1..buffers {
            let (head, len) = self.rx[pair].wait(LONG).expect("the rest of the frame");
            all.extend(self.take(pair, head, len));
        }
        let frame = all.split_off(12);
        Some((all, frame))
    }

    fn take(&self, pair: usize, head: u16, len: u32) -> Vec<u8> {
        let mut whole = vec![0; self.rx_size as usize];
        self.memory.read_at(Self::buffer(2 * pair, u64::from(head)), &mut whole).unwrap();
        assert!(len <= self.rx_size, "used length {len} of a buffer of {}", self.rx_size);
        whole.truncate(len as usize);
        whole
    }

    /// Posts a frame to be sent, header and frame in one descriptor; not visible before [`Guest::flush`].
    pub fn post_frame(&mut self, pair: usize, header: [u8; 12], frame: &[u8]) -> u16 {
        let slot = u64::from(self.tx[pair].size() - self.tx[pair].free());
        let gpa = BUFFERS + (2 * pair as u64 + 1) * PER_QUEUE + slot * 0x1_2000 % PER_QUEUE;
        self.memory.write_at(gpa, &[&header[..], frame].concat()).unwrap();
        let len = 12 + frame.len() as u32;
        self.tx[pair].add(&[Buf::readable(gpa, len)]).expect("a free descriptor")
    }

    /// Makes what was posted visible.
    pub fn flush(&mut self, pair: usize) {
        self.tx[pair].publish();
        self.tx[pair].kick();
    }

    /// Sends one frame and waits until it is taken.
    pub fn send(&mut self, pair: usize, header: [u8; 12], frame: &[u8]) {
        let head = self.post_frame(pair, header, frame);
        self.flush(pair);
        assert_eq!(self.tx[pair].wait(LONG), Some((head, 0)));
    }
}

/// A frame of `len` bytes that no stack understands, with a number in it.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend(MAC.bytes());
    frame.extend(PEER.bytes());
    frame.extend([0x88, 0xb5]);
    frame.extend(number.to_be_bytes());
    while frame.len() < len {
        frame.push((frame.len() as u32 ^ number) as u8);
    }
    frame.truncate(len);
    frame
}

/// An IPv4 header over `payload` bytes of `protocol`, with its checksum.
fn ipv4(protocol: u8, payload: usize) -> [u8; 20] {
    let mut ip = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2];
    ip[2..4].copy_from_slice(&((20 + payload) as u16).to_be_bytes());
    let sum: u32 = ip.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let sum = !(((sum >> 16) + (sum & 0xffff)) as u16);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip
}

/// A UDP datagram from `port` with `payload` bytes: a flow of its own.
pub fn datagram(port: u16, payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(MAC.bytes());
    frame.extend(PEER.bytes());
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4(17, 8 + payload));
    for field in [port, 9, 8 + payload as u16, 0] {
        frame.extend(field.to_be_bytes());
    }
    frame.resize(frame.len() + payload, 0x5a);
    frame
}

/// A TCP segment of `payload` bytes to be cut into pieces of `size`, with its virtio-net header.
pub fn large_segment(payload: usize, size: u16) -> ([u8; 12], Vec<u8>) {
    let mut frame = Vec::new();
    frame.extend(MAC.bytes());
    frame.extend(PEER.bytes());
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4(6, 20 + payload));
    let mut tcp = [0; 20];
    tcp[0..4].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    tcp[12] = 5 << 4;
    tcp[13] = 0x10;
    // The sum of the pseudo header, as a partial checksum wants.
    let pseudo: u32 = [0xc000, 0x0201, 0xc000, 0x0202, 6, (20 + payload) as u32].iter().sum();
    let pseudo = ((pseudo >> 16) + (pseudo & 0xffff)) as u16;
    tcp[16..18].copy_from_slice(&pseudo.to_be_bytes());
    frame.extend(tcp);
    frame.extend((0..payload).map(|i| (i * 7 % 251) as u8));
    let mut header = [0; 12];
    header[0] = 1;
    header[1] = 1;
    header[2..4].copy_from_slice(&54u16.to_le_bytes());
    header[4..6].copy_from_slice(&size.to_le_bytes());
    header[6..8].copy_from_slice(&34u16.to_le_bytes());
    header[8..10].copy_from_slice(&16u16.to_le_bytes());
    (header, frame)
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !so() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
