//! What only `vhost-blk` needs: reading and writing the image it has.
//!
//! io_uring: its rings are made, bound to the image and restricted to reading and writing it before the lock;
//! afterwards only `io_uring_enter` is allowed, so nothing gets round this list by way of a ring.

use super::rule::{Call, allow, is, only};

/// uapi linux/fs.h: `_IO(0x12, 119)`, `_IO(0x12, 127)`.
const BLKDISCARD: u32 = 0x1277;
const BLKZEROOUT: u32 = 0x127f;

pub(super) const CALLS: &[Call] = &[
    allow(libc::SYS_io_uring_enter, "requests to the image, through rings made before"),
    allow(libc::SYS_pread64, "reads, without io_uring"),
    allow(libc::SYS_pwrite64, "writes, without io_uring"),
    allow(libc::SYS_preadv, "vectored reads"),
    allow(libc::SYS_pwritev, "vectored writes"),
    allow(libc::SYS_preadv2, "reads that must not wait (RWF_NOWAIT)"),
    allow(libc::SYS_pwritev2, "writes that must be durable (RWF_DSYNC)"),
    allow(libc::SYS_fsync, "flush"),
    allow(libc::SYS_fdatasync, "flush"),
    allow(libc::SYS_sync_file_range, "early writeback"),
    allow(libc::SYS_fallocate, "discard and write zeroes on a file"),
    allow(libc::SYS_fstatfs, "whether a file it is given is hugetlbfs"),
    only(
        libc::SYS_ioctl,
        &[is(1, BLKDISCARD), is(1, BLKZEROOUT)],
        "discard and write zeroes on a block device",
    ),
    only(
        libc::SYS_fcntl,
        &[is(1, libc::F_OFD_SETLK as u32), is(1, libc::F_OFD_GETLK as u32)],
        "image locks, when the image is reopened or let go",
    ),
];
