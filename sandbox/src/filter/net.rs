//! What only `vhost-net` needs: frames through the tap it has, and the tap's switches.
//!
//! It can make no socket and, being in an empty network namespace, reaches no network but through the tap.

use super::rule::{Call, allow, is, only};

// uapi linux/if_tun.h.
const TUNSETTXFILTER: u32 = 0x4004_54d1;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETSNDBUF: u32 = 0x4004_54d4;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
const TUNSETQUEUE: u32 = 0x4004_54d9;
const TUNSETVNETLE: u32 = 0x4004_54dc;
const TUNSETCARRIER: u32 = 0x4004_54e2;
const TUNGETIFF: u32 = 0x8004_54d2;

pub(super) const CALLS: &[Call] = &[
    allow(libc::SYS_io_uring_enter, "batches of frames, through rings made before and restricted to the tap"),
    allow(libc::SYS_preadv2, "a frame, if there is one"),
    allow(libc::SYS_pwritev2, "a frame, if there is room"),
    allow(libc::SYS_sendmmsg, "batches of frames through a packet socket"),
    allow(libc::SYS_recvmmsg, "the same, inwards"),
    allow(libc::SYS_fstatfs, "whether a file it is given is hugetlbfs"),
    only(
        libc::SYS_ioctl,
        &[
            is(1, TUNSETOFFLOAD),
            is(1, TUNSETVNETHDRSZ),
            is(1, TUNSETQUEUE),
            is(1, TUNSETTXFILTER),
            is(1, TUNSETSNDBUF),
            is(1, TUNSETVNETLE),
            is(1, TUNSETCARRIER),
            is(1, TUNGETIFF),
        ],
        "offloads, header size, queues, receive filter and carrier, as the driver asks",
    ),
];
