use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;

use super::hub::Terminal;
use super::*;

const LIMIT: Duration = Duration::from_secs(20);

struct Rig {
    device: Box<dyn Device>,
    size: Size,
    memory: Arc<Memory>,
    receive: DriverQueue,
    transmit: DriverQueue,
    hub: Arc<Hub>,
}

impl Rig {
    fn new() -> Self {
        let hub = Arc::new(Hub::new(Terminal::default()).unwrap());
        let (PciDevice { device, .. }, size) = Console::device("console".into(), Arc::clone(&hub));
        let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
        let receive = DriverQueue::new(&memory, 0, 16, RING_FEATURES).unwrap();
        let transmit = DriverQueue::new(&memory, 0x1000, 16, RING_FEATURES).unwrap();
        let mut rig = Self { device, size, memory, receive, transmit, hub };
        rig.start();
        rig
    }

    fn start(&mut self) {
        self.device.set_features(RING_FEATURES);
        self.device.start_queue(self.receive.setup(RECEIVE, 0).unwrap()).unwrap();
        self.device.start_queue(self.transmit.setup(TRANSMIT, 0).unwrap()).unwrap();
    }

    fn client(&self) -> UnixStream {
        let stream = UnixStream::from(self.hub.attach().unwrap());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }
}

#[test]
fn what_the_guest_writes_is_seen() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    rig.memory.write_at(0x8000, b"Linux version").unwrap();
    for (gpa, len) in [(0x8000, 5), (0x8005, 8)] {
        rig.transmit.add(&[Buf::readable(gpa, len)]).unwrap();
        rig.transmit.kick();
        rig.transmit.wait(LIMIT).unwrap();
    }
    let mut seen = [0; 13];
    client.read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"Linux version");
}

#[test]
fn what_is_typed_reaches_the_guest_before_and_after_buffers_are_there() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    client.write_all(b"root").unwrap();
    for (typed, gpa) in [("root", 0x8000), ("ls\n", 0x9000)] {
        if typed != "root" {
            client.write_all(typed.as_bytes()).unwrap();
        }
        let mut got = Vec::new();
        while got.len() < typed.len() {
            rig.receive.add(&[Buf::writable(gpa, 64)]).unwrap();
            rig.receive.kick();
            let (_, written) = rig.receive.wait(LIMIT).unwrap();
            let mut bytes = vec![0; written as usize];
            rig.memory.read_at(gpa, &mut bytes).unwrap();
            got.extend(bytes);
        }
        assert_eq!(got, typed.as_bytes());
    }
}

#[test]
fn a_long_write_goes_out_whole() {
    let mut rig = Rig::new();
    let mut client = rig.client();
    let pattern: Vec<u8> = (0..200_000_u32).map(|at| (at / 7) as u8).collect();
    rig.memory.write_at(0x8000, &pattern).unwrap();
    let reader = std::thread::spawn(move || {
        let mut seen = vec![0; 200_000];
        client.read_exact(&mut seen).map(|()| seen)
    });
    rig.transmit.add(&[Buf::readable(0x8000, 200_000)]).unwrap();
    rig.transmit.kick();
    rig.transmit.wait(LIMIT).unwrap();
    // A client may lose bytes when it is slow; the order of what it gets holds in any case.
    match reader.join().unwrap() {
        Ok(seen) => assert_eq!(seen, pattern),
        Err(_) => assert!(rig.hub.lost() > 0),
    }
}

#[test]
fn queues_stop_and_start_again() {
    let mut rig = Rig::new();
    rig.memory.write_at(0x8000, b"x").unwrap();
    rig.transmit.add(&[Buf::readable(0x8000, 1)]).unwrap();
    rig.transmit.kick();
    rig.transmit.wait(LIMIT).unwrap();
    assert_eq!(rig.device.stop_queue(TRANSMIT), Some(QueueState { base: 1 }));
    assert_eq!(rig.device.stop_queue(TRANSMIT), None);
    assert_eq!(rig.device.stop_queue(RECEIVE), Some(QueueState { base: 0 }));
    assert_eq!(rig.device.stop_queue(7), None);
    rig.device.reset();
    rig.device.start_queue(rig.transmit.setup(TRANSMIT, 1).unwrap()).unwrap();
    rig.transmit.add(&[Buf::readable(0x8000, 1)]).unwrap();
    rig.transmit.kick();
    rig.transmit.wait(LIMIT).unwrap();
}

#[test]
fn a_hostile_ring_is_refused() {
    let mut rig = Rig::new();
    // A buffer outside memory is answered empty; the next one is served.
    rig.transmit.add(&[Buf::readable(0xffff_0000, 16)]).unwrap();
    rig.memory.write_at(0x8000, b"ok").unwrap();
    rig.transmit.add(&[Buf::readable(0x8000, 2)]).unwrap();
    rig.transmit.kick();
    rig.transmit.wait(LIMIT).unwrap();
    rig.transmit.wait(LIMIT).unwrap();
    let mut seen = [0; 2];
    rig.client().read_exact(&mut seen).unwrap();
    assert_eq!(&seen, b"ok");
    let mut wrong = rig.receive.setup(RECEIVE, 0).unwrap();
    wrong.desc = 0xffff_f000;
    rig.device.stop_queue(RECEIVE);
    assert!(matches!(rig.device.start_queue(wrong), Err(StartError::Ring { .. })));
}

#[test]
fn the_size_is_in_the_configuration() {
    let mut rig = Rig::new();
    rig.size.set(132, 50);
    let mut config = [0xff; 6];
    rig.device.read_config(0, &mut config);
    assert_eq!(config, [132, 0, 50, 0, 0, 0]);
    rig.device.read_config(u32::MAX, &mut config);
    assert_eq!(config, [0; 6]);
}
