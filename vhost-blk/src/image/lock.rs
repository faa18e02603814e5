//! One writer, or any number of readers: open-file-description locks on the image.
//!
//! Such a lock (fcntl(2), "Open file description locks") lives exactly as long as the open file does, survives
//! the fork into the sandbox, and is advisory: it keeps out those who ask. QEMU and Cloud Hypervisor ask, in
//! their own ways, so the bytes are chosen to be understood by both:
//!
//! - A writer takes a write lock on the whole file. That conflicts with any lock of anybody.
//! - A reader takes read locks on two bytes of QEMU's scheme (block/file-posix.c: byte 100+n is held by those
//!   who use permission n, byte 200+n by those who do not share it; n = 0 reading, 1 writing): 100, "I read",
//!   and 201, "nobody may write". It then looks whether somebody holds 101, "I write". Readers of Strata, QEMU
//!   and Cloud Hypervisor (a read lock on the whole file) do not conflict with these.
//!
//! The locked open file is the one that is registered with io_uring. So when a backend is killed, its lock
//! outlives it until the kernel has finished the last write it had submitted, and a successor does not begin
//! while an old write could still land on a newer one. For this [`acquire`] waits, longer if no living process is
//! seen to hold the lock.
//!
//! Called by [`super::Image::open`]. Refuses an image on a file system without locks.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use super::{ImageError, holder};

/// How long a process that has been killed may take to be gone.
const DYING_HOLDER: Duration = Duration::from_millis(300);
/// How long the writes of a killed backend may take to finish.
const DEAD_HOLDER: Duration = Duration::from_secs(5);
const UNSEEN: &str = "another process (which one cannot be seen from here)";

const QEMU_READS: i64 = 100;
const QEMU_WRITES: i64 = 101;
const QEMU_DENIES_WRITES: i64 = 201;

/// Takes the lock for as long as `file`'s open file description lives.
pub(super) fn acquire(file: &File, path: &Path, read_only: bool) -> Result<(), ImageError> {
    let begun = Instant::now();
    loop {
        match attempt(file, read_only) {
            Ok(()) => return Ok(()),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(errno) => {
                return Err(ImageError::Lock { path: path.to_owned(), source: io::Error::from(errno) });
            }
        }
        let holder = holder::find(file);
        if begun.elapsed() > if holder.is_some() { DYING_HOLDER } else { DEAD_HOLDER } {
            let holder = holder.unwrap_or_else(|| UNSEEN.into());
            return Err(ImageError::InUse { path: path.to_owned(), read_only, holder });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Lets the lock go now. The kernel puts an io_uring away some time after its process, and the open file with it; an
/// image that nothing is under way for need not wait for that.
pub(super) fn release(file: &File) {
    if let Err(errno) = set(file, libc::F_UNLCK, 0, 0) {
        tracing::debug!("the lock is let go with the file: {errno}");
    }
}

fn attempt(file: &File, read_only: bool) -> Result<(), Errno> {
    if read_only {
        set(file, libc::F_RDLCK, QEMU_READS, 1)?;
        set(file, libc::F_RDLCK, QEMU_DENIES_WRITES, 1)?;
        nobody_writes(file)
    } else {
        set(file, libc::F_WRLCK, 0, 0)
    }
}

fn set(file: &File, kind: libc::c_int, start: i64, len: i64) -> Result<(), Errno> {
    let range = range(kind, start, len);
    fcntl(file, FcntlArg::F_OFD_SETLK(&range)).map(drop)
}

/// A read lock of ours does not conflict with the read lock by which QEMU says that it writes: ask for it.
fn nobody_writes(file: &File) -> Result<(), Errno> {
    let mut found = range(libc::F_WRLCK, QEMU_WRITES, 1);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    // A read lock over the whole file is a reader that does not know QEMU's bytes (Cloud Hypervisor).
    let whole_file_reader =
        i32::from(found.l_type) == libc::F_RDLCK && found.l_start == 0 && found.l_len == 0;
    if i32::from(found.l_type) == libc::F_UNLCK || whole_file_reader { Ok(()) } else { Err(Errno::EAGAIN) }
}

fn range(kind: libc::c_int, start: i64, len: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start,
        l_len: len,
        l_pid: 0,
    }
}
