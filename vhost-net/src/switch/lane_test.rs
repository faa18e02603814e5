use std::sync::Arc;

use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::spec::RING_FEATURES;

use super::*;

const FEATURES: u64 = RING_FEATURES | feature::MRG_RXBUF;

fn lane(size: u16) -> (Arc<Memory>, DriverQueue, Lane, PortStats) {
    let memory = Arc::new(Memory::anonymous(4 << 20).unwrap());
    let queue = DriverQueue::new(&memory, 0x1000, size, FEATURES).unwrap();
    let vring = Vring::new(queue.setup(0, 0).unwrap()).unwrap();
    (memory, queue, Lane::new(vring, FEATURES), PortStats::default())
}

/// Buffers of any shape are filled in their order, to the byte.
#[test]
fn a_frame_over_buffers_of_many_pieces() {
    let (memory, mut queue, mut lane, stats) = lane(64);
    let bytes: Vec<u8> = (0..2000).map(|n| (n % 251) as u8).collect();
    let at = 0x10_0000u64;
    memory.write_at(at, &vec![0xee; 8192]).unwrap();
    let shapes: [&[u32]; 4] = [&[12], &[1, 11, 500], &[700, 1], &[2000]];
    let mut gpa = at;
    for shape in shapes {
        let bufs: Vec<Buf> = shape
            .iter()
            .map(|len| {
                gpa += 16 + u64::from(*len);
                Buf::writable(gpa - u64::from(*len), *len)
            })
            .collect();
        queue.add(&bufs).unwrap();
    }
    queue.publish();
    lane.deliver(&Out::of_bytes(&bytes), &stats);
    lane.vring_mut().flush();
    let lengths: Vec<u32> = std::iter::from_fn(|| queue.poll()).map(|(_, len)| len).collect();
    assert_eq!(lengths, [12, 512, 701, 775]);
    let (mut got, mut gpa) = (Vec::new(), at);
    for len in shapes.concat() {
        let mut gap = [0; 16];
        memory.read_at(gpa, &mut gap).unwrap();
        assert_eq!(gap, [0xee; 16], "between the buffers");
        let mut part = vec![0; len as usize];
        memory.read_at(gpa + 16, &mut part).unwrap();
        got.extend(part);
        gpa += 16 + u64::from(len);
    }
    let mut expected = bytes;
    expected[10..12].copy_from_slice(&4u16.to_le_bytes());
    assert_eq!(got[..2000], expected);
    assert!(got[2000..].iter().all(|byte| *byte == 0xee), "nothing behind the frame");
}

#[test]
fn buffers_without_room_for_a_header_are_answered_empty() {
    let (_memory, mut queue, mut lane, stats) = lane(8);
    for len in [1, 11, 100] {
        queue.add(&[Buf::writable(0x10_0000, len)]).unwrap();
    }
    queue.publish();
    lane.deliver(&Out::of_bytes(&[7; 60]), &stats);
    lane.vring_mut().flush();
    let lengths: Vec<u32> = std::iter::from_fn(|| queue.poll()).map(|(_, len)| len).collect();
    assert_eq!(lengths, [0, 0, 60]);
    // With nothing left, frames wait up to the bound, and the queue stops with none taken.
    for _ in 0..WAITING_FRAMES + 5 {
        lane.deliver(&Out::of_bytes(&[7; 60]), &stats);
    }
    assert_eq!((stats.rx_waited.get(), stats.rx_drop_full.get()), (WAITING_FRAMES as u64, 5));
    assert_eq!(lane.stop(&stats).state().base, 3);
    assert_eq!(stats.rx_drop_stopped.get(), WAITING_FRAMES as u64);
}
