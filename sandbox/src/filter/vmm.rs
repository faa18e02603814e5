//! What only the vmm needs: KVM, its terminal, and connections to backends that come back.
//!
//! KVM's requests are listed by number (uapi linux/kvm.h, x86-64), so a vmm that was broken into reaches no other
//! part of KVM, nor any other driver whose descriptor it might be passed.

use super::rule::{Call, Check, allow, is, only};

const KVM: &[Check] = &[
    // the guest runs
    is(1, 0x0000_ae80), // KVM_RUN
    // what the host offers, again at each reboot
    is(1, 0x0000_ae00), // KVM_GET_API_VERSION
    is(1, 0x0000_ae03), // KVM_CHECK_EXTENSION
    is(1, 0x0000_ae04), // KVM_GET_VCPU_MMAP_SIZE
    is(1, 0xc008_ae05), // KVM_GET_SUPPORTED_CPUID
    is(1, 0xc004_ae02), // KVM_GET_MSR_INDEX_LIST
    is(1, 0xc004_ae0a), // KVM_GET_MSR_FEATURE_INDEX_LIST
    // a machine is made, at start and at each reboot
    is(1, 0x0000_ae01), // KVM_CREATE_VM
    is(1, 0x0000_ae41), // KVM_CREATE_VCPU
    is(1, 0x4020_ae46), // KVM_SET_USER_MEMORY_REGION
    is(1, 0x40a0_ae49), // KVM_SET_USER_MEMORY_REGION2
    is(1, 0xc040_aed5), // KVM_PRE_FAULT_MEMORY
    is(1, 0x0000_ae47), // KVM_SET_TSS_ADDR
    is(1, 0x4008_ae48), // KVM_SET_IDENTITY_MAP_ADDR
    is(1, 0x0000_ae60), // KVM_CREATE_IRQCHIP
    is(1, 0x4008_ae9c), // KVM_X86_SETUP_MCE
    is(1, 0x8008_ae9d), // KVM_X86_GET_MCE_CAP_SUPPORTED
    is(1, 0x4068_aea3), // KVM_ENABLE_CAP
    // interrupts and doorbells
    is(1, 0x4020_ae76), // KVM_IRQFD
    is(1, 0x4040_ae79), // KVM_IOEVENTFD
    is(1, 0x4008_ae6a), // KVM_SET_GSI_ROUTING
    is(1, 0x4020_aea5), // KVM_SIGNAL_MSI
    is(1, 0x4008_ae61), // KVM_IRQ_LINE
    is(1, 0x0000_ae9a), // KVM_NMI
    // the state of the interrupt controllers and of time
    is(1, 0xc208_ae62), // KVM_GET_IRQCHIP
    is(1, 0x8208_ae63), // KVM_SET_IRQCHIP
    is(1, 0x8030_ae7c), // KVM_GET_CLOCK
    is(1, 0x4030_ae7b), // KVM_SET_CLOCK
    is(1, 0x0000_aead), // KVM_KVMCLOCK_CTRL
    is(1, 0x0000_aea3), // KVM_GET_TSC_KHZ
    is(1, 0x0000_aea2), // KVM_SET_TSC_KHZ
    // the state of a vCPU
    is(1, 0x8090_ae81), // KVM_GET_REGS
    is(1, 0x4090_ae82), // KVM_SET_REGS
    is(1, 0x8138_ae83), // KVM_GET_SREGS
    is(1, 0x4138_ae84), // KVM_SET_SREGS
    is(1, 0x8140_aecc), // KVM_GET_SREGS2
    is(1, 0x4140_aecd), // KVM_SET_SREGS2
    is(1, 0xc008_ae88), // KVM_GET_MSRS
    is(1, 0x4008_ae89), // KVM_SET_MSRS
    is(1, 0x81a0_ae8c), // KVM_GET_FPU
    is(1, 0x41a0_ae8d), // KVM_SET_FPU
    is(1, 0x8400_ae8e), // KVM_GET_LAPIC
    is(1, 0x4400_ae8f), // KVM_SET_LAPIC
    is(1, 0x4008_ae90), // KVM_SET_CPUID2
    is(1, 0xc008_ae91), // KVM_GET_CPUID2
    is(1, 0x8004_ae98), // KVM_GET_MP_STATE
    is(1, 0x4004_ae99), // KVM_SET_MP_STATE
    is(1, 0x8040_ae9f), // KVM_GET_VCPU_EVENTS
    is(1, 0x4040_aea0), // KVM_SET_VCPU_EVENTS
    is(1, 0x8080_aea1), // KVM_GET_DEBUGREGS
    is(1, 0x4080_aea2), // KVM_SET_DEBUGREGS
    is(1, 0x9000_aea4), // KVM_GET_XSAVE
    is(1, 0x9000_aecf), // KVM_GET_XSAVE2
    is(1, 0x5000_aea5), // KVM_SET_XSAVE
    is(1, 0x8188_aea6), // KVM_GET_XCRS
    is(1, 0x4188_aea7), // KVM_SET_XCRS
    is(1, 0xc080_aebe), // KVM_GET_NESTED_STATE
    is(1, 0x4080_aebf), // KVM_SET_NESTED_STATE
    // statistics; how exits are counted
    is(1, 0x0000_aece), // KVM_GET_STATS_FD
    // exits of other signals than ours
    is(1, 0x4004_ae8b), // KVM_SET_SIGNAL_MASK
];

const TTY: &[Check] = &[
    is(1, libc::TCGETS as u32),
    is(1, libc::TCSETS as u32),
    is(1, libc::TCSETSW as u32),
    is(1, libc::TIOCGWINSZ as u32),
];

pub(super) const CALLS: &[Call] = &[
    only(libc::SYS_ioctl, KVM, "the machine"),
    only(libc::SYS_ioctl, TTY, "the console's terminal: raw mode and size"),
    only(libc::SYS_socket, &[is(0, libc::AF_UNIX as u32)], "a connection to a backend that came back"),
    allow(libc::SYS_connect, "the same; only sockets in its root have a path"),
    only(libc::SYS_socketpair, &[is(0, libc::AF_UNIX as u32)], "a console for a client; tokio's signals"),
    allow(libc::SYS_pread64, "the kernel and the initrd, again at each reboot"),
    allow(libc::SYS_pwrite64, "memory files"),
    allow(libc::SYS_fallocate, "guest memory set aside or given back"),
    allow(libc::SYS_fstatfs, "page size of guest memory"),
    allow(libc::SYS_timerfd_create, "time limits"),
    allow(libc::SYS_timerfd_settime, "the same"),
    allow(libc::SYS_signalfd4, "signals as events"),
    allow(libc::SYS_sysinfo, "memory of the host, for statistics"),
];
