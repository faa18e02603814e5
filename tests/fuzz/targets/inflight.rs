//! An inflight region whose every byte is the peer's: recovery from it must stay within the ring.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_virtio::chain::Chain;
use strata_virtio::device::QueueSetup;
use strata_virtio::inflight::Inflight;
use strata_virtio::queue::{Popped, Queue};

fuzz_target!(|data: &[u8]| {
    let Ok(created) = Inflight::create(1, 16) else { return };
    let split = data.len().min(created.inflight.len() as usize);
    if nix::sys::uio::pwrite(&created.fd, data.get(..split).unwrap_or_default(), 0).is_err() {
        return;
    }
    let region = created.inflight;
    let Some(memory) = strata_fuzz::memory(data.get(split..).unwrap_or_default()) else { return };
    let setup = QueueSetup {
        index: 0,
        size: 16,
        desc: 0,
        avail: 0x100,
        used: 0x200,
        features: strata_fuzz::FEATURES,
        base: 0,
        kick: None,
        call: None,
        err: None,
        memory,
        inflight: region.queue(0),
        inherited: false,
    };
    let Ok(mut queue) = Queue::new(&setup) else { return };
    let mut chain = Chain::new();
    for _ in 0..40 {
        match queue.pop(&mut chain) {
            Ok(Popped::Chain) => queue.push(chain.head(), 0),
            Ok(Popped::Malformed { head, .. }) => queue.push(head, 0),
            Ok(Popped::Empty) | Err(_) => break,
        };
        queue.publish();
    }
});
