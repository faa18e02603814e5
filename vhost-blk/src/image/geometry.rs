#![allow(unsafe_code)] // ioctls of block devices and statx have no safe wrapper that returns what is needed here
//! Sizes and alignments of an image, asked of the kernel once.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use super::{Kind, SECTOR};

/// What a guest is told about blocks, and what direct I/O demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the image in bytes as the kernel reports it.
    pub bytes: u64,
    /// Whole logical blocks of it, in 512-byte sectors.
    pub capacity: u64,
    /// The unit of addressing in bytes, a power of two from 512 to 64 KiB.
    pub logical_block: u32,
    /// The unit below which the device reads, modifies and writes; at least `logical_block`.
    pub physical_block: u32,
    /// Suggested smallest request in bytes (0: unknown).
    pub min_io: u32,
    /// Suggested request in bytes (0: unknown).
    pub opt_io: u32,
    /// Alignment of memory for direct I/O, in bytes; 1 if the page cache is used.
    pub memory_align: u32,
    /// Alignment of offset and length for direct I/O, in bytes; 1 if the page cache is used.
    pub offset_align: u32,
}

impl Geometry {
    /// Asks the kernel. `direct` is the O_DIRECT descriptor, if there is one.
    pub(super) fn measure(file: &File, direct: Option<BorrowedFd<'_>>, kind: Kind) -> io::Result<Self> {
        let bytes = (&mut &*file).seek(SeekFrom::End(0))?;
        let (memory_align, offset_align) = match direct {
            Some(direct) => direct_alignment(direct),
            None => (1, 1),
        };
        let mut geometry = if kind == Kind::BlockDevice {
            block_device(file)?
        } else {
            let block = u32::try_from(file.metadata()?.blksize()).unwrap_or(4096);
            Self {
                bytes,
                capacity: 0,
                // A file is addressed by the byte; with direct I/O by what its file system demands. Telling the
                // guest keeps it from requests that would have to be read, modified and written back.
                logical_block: block_size(offset_align, SECTOR as u32),
                physical_block: block_size(block, 4096),
                min_io: 0,
                opt_io: 0,
                memory_align,
                offset_align,
            }
        };
        geometry.physical_block = geometry.physical_block.max(geometry.logical_block);
        geometry.bytes = bytes;
        geometry.memory_align = memory_align;
        geometry.offset_align = offset_align;
        let blocks = bytes / u64::from(geometry.logical_block);
        geometry.capacity = blocks * (u64::from(geometry.logical_block) / SECTOR);
        Ok(geometry)
    }
}

/// A power of two between a sector and 64 KiB, or `default`.
fn block_size(value: u32, default: u32) -> u32 {
    if value.is_power_of_two() && (512..=65536).contains(&value) { value } else { default }
}

/// STATX_DIOALIGN (Linux 6.1; block devices too). Where it is not answered, a page is enough for everything.
fn direct_alignment(fd: BorrowedFd<'_>) -> (u32, u32) {
    let mut answer = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, as AT_EMPTY_PATH asks; `answer` is writable for the call.
    let rc = unsafe {
        libc::statx(
            fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            answer.as_mut_ptr(),
        )
    };
    // SAFETY: zeroed above, and all bit patterns are valid for this plain structure.
    let answer = unsafe { answer.assume_init() };
    if rc == 0
        && answer.stx_mask & libc::STATX_DIOALIGN != 0
        && answer.stx_dio_offset_align.is_power_of_two()
        && answer.stx_dio_mem_align.is_power_of_two()
    {
        (answer.stx_dio_mem_align, answer.stx_dio_offset_align)
    } else {
        (4096, 4096)
    }
}

/// Whether the page cache is the only home of this file's bytes.
pub(super) fn lives_in_memory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    use nix::sys::statfs::{FsType, HUGETLBFS_MAGIC, TMPFS_MAGIC, fstatfs};
    const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
    let fs = fstatfs(fd)?.filesystem_type();
    Ok(fs == TMPFS_MAGIC || fs == HUGETLBFS_MAGIC || fs == RAMFS_MAGIC)
}

fn block_device(file: &File) -> io::Result<Geometry> {
    nix::ioctl_read_bad!(logical, 0x1268, libc::c_int); // BLKSSZGET
    nix::ioctl_read_bad!(minimum, 0x1278, libc::c_uint); // BLKIOMIN
    nix::ioctl_read_bad!(optimal, 0x1279, libc::c_uint); // BLKIOOPT
    nix::ioctl_read_bad!(physical, 0x127b, libc::c_uint); // BLKPBSZGET
    let fd = file.as_raw_fd();
    let (mut ssz, mut pbsz, mut iomin, mut ioopt) = (0, 0, 0, 0);
    // SAFETY: each ioctl writes one int to the place it is given, which lives until after the calls.
    unsafe {
        logical(fd, &mut ssz)?;
        physical(fd, &mut pbsz)?;
        minimum(fd, &mut iomin)?;
        optimal(fd, &mut ioopt)?;
    }
    let logical_block = block_size(u32::try_from(ssz).unwrap_or(512), 512);
    Ok(Geometry {
        bytes: 0,
        capacity: 0,
        logical_block,
        physical_block: block_size(pbsz, logical_block),
        min_io: iomin,
        opt_io: ioopt,
        memory_align: 1,
        offset_align: 1,
    })
}
