//! Collects the facts: out of /proc and /sys under a root that tests can choose, from KVM, from CPUID, and from
//! trying the sandbox. Changes nothing.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use kvm_ioctls::Cap;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statfs::{HUGETLBFS_MAGIC, statfs};
use strata_config::{DiskSource, Machine};

use super::facts::{
    Capabilities, Cgroup, Cpu, Device, Facts, IoUring, Kernel, Kvm, Limits, Memory, Module, Mount, Pages,
    Planned, User, UserNamespaces,
};
use super::probe;
use crate::preflight;
use crate::programs;

/// What the vmm refuses to work without.
const NEEDED: [(Cap, &str); 12] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::SignalMsi, "KVM_CAP_SIGNAL_MSI"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::MpState, "KVM_CAP_MP_STATE"),
];
/// KVM api.rst 8.x: numbers kvm-ioctls has no name for.
const BINARY_STATS_FD: u64 = 203;
const PRE_FAULT_MEMORY: u64 = 236;

/// Everything, on this host.
pub(super) fn facts(machines: &[Machine]) -> Facts {
    let root = Root(PathBuf::from("/"));
    let user = nix::unistd::geteuid();
    let name = nix::unistd::User::from_uid(user).ok().flatten().map(|user| user.name);
    let missing = ["vmm", "vhost-blk", "vhost-net"].map(programs::find).into_iter();
    Facts {
        user: User { name: name.unwrap_or_else(|| user.to_string()), root: user.is_root() },
        kernel: kernel(
            &nix::sys::utsname::uname()
                .map(|name| name.release().to_string_lossy().into_owned())
                .unwrap_or_default(),
        ),
        kvm: kvm(),
        cpu: cpu(),
        module: root.module(),
        halt_poll_ns: root.number("sys/module/kvm/parameters/halt_poll_ns"),
        pages: root.pages(),
        sandbox: probe::sandbox(),
        users: root.users(),
        io_uring: IoUring {
            disabled: root.number("proc/sys/kernel/io_uring_disabled"),
            error: probe::io_uring(),
        },
        landlock: probe::landlock(),
        tun: device(Path::new("/dev/net/tun")),
        cgroup: root.cgroup(),
        limits: Limits { nofile: limit(Resource::RLIMIT_NOFILE), memlock: limit(Resource::RLIMIT_MEMLOCK) },
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
        memory: root.memory(),
        exit_tracepoint: crate::exits::trace::possible(),
        programs_missing: missing.filter_map(|found| found.err().map(|error| error.to_string())).collect(),
        machines: machines.iter().map(planned).collect(),
    }
}

fn limit(resource: Resource) -> u64 {
    // The hard one: the processes raise themselves as far as they need.
    getrlimit(resource).map_or(u64::MAX, |(_, hard)| hard)
}

/// `6.1.0-56-cloud-amd64` is (6, 1).
pub(super) fn kernel(release: &str) -> Kernel {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    Kernel { release: release.to_owned(), version }
}

fn kvm() -> Kvm {
    let kvm = match kvm_ioctls::Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            return match error.errno() {
                libc::ENOENT => Kvm::Absent,
                libc::EACCES | libc::EPERM => Kvm::Forbidden,
                libc::ENODEV | libc::ENXIO => Kvm::NoModule,
                code => Kvm::Failed(io::Error::from_raw_os_error(code).to_string()),
            };
        }
    };
    let missing = NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name);
    Kvm::Open(Capabilities {
        api: kvm.get_api_version(),
        missing: missing.collect(),
        max_vcpus: kvm.get_max_vcpus() as u64,
        pre_fault_memory: kvm.check_extension_raw(PRE_FAULT_MEMORY) > 0,
        statistics: kvm.check_extension_raw(BINARY_STATS_FD) > 0,
    })
}

/// CPUID 1 ECX.5 is vmx, 0x8000_0001 ECX.2 is svm; ECX.31 of leaf 1 says that 0x4000_0000 names a hypervisor.
fn cpu() -> Cpu {
    use core::arch::x86_64::__cpuid;
    let one = __cpuid(1).ecx;
    let svm = __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    let hypervisor = (one & 1 << 31 != 0).then(|| {
        let leaf = __cpuid(0x4000_0000);
        let bytes = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat();
        let name: String =
            bytes.iter().map(|byte| char::from(*byte)).filter(char::is_ascii_graphic).collect();
        match name.as_str() {
            "" => "unnamed".to_owned(),
            "KVMKVMKVM" => "KVM".to_owned(),
            "TCGTCGTCGTCG" => "QEMU without KVM".to_owned(),
            "MicrosoftHv" => "Hyper-V".to_owned(),
            "VMwareVMware" => "VMware".to_owned(),
            "XenVMMXenVMM" => "Xen".to_owned(),
            _ => name,
        }
    });
    Cpu { vmx: one & 1 << 5 != 0, svm, hypervisor }
}

fn device(path: &Path) -> Device {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Device::Opens,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Device::Forbidden,
        Err(_) => Device::Absent,
    }
}

fn planned(machine: &Machine) -> Planned {
    let hugetlbfs =
        machine.memory.hugetlbfs.as_ref().map(|path| Mount { path: path.clone(), free: free_pages(path) });
    let taps = machine.nets.iter().any(|net| net.source.own().is_some());
    let disks = machine.disks.iter().any(|disk| matches!(disk.source, DiskSource::File { .. }));
    Planned {
        name: machine.name.to_string(),
        cpus: machine.cpus.into(),
        memory: machine.memory.size,
        nested: machine.vcpu.nested,
        prefault: machine.memory.prefault,
        hugetlbfs,
        taps,
        disks,
        lacking: preflight::named(machine).err().map(|error| error.to_string()),
    }
}

fn free_pages(path: &Path) -> Option<(u64, u64)> {
    let fs = statfs(path).ok().filter(|fs| fs.filesystem_type() == HUGETLBFS_MAGIC)?;
    let page = u64::try_from(fs.block_size()).ok()?;
    let root = Root(PathBuf::from("/"));
    Some((page, root.number(&format!("sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages", page >> 10))?))
}

/// Where /proc and /sys are.
pub(super) struct Root(pub(super) PathBuf);

impl Root {
    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.0.join(path)).ok().map(|text| text.trim().to_owned())
    }

    pub(super) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.parse().ok()
    }

    /// Module parameters are `Y` and `N`, or 1 and 0.
    fn flag(&self, path: &str) -> Option<bool> {
        match self.text(path)?.as_str() {
            "Y" | "1" => Some(true),
            "N" | "0" => Some(false),
            _ => None,
        }
    }

    pub(super) fn module(&self) -> Option<Module> {
        let modules = [("kvm_intel", "ept"), ("kvm_amd", "npt")];
        let (name, paging) =
            modules.into_iter().find(|(name, _)| self.0.join("sys/module").join(name).exists())?;
        let parameter = |parameter| self.flag(&format!("sys/module/{name}/parameters/{parameter}"));
        Some(Module { name, nested: parameter("nested"), paging: parameter(paging) })
    }

    pub(super) fn pages(&self) -> Pages {
        let huge = |what| self.number(&format!("sys/kernel/mm/hugepages/hugepages-2048kB/{what}_hugepages"));
        let mounts = self.text("proc/self/mounts").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (place, kind) = (fields.next()?, fields.next()?);
            (kind == "hugetlbfs").then(|| PathBuf::from(place))
        });
        let shmem = self.text("sys/kernel/mm/transparent_hugepage/shmem_enabled");
        Pages {
            huge: huge("nr").zip(huge("free")),
            mounts: mounts.collect(),
            shmem: shmem.and_then(|words| {
                words
                    .split_whitespace()
                    .find_map(|word| Some(word.strip_prefix('[')?.strip_suffix(']')?.to_owned()))
            }),
        }
    }

    pub(super) fn users(&self) -> UserNamespaces {
        UserNamespaces {
            clone: self.number("proc/sys/kernel/unprivileged_userns_clone"),
            most: self.number("proc/sys/user/max_user_namespaces"),
            apparmor: self.number("proc/sys/kernel/apparmor_restrict_unprivileged_userns"),
        }
    }

    pub(super) fn cgroup(&self) -> Cgroup {
        let folder = self.0.join("sys/fs/cgroup");
        match self.text("sys/fs/cgroup/cgroup.controllers") {
            Some(list) => {
                let has = |wanted| list.split_whitespace().any(|controller| controller == wanted);
                Cgroup::V2 { controllers: ["cpu", "memory", "io"].into_iter().all(has) }
            }
            None if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) => Cgroup::V1,
            None => Cgroup::None,
        }
    }

    pub(super) fn memory(&self) -> Memory {
        let text = self.text("proc/meminfo").unwrap_or_default();
        let kib = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
            line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0)
        };
        Memory { total: kib("MemTotal") << 10, available: kib("MemAvailable") << 10 }
    }
}
