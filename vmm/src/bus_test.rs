use std::sync::{Arc, Mutex};

use super::{Bus, BusDevice, BusError};

type Seen = Arc<Mutex<Vec<(u64, Vec<u8>)>>>;

struct Recorder(Seen);

impl BusDevice for Recorder {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset).unwrap());
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push((offset, data.to_vec()));
    }
}

fn bus() -> (Bus, Seen) {
    let seen = Seen::default();
    let mut bus = Bus::new();
    bus.attach(0x600, 4, Box::new(Recorder(Arc::clone(&seen)))).unwrap();
    bus.attach(0x3f8, 8, Box::new(Recorder(Arc::clone(&seen)))).unwrap();
    (bus, seen)
}

#[test]
fn accesses_reach_their_device_with_its_own_offsets() {
    let (bus, seen) = bus();
    let mut data = [0];
    bus.read(0x3ff, &mut data);
    assert_eq!(data, [7]);
    assert!(bus.write(0x602, &[1, 2]));
    assert_eq!(*seen.lock().unwrap(), [(2, vec![1, 2])]);
}

#[test]
fn nobody_reads_as_all_ones() {
    let (bus, seen) = bus();
    for address in [0, 0x3f7, 0x400, 0x5ff, 0x604, u64::MAX] {
        let mut data = [0; 4];
        bus.read(address, &mut data);
        assert_eq!(data, [0xff; 4], "{address:#x}");
        assert!(!bus.write(address, &data), "{address:#x}");
    }
    // An access that begins inside a range and leaves it belongs to nobody.
    let mut data = [0; 4];
    bus.read(0x602, &mut data);
    assert_eq!(data, [0xff; 4]);
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn ranges_that_overlap_or_wrap_are_refused() {
    let (mut bus, seen) = bus();
    let mut attach = |base, len| bus.attach(base, len, Box::new(Recorder(Arc::clone(&seen))));
    for (base, len) in [(0x600, 1), (0x5ff, 2), (0x603, 1), (0x3f0, 0x1000)] {
        assert_eq!(attach(base, len), Err(BusError::Overlap { base, len }));
    }
    for (base, len) in [(0, 0), (u64::MAX, 1), (2, u64::MAX)] {
        assert_eq!(attach(base, len), Err(BusError::Range { base, len }));
    }
    attach(0x604, 1).unwrap();
    attach(0x5ff, 1).unwrap();
}
