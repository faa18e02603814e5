//! Every line, over facts that no host needs to have.

use std::path::PathBuf;

use super::facts::*;
use super::line::Level;
use super::{judge, text};

/// A host on which everything is as it should be.
pub(super) fn good() -> Facts {
    Facts {
        user: User { name: "ann".into(), root: false },
        kernel: Kernel { release: "6.12.1".into(), version: (6, 12) },
        kvm: Kvm::Open(Capabilities {
            api: 12,
            missing: vec![],
            max_vcpus: 1024,
            pre_fault_memory: true,
            statistics: true,
        }),
        cpu: Cpu { vmx: false, svm: true, hypervisor: None },
        module: Some(Module { name: "kvm_amd", nested: Some(true), paging: Some(true) }),
        halt_poll_ns: Some(200_000),
        pages: Pages { huge: Some((0, 0)), mounts: vec![], shmem: Some("never".into()) },
        sandbox: Sandbox::Works { huge: Ok(()) },
        users: UserNamespaces { clone: Some(1), most: Some(1000), apparmor: None },
        io_uring: IoUring { disabled: Some(0), error: None },
        landlock: Some(6),
        tun: Device::Opens,
        cgroup: Cgroup::V2 { controllers: true },
        limits: Limits { nofile: 1 << 19, memlock: 8 << 20 },
        cpus: 4,
        memory: Memory { total: 8 << 30, available: 6 << 30 },
        exit_tracepoint: true,
        programs_missing: vec![],
        machines: vec![],
    }
}

fn planned() -> Planned {
    Planned {
        name: "web".into(),
        cpus: 2,
        memory: 1 << 30,
        nested: true,
        prefault: false,
        hugetlbfs: None,
        taps: false,
        disks: true,
        lacking: None,
    }
}

fn mount(free: Option<(u64, u64)>) -> Option<Mount> {
    Some(Mount { path: "/huge".into(), free })
}

type Case = (&'static str, fn(&mut Facts), &'static str, Level, &'static str);

/// Topic, what differs from the good host, level, and words of the line with its change and command.
const CASES: &[Case] = &[
    (
        "programs",
        |f| f.programs_missing = vec!["cannot find the program vmm".into()],
        "cannot find",
        Level::NotReady,
        "",
    ),
    ("kvm", |_| {}, "up to 1024 vCPUs", Level::Ready, ""),
    ("kvm", |f| f.kvm = Kvm::Absent, "no /dev/kvm", Level::NotReady, "modprobe kvm_amd"),
    (
        "kvm",
        |f| {
            f.kvm = Kvm::NoModule;
            f.module = None;
            f.cpu.vmx = true
        },
        "no module",
        Level::NotReady,
        "modprobe kvm_intel",
    ),
    ("kvm", |f| f.kvm = Kvm::Forbidden, "ann may not", Level::NotReady, "usermod -aG kvm ann"),
    ("kvm", |f| f.kvm = Kvm::Failed("I/O error".into()), "I/O error", Level::NotReady, ""),
    ("kvm", |f| with_kvm(f, |k| k.api = 11), "version 11", Level::NotReady, ""),
    (
        "kvm",
        |f| with_kvm(f, |k| k.missing = vec!["KVM_CAP_IRQFD"]),
        "lacks KVM_CAP_IRQFD",
        Level::NotReady,
        "newer kernel",
    ),
    ("hardware", |_| {}, "has svm", Level::Ready, ""),
    ("hardware", |f| f.cpu = Cpu { vmx: true, svm: false, hypervisor: None }, "has vmx", Level::Ready, ""),
    ("hardware", |f| f.cpu.svm = false, "neither vmx nor svm", Level::NotReady, "firmware"),
    (
        "hardware",
        |f| f.cpu = Cpu { vmx: false, svm: false, hypervisor: Some("KVM".into()) },
        "neither",
        Level::NotReady,
        "at the host below",
    ),
    ("profile", |_| {}, "bare", Level::Info, ""),
    (
        "profile",
        |f| f.cpu.hypervisor = Some("Hyper-V".into()),
        "nested: this host runs under a hypervisor (Hyper-V)",
        Level::Info,
        "",
    ),
    ("nested", |_| {}, "nested=1", Level::Ready, ""),
    ("nested", |f| f.module = None, "not known", Level::Info, ""),
    (
        "nested",
        |f| with_module(f, |m| m.nested = Some(false)),
        "nested=0",
        Level::Warning,
        "modprobe -r kvm_amd && modprobe kvm_amd",
    ),
    (
        "nested",
        |f| {
            with_module(f, |m| m.nested = Some(false));
            f.machines = vec![planned()]
        },
        "(web could)",
        Level::Warning,
        "",
    ),
    ("nested", |f| with_module(f, |m| m.nested = None), "does not say", Level::Info, ""),
    ("paging", |_| {}, "uses npt", Level::Ready, ""),
    (
        "paging",
        |f| f.module = Some(Module { name: "kvm_intel", nested: None, paging: Some(false) }),
        "without ept",
        Level::Warning,
        "modprobe kvm_intel ept=1",
    ),
    ("halt polling", |_| {}, "200 us", Level::Ready, ""),
    ("halt polling", |f| f.halt_poll_ns = Some(0), "off", Level::Warning, "echo 200000 >"),
    ("halt polling", |f| f.halt_poll_ns = None, "not known", Level::Info, ""),
    ("kernel", |_| {}, "Linux 6.12.1", Level::Ready, ""),
    ("kernel", |f| f.kernel.version = (5, 10), "too old", Level::NotReady, "5.14"),
    ("kernel", |f| f.kernel.version = (5, 13), "no KVM statistics", Level::Warning, "5.14"),
    ("exit counters", |_| {}, "by reason", Level::Ready, ""),
    ("exit counters", |f| f.exit_tracepoint = false, "only for root", Level::Info, ""),
    ("exit counters", |f| with_kvm(f, |k| k.statistics = false), "no statistics", Level::Warning, "5.14"),
    ("pre-fault", |_| {}, "maps a guest's memory ahead", Level::Ready, ""),
    ("pre-fault", |f| with_kvm(f, |k| k.pre_fault_memory = false), "does not map", Level::Info, ""),
    (
        "pre-fault",
        |f| {
            with_kvm(f, |k| k.pre_fault_memory = false);
            f.machines = vec![Planned { prefault: true, ..planned() }]
        },
        "allocates it only",
        Level::Warning,
        "6.11",
    ),
    ("huge pages", |_| {}, "private tmpfs (shmem_enabled is never)", Level::Ready, ""),
    ("huge pages", |f| f.pages.shmem = None, "no transparent huge pages", Level::Warning, "hugetlbfs"),
    ("huge pages", |f| f.pages.shmem = Some("deny".into()), "deny", Level::Warning, "echo never >"),
    (
        "huge pages",
        |f| f.sandbox = Sandbox::Works { huge: Err("refused".into()) },
        "4 KiB pages: refused",
        Level::Warning,
        "echo advise >",
    ),
    (
        "huge pages",
        |f| {
            f.sandbox = Sandbox::Works { huge: Err("refused".into()) };
            f.pages.shmem = Some("advise".into())
        },
        "shmem_enabled is advise",
        Level::Ready,
        "",
    ),
    ("huge pages", |f| f.sandbox = Sandbox::Refused("no".into()), "not tried", Level::Info, ""),
    ("hugetlbfs", |_| {}, "no 2 MiB pages are reserved", Level::Info, ""),
    (
        "hugetlbfs",
        |f| f.pages = Pages { huge: Some((8, 3)), mounts: vec![PathBuf::from("/huge")], shmem: None },
        "3 of 8 reserved 2 MiB pages are free; mounted at /huge",
        Level::Info,
        "",
    ),
    ("hugetlbfs", |f| f.pages.huge = None, "no 2 MiB pages to reserve", Level::Info, ""),
    (
        "hugetlbfs (web)",
        |f| f.machines = vec![Planned { hugetlbfs: mount(Some((2 << 20, 512))), ..planned() }],
        "512 pages of 2 MiB",
        Level::Ready,
        "",
    ),
    (
        "hugetlbfs (web)",
        |f| f.machines = vec![Planned { hugetlbfs: mount(Some((2 << 20, 500))), ..planned() }],
        "needs 512 pages of 2 MiB, 500 are free",
        Level::NotReady,
        "hugepages-2048kB/nr_hugepages; echo $(($(cat $f) + 12)) > $f",
    ),
    (
        "hugetlbfs (web)",
        |f| f.machines = vec![Planned { hugetlbfs: mount(None), ..planned() }],
        "not a hugetlbfs",
        Level::NotReady,
        "mount -t hugetlbfs none /huge",
    ),
    (
        "hugetlbfs (db)",
        |f| {
            f.machines = vec![
                Planned { hugetlbfs: mount(Some((2 << 20, 600))), ..planned() },
                Planned { name: "db".into(), hugetlbfs: mount(Some((2 << 20, 600))), ..planned() },
            ]
        },
        "needs 512 pages of 2 MiB, 88 are free",
        Level::NotReady,
        "+ 424",
    ),
    ("sandbox", |_| {}, "tried:", Level::Ready, ""),
    (
        "sandbox",
        |f| f.sandbox = Sandbox::Untried("no such file".into()),
        "could not be tried: no such file",
        Level::Warning,
        "",
    ),
    (
        "sandbox",
        |f| f.sandbox = Sandbox::Refused("cannot unshare".into()),
        "cannot unshare",
        Level::NotReady,
        "",
    ),
    (
        "sandbox",
        |f| {
            f.sandbox = Sandbox::Refused("x".into());
            f.users.clone = Some(0)
        },
        "does not work here: x",
        Level::NotReady,
        "sysctl -w kernel.unprivileged_userns_clone=1",
    ),
    ("user namespaces", |_| {}, "up to 1000", Level::Ready, ""),
    ("user namespaces", |f| f.users.most = None, "this kernel has none", Level::Warning, "CONFIG_USER_NS"),
    (
        "user namespaces",
        |f| {
            f.users.most = Some(0);
            f.user.root = true;
            f.sandbox = Sandbox::Refused("x".into())
        },
        "may not",
        Level::NotReady,
        "user.max_user_namespaces=10000",
    ),
    (
        "user namespaces",
        |f| {
            f.users.apparmor = Some(1);
            f.sandbox = Sandbox::Refused("x".into())
        },
        "ann may not",
        Level::NotReady,
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    ("user namespaces", |f| f.users.apparmor = Some(1), "although restricted", Level::Ready, ""),
    (
        "user namespaces",
        |f| {
            f.users.clone = Some(0);
            f.user.root = true
        },
        "up to 1000",
        Level::Ready,
        "",
    ),
    ("landlock", |_| {}, "ABI 6", Level::Ready, ""),
    ("landlock", |f| f.landlock = None, "not in force", Level::Warning, "lsm="),
    ("io_uring", |_| {}, "allowed", Level::Ready, ""),
    (
        "io_uring",
        |f| f.io_uring = IoUring { disabled: Some(2), error: Some("EPERM".into()) },
        "switched off",
        Level::Warning,
        "kernel.io_uring_disabled=0",
    ),
    (
        "io_uring",
        |f| f.io_uring = IoUring { disabled: Some(1), error: Some("EPERM".into()) },
        "only for a group",
        Level::Warning,
        "kernel.io_uring_group",
    ),
    (
        "io_uring",
        |f| f.io_uring = IoUring { disabled: Some(0), error: Some("EPERM".into()) },
        "refused (EPERM)",
        Level::Warning,
        "",
    ),
    ("tun", |_| {}, "opens", Level::Ready, ""),
    ("tun", |f| f.tun = Device::Absent, "no /dev/net/tun", Level::Warning, "modprobe tun"),
    (
        "tun",
        |f| {
            f.tun = Device::Forbidden;
            f.machines = vec![Planned { taps: true, ..planned() }]
        },
        "may not be opened",
        Level::NotReady,
        "chmod 0666",
    ),
    ("cgroups", |_| {}, "version 2 with", Level::Ready, ""),
    (
        "cgroups",
        |f| f.cgroup = Cgroup::V2 { controllers: false },
        "not all",
        Level::Warning,
        "subtree_control",
    ),
    ("cgroups", |f| f.cgroup = Cgroup::V1, "version 1", Level::Warning, "unified_cgroup_hierarchy=1"),
    ("cgroups", |f| f.cgroup = Cgroup::None, "none are mounted", Level::Warning, "mount -t cgroup2"),
    ("open files", |_| {}, "up to 524288", Level::Ready, ""),
    ("open files", |f| f.limits.nofile = 1024, "at most 1024", Level::Warning, "limits.d"),
    ("locked memory", |_| {}, "nothing of Strata counts", Level::Ready, ""),
    (
        "locked memory",
        |f| {
            f.kernel.version = (5, 11);
            f.limits.memlock = 64 << 10
        },
        "at most 64 KiB",
        Level::Warning,
        "memlock",
    ),
    ("cpus", |_| {}, "4 for vCPUs", Level::Info, ""),
    ("cpus", |f| f.machines = vec![planned()], "2 vCPUs of the machine on 4 CPUs", Level::Ready, ""),
    (
        "cpus",
        |f| f.machines = vec![planned(), planned()],
        "4 vCPUs of 2 machines on 4 CPUs: none is left",
        Level::Info,
        "",
    ),
    (
        "cpus",
        |f| f.machines = vec![planned(), planned(), planned()],
        "6 vCPUs of 3 machines on 4 CPUs: they steal",
        Level::Warning,
        "fewer",
    ),
    ("memory", |_| {}, "6144 MiB of 8192", Level::Info, ""),
    ("memory", |f| f.machines = vec![planned()], "1024 MiB for the machine", Level::Ready, ""),
    (
        "memory",
        |f| f.machines = vec![Planned { memory: 7 << 30, ..planned() }],
        "7168 MiB for the machine, 6144 MiB are available",
        Level::Warning,
        "less",
    ),
    (
        "memory",
        |f| f.machines = vec![Planned { memory: 7 << 30, hugetlbfs: mount(None), ..planned() }],
        "0 MiB",
        Level::Ready,
        "",
    ),
    ("machine web", |f| f.machines = vec![planned()], "2 vCPUs, 1G", Level::Ready, ""),
    (
        "machine web",
        |f| f.machines = vec![Planned { lacking: Some("kernel = x: no such file".into()), ..planned() }],
        "no such file",
        Level::NotReady,
        "",
    ),
    (
        "machine web",
        |f| f.machines = vec![Planned { cpus: 5, ..planned() }],
        "5 vCPUs on 4 CPUs",
        Level::Warning,
        "at most 4",
    ),
    (
        "machine web",
        |f| {
            f.machines = vec![planned()];
            with_kvm(f, |k| k.max_vcpus = 1)
        },
        "KVM here has at most 1",
        Level::NotReady,
        "",
    ),
    (
        "machine web",
        |f| f.machines = vec![Planned { memory: 9 << 30, ..planned() }],
        "8192 MiB in all",
        Level::NotReady,
        "",
    ),
];

fn with_kvm(facts: &mut Facts, change: impl FnOnce(&mut Capabilities)) {
    let Kvm::Open(kvm) = &mut facts.kvm else { panic!("the good host has KVM") };
    change(kvm);
}

fn with_module(facts: &mut Facts, change: impl FnOnce(&mut Module)) {
    change(facts.module.as_mut().unwrap());
}

#[test]
fn every_line_says_what_is_found_and_what_to_change() {
    for (topic, differ, found, level, change) in CASES {
        let mut facts = good();
        differ(&mut facts);
        let lines = judge(&facts);
        let line =
            lines.iter().find(|line| line.topic == *topic).unwrap_or_else(|| panic!("no line {topic}"));
        assert!(line.found.contains(found), "{topic}: {found:?} is not in {line:?}");
        assert_eq!(line.level, *level, "{line:?}");
        let advice = format!(
            "{} {}",
            line.change.as_deref().unwrap_or_default(),
            line.command.as_deref().unwrap_or_default()
        );
        assert!(advice.contains(change), "{topic}: {change:?} is not in {line:?}");
        assert!(*level != Level::Ready || line.command.is_none(), "a command for what is ready: {line:?}");
    }
}

#[test]
fn the_good_host_is_ready_and_one_wrong_line_is_enough_not_to_be() {
    let worst = |facts: &Facts| judge(facts).iter().map(|line| line.level).max().unwrap();
    assert_eq!(worst(&good()), Level::Info);
    assert!(text(&judge(&good())).ends_with("\nready\n"));
    let mut facts = good();
    facts.landlock = None;
    assert_eq!(worst(&facts), Level::Warning);
    assert!(text(&judge(&facts)).ends_with("\nready, with 1 warning\n"));
    facts.kvm = Kvm::Absent;
    assert_eq!(worst(&facts), Level::NotReady);
    let text = text(&judge(&facts));
    assert!(text.ends_with("\nnot ready: 1 to change first, 1 warning\n"), "{text}");
    assert!(text.contains("\nNOT READY  kvm"), "{text}");
    assert!(text.contains("# modprobe kvm_amd\n"), "{text}");
}
