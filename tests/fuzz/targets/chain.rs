//! The walk of descriptor chains, direct and indirect, in a ring whose every byte the fuzzer wrote.
#![no_main]

use libfuzzer_sys::fuzz_target;
use strata_virtio::chain::Chain;
use strata_virtio::queue::Popped;

fuzz_target!(|data: &[u8]| {
    let Some((&flags, data)) = data.split_first() else { return };
    let Some(memory) = strata_fuzz::memory(data) else { return };
    let features = if flags & 1 == 0 { strata_fuzz::FEATURES } else { 1 << 32 };
    let Some(mut queue) = strata_fuzz::queue(&memory, features, u16::from(flags >> 1)) else { return };
    let mut chain = Chain::new();
    // A ring holds at most its size of requests that were not answered; answered ones may come again.
    for round in 0..64u32 {
        match queue.pop(&mut chain) {
            Ok(Popped::Chain) => {
                let mut bytes = [0; 64];
                let _ = chain.copy_out(round as usize, &mut bytes);
                let _ = chain.copy_in(round as usize, &bytes);
                let _ = chain.zero(0, chain.writable_len());
                let mut out = Vec::new();
                let _ = chain.readable_range(16, chain.readable_len().saturating_sub(16), &mut out);
                let total: usize = out.iter().map(|slice| slice.len()).sum();
                assert!(total <= chain.readable_len());
                queue.push(chain.head(), chain.writable_len() as u32);
            }
            Ok(Popped::Malformed { head, .. }) => {
                queue.push(head, 0);
            }
            Ok(Popped::Empty) | Err(_) => break,
        }
        queue.publish();
        queue.arm_kicks();
        queue.suppress_kicks();
    }
});
