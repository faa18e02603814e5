//! What is known about a host: values only, so that every judgement can be made without one.
//!
//! Filled by [`super::gather`], read by the judges. `None` means "the host does not say".

use std::path::PathBuf;

/// Everything `strata check` looks at.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    pub(crate) user: User,
    pub(crate) kernel: Kernel,
    pub(crate) kvm: Kvm,
    pub(crate) cpu: Cpu,
    /// kvm_intel or kvm_amd, if loaded.
    pub(crate) module: Option<Module>,
    /// /sys/module/kvm/parameters/halt_poll_ns.
    pub(crate) halt_poll_ns: Option<u64>,
    pub(crate) pages: Pages,
    pub(crate) sandbox: Sandbox,
    pub(crate) users: UserNamespaces,
    pub(crate) io_uring: IoUring,
    /// Landlock's ABI version.
    pub(crate) landlock: Option<u32>,
    pub(crate) tun: Device,
    pub(crate) cgroup: Cgroup,
    pub(crate) limits: Limits,
    /// CPUs this process may use.
    pub(crate) cpus: u64,
    pub(crate) memory: Memory,
    /// Whether KVM's exit tracepoint can be used.
    pub(crate) exit_tracepoint: bool,
    /// Programs of ours that are in none of their places, with the places.
    pub(crate) programs_missing: Vec<String>,
    pub(crate) machines: Vec<Planned>,
}

/// Who asks.
#[derive(Debug, Clone)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) root: bool,
}

/// The running kernel.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub(crate) release: String,
    pub(crate) version: (u32, u32),
}

/// What opening /dev/kvm gave.
#[derive(Debug, Clone)]
pub(crate) enum Kvm {
    Absent,
    Forbidden,
    /// The device is there, no module answers.
    NoModule,
    Failed(String),
    Open(Capabilities),
}

/// What KVM answers.
#[derive(Debug, Clone)]
pub(crate) struct Capabilities {
    pub(crate) api: i32,
    /// Names of needed capabilities that are not there.
    pub(crate) missing: Vec<&'static str>,
    pub(crate) max_vcpus: u64,
    pub(crate) pre_fault_memory: bool,
    pub(crate) statistics: bool,
}

/// What CPUID shows here.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    pub(crate) vmx: bool,
    pub(crate) svm: bool,
    /// The hypervisor below, by what it calls itself.
    pub(crate) hypervisor: Option<String>,
}

/// KVM's module for this processor.
#[derive(Debug, Clone)]
pub(crate) struct Module {
    pub(crate) name: &'static str,
    pub(crate) nested: Option<bool>,
    /// EPT or NPT.
    pub(crate) paging: Option<bool>,
}

/// Huge pages.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    /// 2 MiB pages of hugetlbfs: reserved and free.
    pub(crate) huge: Option<(u64, u64)>,
    /// Where a hugetlbfs is mounted.
    pub(crate) mounts: Vec<PathBuf>,
    /// The selected word of transparent_hugepage/shmem_enabled; `None` without transparent huge pages.
    pub(crate) shmem: Option<String>,
}

/// What became of trying the sandbox for real.
#[derive(Debug, Clone)]
pub(crate) enum Sandbox {
    /// It could not even be tried.
    Untried(String),
    /// The step that failed, in the sandbox's own words.
    Refused(String),
    Works {
        /// Why a private tmpfs has no huge pages; `Ok` if it has.
        huge: Result<(), String>,
    },
}

/// What decides on user namespaces.
#[derive(Debug, Clone)]
pub(crate) struct UserNamespaces {
    /// kernel.unprivileged_userns_clone (Debian).
    pub(crate) clone: Option<u64>,
    /// user.max_user_namespaces.
    pub(crate) most: Option<u64>,
    /// kernel.apparmor_restrict_unprivileged_userns (Ubuntu).
    pub(crate) apparmor: Option<u64>,
}

/// Whether io_uring can be used.
#[derive(Debug, Clone)]
pub(crate) struct IoUring {
    /// kernel.io_uring_disabled.
    pub(crate) disabled: Option<u64>,
    /// What setting one up said, if it failed.
    pub(crate) error: Option<String>,
}

/// A device file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Device {
    Absent,
    Forbidden,
    Opens,
}

/// The control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cgroup {
    /// Version 2; whether it has the controllers cpu, memory and io.
    V2 {
        controllers: bool,
    },
    /// Version 1, perhaps with version 2 beside it.
    V1,
    None,
}

/// Resource limits of this process; `u64::MAX` is unlimited.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    pub(crate) nofile: u64,
    pub(crate) memlock: u64,
}

/// The host's memory in bytes.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    pub(crate) available: u64,
}

/// A machine that is to run here.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) cpus: u64,
    pub(crate) memory: u64,
    pub(crate) nested: bool,
    pub(crate) prefault: bool,
    pub(crate) hugetlbfs: Option<Mount>,
    /// It has NICs on taps.
    pub(crate) taps: bool,
    /// It has disks of its own.
    pub(crate) disks: bool,
    /// The first file or interface it names that is not there.
    pub(crate) lacking: Option<String>,
}

/// The hugetlbfs a machine takes its memory from.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    /// Bytes of a page and free pages; `None`: it is no hugetlbfs.
    pub(crate) free: Option<(u64, u64)>,
}
