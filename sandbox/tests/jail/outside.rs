//! What is seen of an inmate in /proc.

use strata_sandbox::{Report, Root, Seccomp, Visibility, audit};

use crate::Case;
use crate::start::{Inmate, PLAIN, ROLES, Stage, User, is_mapped, is_root, users};

pub(crate) const CASES: &[Case] = &[
    ("outside::a_locked_process_has_no_gaps", a_locked_process_has_no_gaps),
    ("outside::an_open_process_has_every_gap", an_open_process_has_every_gap),
    (
        "outside::an_isolated_process_has_the_gaps_that_lock_closes",
        an_isolated_process_has_the_gaps_that_lock_closes,
    ),
    ("outside::the_reaper_holds_nothing", the_reaper_holds_nothing),
    ("outside::limits_are_low_and_nothing_is_dumped", limits_are_low_and_nothing_is_dumped),
    ("outside::descriptors_that_were_not_given_are_closed", descriptors_that_were_not_given_are_closed),
];

fn look(user: User, role: strata_sandbox::Role, stage: Stage) -> Report {
    let inmate = Inmate::start(user, role, stage, &["wait"]);
    let report = audit(inmate.pid()).unwrap();
    assert!(inmate.finish().success());
    report
}

fn a_locked_process_has_no_gaps() {
    for user in users() {
        for role in ROLES {
            let report = look(user, role, Stage::Locked);
            assert_eq!(report.gaps(), Vec::<String>::new(), "{user:?} {role:?}: {report}");
            assert!(report.is_locked());
            assert!(matches!(report.seccomp, Seccomp::Filter(3)), "{report:?}");
            assert!(report.capabilities.none());
            assert!(report.no_new_privs);
            assert!(report.namespaces.iter().all(|one| one.visibility == Visibility::Private), "{report:?}");
            assert_eq!(report.root, Root::Empty { binds: Vec::new() });
            let expected = match user {
                User::Plain => PLAIN,
                User::Same if is_root() && is_mapped(65534) => 65534,
                User::Same => nix::unistd::getuid().as_raw(),
            };
            assert_eq!(report.uid, expected);
            assert!(
                report.to_string().starts_with("seccomp filter, no capabilities, no_new_privs"),
                "{report}"
            );
        }
    }
}

/// The control of the case above: each gap is one the audit can see.
fn an_open_process_has_every_gap() {
    let report = look(User::Same, ROLES[0], Stage::Open);
    let gaps = report.gaps().join("\n");
    for gap in ["no system call filter", "can gain rights", "its root is not empty"] {
        assert!(gaps.contains(gap), "{gap} is not among {gaps}");
    }
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        assert!(gaps.contains(&format!("shares the {kind} namespace")), "{kind} is not among {gaps}");
    }
    if is_root() {
        assert!(gaps.contains("has capabilities"), "{gaps}");
        assert_eq!(gaps.contains("is root"), is_mapped(65534), "{gaps}");
    }
    assert!(!report.is_locked());
}

/// Each piece is seen for itself: half way, the namespaces are there and the rest is not.
fn an_isolated_process_has_the_gaps_that_lock_closes() {
    for user in users() {
        let report = look(user, ROLES[1], Stage::Isolated);
        assert!(report.namespaces.iter().all(|one| one.visibility == Visibility::Private), "{report}");
        assert!(!report.is_root, "{report:?}");
        let gaps = report.gaps().join("\n");
        for gap in ["no system call filter", "has capabilities", "can gain rights", "its root is not empty"] {
            assert!(gaps.contains(gap), "{user:?}: {gap} is not among {gaps}");
        }
    }
}

fn the_reaper_holds_nothing() {
    for user in users() {
        let inmate = Inmate::start(user, ROLES[2], Stage::Locked, &["wait"]);
        let status = std::fs::read_to_string(format!("/proc/{}/status", inmate.pid())).unwrap();
        for line in
            ["Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"]
        {
            assert!(status.contains(line), "{user:?}: no {line} in {status}");
        }
        if is_root() {
            let open: Vec<_> =
                std::fs::read_dir(format!("/proc/{}/fd", inmate.pid())).unwrap().flatten().collect();
            assert_eq!(open.len(), 1, "the reaper holds {open:?}, not only standard error");
        }
        assert!(inmate.finish().success());
    }
}

fn limits_are_low_and_nothing_is_dumped() {
    for user in users() {
        let inmate = Inmate::start(user, ROLES[0], Stage::Locked, &["wait"]);
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", inmate.inner())).unwrap();
        let line = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let core: Vec<String> = line("Max core file size").split_whitespace().map(str::to_owned).collect();
        assert_eq!(core[4..6], ["0", "0"], "{limits}");
        assert!(line("Max processes").contains("1024"), "{limits}");
        // What is not dumpable belongs to root in /proc, whoever runs it.
        let owner = |pid: i32| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(format!("/proc/{pid}/stat")).unwrap().uid()
        };
        assert_eq!(owner(inmate.inner()), 0, "the inmate is dumpable");
        assert!(inmate.finish().success());
        let control = Inmate::start(user, ROLES[0], Stage::Open, &["wait"]);
        assert_eq!(
            owner(control.pid()),
            if user == User::Plain { PLAIN } else { nix::unistd::getuid().as_raw() }
        );
        assert!(control.finish().success());
    }
}

fn descriptors_that_were_not_given_are_closed() {
    use std::os::fd::AsRawFd;
    if !is_root() {
        return; // only root may look at the descriptors of a process that is not dumpable
    }
    let [leaked, kept] = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    for file in [&leaked, &kept] {
        nix::fcntl::fcntl(file.as_file(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))
            .unwrap();
    }
    let has = |inmate: &Inmate, file: &tempfile::NamedTempFile| {
        let mut entries = std::fs::read_dir(format!("/proc/{}/fd", inmate.inner())).unwrap();
        let own = file.path().file_name();
        entries.any(|entry| std::fs::read_link(entry.unwrap().path()).unwrap().file_name() == own)
    };
    let number = kept.as_file().as_raw_fd().to_string();
    let inmate = Inmate::start(User::Same, ROLES[1], Stage::Locked, &["descriptors-kept", &number]);
    assert!(has(&inmate, &kept));
    assert!(!has(&inmate, &leaked));
    assert!(inmate.finish().success());
    // Nothing is kept, not even standard input: it reads the end of /dev/null at once.
    let mut inmate = Inmate::start(User::Same, ROLES[1], Stage::Locked, &["descriptors"]);
    assert!(inmate.child.wait().unwrap().success());
    let control = Inmate::start(User::Same, ROLES[1], Stage::Locked, &["wait"]);
    assert!(has(&control, &leaked));
    assert!(control.finish().success());
}
