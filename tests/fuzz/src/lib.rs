//! What the targets share: guest memory filled with the fuzzer's bytes, and a ring in it.

use std::sync::Arc;

use strata_virtio::device::QueueSetup;
use strata_virtio::memory::Memory;
use strata_virtio::queue::Queue;

/// Bytes of guest memory: small, so that random addresses often hit.
pub const MEMORY: u64 = 1 << 16;

/// Ring features a target may negotiate: EVENT_IDX, indirect descriptors, VERSION_1.
pub const FEATURES: u64 = 1 << 29 | 1 << 28 | 1 << 32;

/// Memory that holds `data` from 0 on and zeroes after it.
pub fn memory(data: &[u8]) -> Option<Arc<Memory>> {
    let memory = Memory::anonymous(MEMORY).ok()?;
    let len = data.len().min(MEMORY as usize);
    memory.write_at(0, data.get(..len)?).ok()?;
    Some(Arc::new(memory))
}

/// A queue of 16 descriptors at the start of `memory`: table at 0, avail at 0x100, used at 0x200.
pub fn queue(memory: &Arc<Memory>, features: u64, base: u16) -> Option<Queue> {
    let setup = QueueSetup {
        index: 0,
        size: 16,
        desc: 0,
        avail: 0x100,
        used: 0x200,
        features,
        base,
        kick: None,
        call: None,
        err: None,
        memory: Arc::clone(memory),
        inflight: None,
        inherited: false,
    };
    Queue::new(&setup).ok()
}
