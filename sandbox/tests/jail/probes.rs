#![allow(unsafe_code)] // forbidden calls are made raw
#![allow(clippy::undocumented_unsafe_blocks)] // none is sound to allow; that is the point of each
//! What an inmate tries.
//!
//! The controls make the same calls outside of any sandbox, maybe as root: every one is chosen to fail or to change
//! nothing there.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use strata_sandbox::{Isolated, Role};

/// Descriptors a role works on, as far as this machine has them.
pub(crate) struct Devices {
    kvm: Option<OwnedFd>,
    tap: Option<OwnedFd>,
}

impl Devices {
    pub(crate) fn open(role: Role) -> Self {
        let open = |path| File::options().read(true).write(true).open(path).ok().map(OwnedFd::from);
        Self {
            kvm: (role == Role::Vmm).then(|| open("/dev/kvm")).flatten(),
            tap: (role == Role::Net).then(|| open("/dev/net/tun")).flatten().filter(make_tap),
        }
    }
}

fn make_tap(tun: &OwnedFd) -> bool {
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) == 0 }
}

/// What tries to get at a tap, a disk or KVM says to a descriptor that is none.
const NO_FD: i32 = 999;
const KVM_CREATE_VM: libc::c_ulong = 0xae01;
const KVM_CREATE_VCPU: libc::c_ulong = 0xae41;
const KVM_RUN: libc::c_ulong = 0xae80;
const BLKDISCARD: libc::c_ulong = 0x1277;

/// Makes one call; says what came of it, in the form `number errno`. Does not come back if that is the way it is held.
pub(crate) fn probe(name: &str, _devices: &Devices) -> String {
    let file = c"/etc/passwd".as_ptr();
    let none = std::ptr::null::<u8>();
    let outside: i32 = std::env::var("JAIL_OUTSIDE").ok().and_then(|pid| pid.parse().ok()).unwrap_or(1);
    nix::errno::Errno::clear();
    let returned: libc::c_long = unsafe {
        match name {
            "open" => libc::syscall(libc::SYS_open, file, libc::O_RDONLY),
            "open-root" => libc::syscall(libc::SYS_open, c"/".as_ptr(), libc::O_RDONLY | libc::O_DIRECTORY),
            "stat" => {
                let mut stat: libc::stat = std::mem::zeroed();
                libc::syscall(libc::SYS_stat, file, &mut stat)
            }
            "create" => {
                libc::syscall(libc::SYS_open, c"/tmp".as_ptr(), libc::O_TMPFILE | libc::O_RDWR, 0o600)
            }
            "create-in-root" => {
                // The one call that would leave something behind outside.
                assert_eq!(std::process::id(), 1, "only in a sandbox");
                libc::syscall(libc::SYS_mkdir, c"/strata-jail-test".as_ptr(), 0o700)
            }
            "openat" => libc::syscall(libc::SYS_openat, libc::AT_FDCWD, file, libc::O_RDONLY),
            "openat2" => libc::syscall(libc::SYS_openat2, libc::AT_FDCWD, file, none, 0),
            "unlink" => libc::syscall(libc::SYS_unlink, c"/nothing".as_ptr()),
            "chmod" => libc::syscall(libc::SYS_chmod, c"/nothing".as_ptr(), 0o777),
            "execve" => libc::syscall(libc::SYS_execve, c"/nothing".as_ptr(), none, none),
            "socket-inet" => libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0),
            "socket-unix" => libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0),
            "socket-netlink" => libc::syscall(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0),
            "connect-inet" => connect_inet(),
            "connect-abstract" => connect_abstract(),
            "bind" => libc::syscall(libc::SYS_bind, NO_FD, none, 0),
            "kill" => libc::syscall(libc::SYS_kill, outside, 0),
            "tgkill-other" => libc::syscall(libc::SYS_tgkill, outside, outside, 0),
            "ptrace" => libc::syscall(libc::SYS_ptrace, libc::PTRACE_TRACEME, 0, 0, 0),
            "process-vm" => {
                let mut byte = 0u8;
                let own = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
                libc::syscall(
                    libc::SYS_process_vm_readv,
                    outside,
                    &raw const own,
                    1,
                    &raw const own,
                    1,
                    0_usize,
                )
            }
            "pidfd-open" => libc::syscall(libc::SYS_pidfd_open, outside, 0),
            // Rights are asked for before the file system is looked up, and this one is none: nothing is mounted even
            // where it is allowed.
            "mount" => {
                let (at, kind) = (c"/".as_ptr(), c"strata-jail-none".as_ptr());
                libc::syscall(libc::SYS_mount, c"none".as_ptr(), at, kind, 0, none)
            }
            "unshare-user" => libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER),
            "setns" => libc::syscall(libc::SYS_setns, NO_FD, 0),
            "setuid" => libc::syscall(libc::SYS_setuid, 0),
            // Likewise: too long a name, found after the rights.
            "sethostname" => libc::syscall(libc::SYS_sethostname, c"x".as_ptr(), 1000),
            "bpf" => libc::syscall(libc::SYS_bpf, 0, none, 0),
            "perf" => libc::syscall(libc::SYS_perf_event_open, none, 0, -1, -1, 0),
            "keyctl" => libc::syscall(libc::SYS_keyctl, 0, 0, 0),
            "userfaultfd" => libc::syscall(libc::SYS_userfaultfd, 0),
            "io-uring-setup" => libc::syscall(libc::SYS_io_uring_setup, 1, none),
            "io-uring-register" => libc::syscall(libc::SYS_io_uring_register, NO_FD, 0, none, 0),
            "fork" => fork(),
            "clone3" => libc::syscall(libc::SYS_clone3, none, 0),
            "mmap-exec" => libc::syscall(
                libc::SYS_mmap,
                none,
                4096,
                libc::PROT_READ | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0_usize,
            ),
            "mprotect-exec" => mprotect_exec(),
            "allocate" => allocate(),
            "dumpable" => libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 1, 0, 0, 0),
            "get-dumpable" => libc::syscall(libc::SYS_prctl, libc::PR_GET_DUMPABLE, 0, 0, 0, 0),
            "seccomp" => libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, none),
            // The x32 numbers of the same architecture, and the calls of the 32-bit one.
            "x32" => libc::syscall(0x4000_0000 | libc::SYS_getpid),
            "i386" => i386_getpid(),
            "ioctl-kvm" => libc::syscall(libc::SYS_ioctl, NO_FD, KVM_RUN, 0),
            "ioctl-tap" => libc::syscall(libc::SYS_ioctl, NO_FD, libc::TUNSETOFFLOAD, 0),
            "ioctl-tap-new" => libc::syscall(libc::SYS_ioctl, NO_FD, libc::TUNSETIFF, none),
            "ioctl-disk" => libc::syscall(libc::SYS_ioctl, NO_FD, BLKDISCARD, none),
            "ioctl-tty-input" => libc::syscall(libc::SYS_ioctl, NO_FD, libc::TIOCSTI, none),
            other => panic!("{other}"),
        }
    };
    let errno =
        if returned < 0 { std::io::Error::last_os_error().raw_os_error().unwrap_or_default() } else { 0 };
    format!("{returned} {errno}")
}

unsafe fn connect_inet() -> libc::c_long {
    let port: u16 = std::env::var("JAIL_PORT").unwrap_or_default().parse().unwrap();
    unsafe {
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = port.to_be();
        address.sin_addr.s_addr = u32::from_ne_bytes([127, 0, 0, 1]);
        let socket = libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0);
        libc::syscall(libc::SYS_connect, socket, &raw const address, size_of_val(&address))
    }
}

/// An abstract socket has no path: only the network namespace and Landlock's scope hold it.
unsafe fn connect_abstract() -> libc::c_long {
    let name = std::env::var("JAIL_ABSTRACT").unwrap_or_default();
    unsafe {
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as u16;
        for (to, from) in address.sun_path[1..].iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let socket = libc::syscall(libc::SYS_socket, libc::AF_UNIX, libc::SOCK_STREAM, 0);
        libc::syscall(libc::SYS_connect, socket, &raw const address, 3 + name.len())
    }
}

unsafe fn fork() -> libc::c_long {
    unsafe {
        let child = libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0);
        if child == 0 {
            libc::_exit(0);
        }
        child
    }
}

unsafe fn mprotect_exec() -> libc::c_long {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    unsafe {
        let page = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0);
        libc::syscall(libc::SYS_mprotect, page, 4096, libc::PROT_READ | libc::PROT_EXEC)
    }
}

/// Private memory, not touched, until there is no more; how many MiB, at most 8192.
unsafe fn allocate() -> libc::c_long {
    let (size, flags) = (16 << 20, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    let more = |_: &libc::c_long| unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), size, access, flags, -1, 0) != libc::MAP_FAILED
    };
    (0..512).take_while(more).count() as libc::c_long * 16
}

#[cfg(target_arch = "x86_64")]
unsafe fn i386_getpid() -> libc::c_long {
    let mut number: i64 = 20;
    unsafe { std::arch::asm!("int 0x80", inout("rax") number) };
    number
}

#[cfg(not(target_arch = "x86_64"))]
unsafe fn i386_getpid() -> libc::c_long {
    0
}

/// What every role must still be able to do, and what its devices are for. Says `ready`, then one line per device.
pub(crate) fn ordinary(devices: &Devices) -> String {
    static DONE: AtomicU32 = AtomicU32::new(0);
    let threads: Vec<_> = (0..8)
        .map(|number| {
            std::thread::Builder::new().name(format!("worker {number}")).spawn(move || {
                // Enough to have malloc make, grow, shrink and drop an arena per thread.
                for round in 0..64_usize {
                    let block = vec![1u8; 1 << (10 + round % 14)];
                    assert_eq!(block.iter().rev().take(3).map(|byte| u32::from(*byte)).sum::<u32>(), 3);
                    std::thread::sleep(std::time::Duration::from_micros(50));
                }
                DONE.fetch_add(1, Ordering::Relaxed);
            })
        })
        .collect();
    for thread in threads {
        thread.unwrap().join().unwrap();
    }
    assert_eq!(DONE.load(Ordering::Relaxed), 8);
    assert!(std::thread::available_parallelism().is_ok());
    let map: std::collections::HashMap<u8, u8> = (0..9).map(|n| (n, n)).collect();
    assert_eq!(map.len(), 9);
    assert!(std::time::SystemTime::now() > std::time::UNIX_EPOCH);
    let mut said = "ready\n".to_owned();
    if let Some(kvm) = &devices.kvm {
        let machine = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
        let vcpu = unsafe { libc::ioctl(machine, KVM_CREATE_VCPU, 0) };
        said += &format!("kvm {}\n", machine >= 0 && vcpu >= 0);
    }
    if let Some(tap) = &devices.tap {
        said += &format!("tap {}\n", unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, 1) });
    }
    said
}

/// Memory from the private tmpfs, and whether it is in huge pages.
pub(crate) fn tmpfs(isolated: &Isolated) -> String {
    const SIZE: usize = 64 << 20;
    let file = match isolated.private_tmpfs_huge(SIZE as u64) {
        Ok(file) => file,
        Err(error) => return format!("{:?} {error}\n", error.kind()),
    };
    assert_eq!(nix::sys::stat::fstat(&file).unwrap().st_size, SIZE as i64);
    // Room to begin at a multiple of 2 MiB, as the vmm maps a guest's memory.
    let (none, prot, flags) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    let room = unsafe {
        libc::mmap(none, 2 * SIZE, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    };
    let at = room.wrapping_byte_add(room.align_offset(2 << 20));
    let memory = unsafe { libc::mmap(at, SIZE, prot, flags | libc::MAP_FIXED, file.as_raw_fd(), 0) };
    assert_ne!(memory, libc::MAP_FAILED);
    unsafe { std::ptr::write_bytes(memory.cast::<u8>(), 7, SIZE) };
    let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let huge: u64 = maps
        .lines()
        .filter_map(|line| {
            line.strip_prefix("ShmemPmdMapped:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        })
        .sum();
    format!("huge {huge}\n")
}
