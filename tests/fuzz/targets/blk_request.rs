//! A block request out of any chain: parsed once, answered once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_vhost_blk::request::{Fault, Limits, Request, Status};
use strata_virtio::chain::Chain;
use strata_virtio::queue::Popped;

fuzz_target!(|data: &[u8]| {
    let Some((&flags, data)) = data.split_first() else { return };
    let Some(memory) = strata_fuzz::memory(data) else { return };
    let Some(mut queue) = strata_fuzz::queue(&memory, strata_fuzz::FEATURES, 0) else { return };
    let limits = Limits {
        capacity: 1 << (flags >> 2 & 31),
        read_only: flags & 1 != 0,
        block_sectors: if flags & 2 != 0 { 8 } else { 1 },
    };
    let mut chain = Chain::new();
    let mut request = Request::default();
    for _ in 0..32 {
        let (head, written) = match queue.pop(&mut chain) {
            Ok(Popped::Chain) => match request.parse(&chain, &limits) {
                Ok(()) => match request.answer.take() {
                    Some(answer) => answer.write(&memory, Status::Ok),
                    None => panic!("a parsed request without an answer"),
                },
                Err(Fault::Unanswerable { head }) => (head, 0),
                Err(Fault::Refused { answer, status, .. }) => answer.write(&memory, status),
            },
            Ok(Popped::Malformed { head, .. }) => (head, 0),
            Ok(Popped::Empty) | Err(_) => break,
        };
        assert!(queue.push(head, written), "an answer to a request that was not taken");
        queue.publish();
    }
});
