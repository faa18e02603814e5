//! What every role needs: memory, threads, sleeping, its descriptors, and ending.
//!
//! Nothing here takes a path or reaches another process.

use std::borrow::Cow;

use nix::unistd::Pid;

use super::rule::{Call, Check, Refused, When, allow, has, is, lacks, masked, only, refused};

const EXEC: u32 = libc::PROT_EXEC as u32;
const EMPTY_PATH: u32 = libc::AT_EMPTY_PATH as u32;
const NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;
const THREAD: u32 = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u32;
/// PR_SET_VMA, uapi linux/prctl.h.
const PR_SET_VMA: u32 = 0x5356_4d41;

/// Not allowed and not fatal.
pub(super) const REFUSED: &[Refused] = &[
    refused(
        libc::SYS_clone3,
        libc::ENOSYS,
        "its flags are in memory; glibc then uses clone, whose flags show",
    ),
    refused(
        libc::SYS_openat,
        libc::EACCES,
        "glibc's malloc reads /proc/sys/vm/overcommit_memory when it shrinks",
    ),
    refused(libc::SYS_readlink, libc::EACCES, "std asks for the program's path when it prints a backtrace"),
    refused(libc::SYS_getcwd, libc::EACCES, "std shortens paths in a backtrace by it"),
];

pub(super) const CALLS: &[Call] = &[
    // descriptors it has
    allow(libc::SYS_read, "eventfds, sockets, signalfd, tty"),
    allow(libc::SYS_write, "eventfds, sockets, log"),
    allow(libc::SYS_readv, "vectored input"),
    allow(libc::SYS_writev, "vectored output; std prints panics with it"),
    allow(libc::SYS_close, "everything that ends"),
    allow(libc::SYS_lseek, "sizes of files it has"),
    allow(libc::SYS_fstat, "sizes of memory regions, checked before they are mapped"),
    only(libc::SYS_newfstatat, &[has(3, EMPTY_PATH)], "glibc's fstat"),
    only(libc::SYS_statx, &[has(2, EMPTY_PATH)], "std's File::metadata"),
    only(
        libc::SYS_fcntl,
        &[
            is(1, libc::F_GETFD as u32),
            is(1, libc::F_SETFD as u32),
            is(1, libc::F_GETFL as u32),
            is(1, libc::F_SETFL as u32),
            is(1, libc::F_DUPFD_CLOEXEC as u32),
            is(1, libc::F_GET_SEALS as u32),
            is(1, libc::F_ADD_SEALS as u32),
        ],
        "duplicates and modes of descriptors; seals of shared memory",
    ),
    only(libc::SYS_ioctl, &[is(1, libc::FIONBIO as u32)], "std's set_nonblocking"),
    allow(libc::SYS_ftruncate, "size of the shared memory it makes"),
    only(
        libc::SYS_memfd_create,
        &[masked(1, !(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_NOEXEC_SEAL), 0)],
        "inflight regions; not executable ones that exec could use, and no exec",
    ),
    allow(libc::SYS_eventfd2, "stop and wake-up signals between threads"),
    // waiting
    allow(libc::SYS_epoll_create1, "waits of a session or a queue thread"),
    allow(libc::SYS_epoll_ctl, "the same"),
    allow(libc::SYS_epoll_wait, "the same"),
    allow(libc::SYS_epoll_pwait, "glibc's and mio's way to wait"),
    allow(libc::SYS_epoll_pwait2, "waits with nanoseconds"),
    allow(libc::SYS_poll, "std checks and waits"),
    allow(libc::SYS_ppoll, "the same with nanoseconds"),
    allow(libc::SYS_nanosleep, "std's sleep"),
    allow(libc::SYS_clock_nanosleep, "std's sleep"),
    allow(libc::SYS_restart_syscall, "the kernel resumes an interrupted sleep with it"),
    allow(libc::SYS_clock_gettime, "where the vDSO cannot: a guest's clock source"),
    allow(libc::SYS_clock_getres, "the same"),
    allow(libc::SYS_gettimeofday, "the same"),
    allow(libc::SYS_time, "the same"),
    // unix sockets it has
    allow(libc::SYS_accept4, "the next client of its listening socket"),
    allow(libc::SYS_recvmsg, "vhost-user messages and their descriptors"),
    allow(libc::SYS_sendmsg, "answers, and requests of its own"),
    allow(libc::SYS_recvfrom, "stream input"),
    allow(libc::SYS_sendto, "stream output without SIGPIPE"),
    allow(libc::SYS_shutdown, "ends a connection both ways"),
    allow(libc::SYS_getsockopt, "whether a socket listens, and its error"),
    allow(libc::SYS_setsockopt, "time limits"),
    allow(libc::SYS_getsockname, "std asks when it takes a descriptor for a socket"),
    allow(libc::SYS_getpeername, "the same"),
    // memory
    only(libc::SYS_mmap, &[lacks(2, EXEC)], "heap, stacks, guest memory; never executable"),
    only(libc::SYS_mprotect, &[lacks(2, EXEC)], "stack guards, heap; never executable"),
    allow(libc::SYS_munmap, "the same"),
    allow(libc::SYS_mremap, "realloc; keeps the protection, so never executable"),
    allow(libc::SYS_madvise, "heap given back, huge pages, guest memory kept out of dumps"),
    allow(libc::SYS_brk, "heap"),
    allow(libc::SYS_membarrier, "barriers between threads"),
    // threads
    only(libc::SYS_clone, &[masked(0, THREAD | NAMESPACES, THREAD)], "threads of this process only"),
    allow(libc::SYS_set_robust_list, "glibc, at the start of each thread"),
    allow(libc::SYS_rseq, "the same"),
    allow(libc::SYS_set_tid_address, "the same"),
    allow(libc::SYS_futex, "locks, joins, parking"),
    allow(libc::SYS_sched_yield, "a polling thread lets others run"),
    allow(libc::SYS_getrusage, "it looks whether they did; processor time, for statistics"),
    allow(libc::SYS_sched_getaffinity, "how many processors there are"),
    allow(libc::SYS_sched_setaffinity, "threads pinned to processors"),
    allow(libc::SYS_getcpu, "malloc's arenas, where the vDSO cannot"),
    allow(libc::SYS_getpid, "its own id"),
    allow(libc::SYS_gettid, "its threads' ids"),
    allow(libc::SYS_getuid, "tokio and std ask who it is"),
    allow(libc::SYS_geteuid, "the same"),
    allow(libc::SYS_getgid, "the same"),
    allow(libc::SYS_getegid, "the same"),
    only(
        libc::SYS_prctl,
        &[is(0, libc::PR_SET_NAME as u32), is(0, PR_SET_VMA)],
        "names of threads and of heap areas",
    ),
    allow(libc::SYS_getrandom, "seeds of hash maps"),
    // signals to itself, and the end
    allow(libc::SYS_rt_sigaction, "handlers; abort resets its own"),
    allow(libc::SYS_rt_sigprocmask, "around thread starts and aborts"),
    allow(libc::SYS_rt_sigreturn, "end of a handler"),
    allow(libc::SYS_rt_sigtimedwait, "a thread that waits for signals"),
    allow(libc::SYS_sigaltstack, "std's guard against stack overflow, per thread"),
    allow(libc::SYS_exit, "end of a thread"),
    allow(libc::SYS_exit_group, "end of the process"),
];

/// Signals to threads of the process itself.
pub(super) fn to_itself(own: Pid) -> Vec<Call> {
    let own: Vec<Check> = u32::try_from(own.as_raw()).map(|own| vec![is(0, own)]).unwrap_or_default();
    vec![Call {
        number: libc::SYS_tgkill,
        when: When::Any(Cow::Owned(own)),
        why: "abort; vCPU threads are kicked",
    }]
}
