//! Beginning and end: signals, exit status, death in the family.

use std::os::unix::process::{CommandExt, ExitStatusExt};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_sandbox::{Role, Seccomp};

use crate::Case;
use crate::start::{
    Inmate, PLAIN, ROLES, Stage, User, can_chroot, command, eventually, in_chroot, is_root, lives, run, users,
};

pub(crate) const CASES: &[Case] = &[
    ("life::the_exit_status_comes_out", the_exit_status_comes_out),
    ("life::a_death_by_signal_comes_out", a_death_by_signal_comes_out),
    ("life::signals_go_in", signals_go_in),
    ("life::signals_that_nobody_handles_end_it", signals_that_nobody_handles_end_it),
    ("life::the_inmate_dies_with_its_reaper", the_inmate_dies_with_its_reaper),
    ("life::both_die_with_the_parent_if_asked", both_die_with_the_parent_if_asked),
    ("life::a_second_thread_is_refused", a_second_thread_is_refused),
    ("life::a_chroot_is_left_by_root_and_named_to_others", a_chroot_is_left_by_root_and_named_to_others),
    ("life::what_a_service_manager_made_is_checked_and_completed", what_a_service_manager_made),
    ("life::a_socket_is_removed_at_the_end", a_socket_is_removed_at_the_end),
];

fn the_exit_status_comes_out() {
    for user in users() {
        for code in ["0", "1", "2", "42"] {
            let ended = run(command(user, Role::Blk, Stage::Locked, &["exit", code]));
            assert_eq!(
                ended.status.code().map(|code| code.to_string()).as_deref(),
                Some(code),
                "{}",
                ended.describe()
            );
        }
    }
}

fn a_death_by_signal_comes_out() {
    // Rust's own handler turns an overflow of the stack into SIGABRT, if the fault is where it expects the guard page; the
    // kernel stops a stack earlier when it has put a mapping near it.
    for (act, signals) in [("abort", &[libc::SIGABRT][..]), ("overflow", &[libc::SIGABRT, libc::SIGSEGV][..])]
    {
        let ended = run(command(User::Same, Role::Vmm, Stage::Locked, &[act]));
        let signal = ended.status.signal();
        assert!(signal.is_some_and(|signal| signals.contains(&signal)), "{act}: {}", ended.describe());
    }
    // A panic is an exit status, and its message is not lost, backtrace asked for or not.
    for backtrace in ["0", "1"] {
        let mut command = command(User::Same, Role::Vmm, Stage::Locked, &["panic"]);
        let ended = run({
            command.env("RUST_BACKTRACE", backtrace);
            command
        });
        assert_eq!(ended.status.code(), Some(101), "{}", ended.describe());
        assert!(ended.error.contains("in the sandbox"), "{}", ended.describe());
    }
    let mut inmate = Inmate::start(User::Same, Role::Net, Stage::Locked, &["wait"]);
    kill(Pid::from_raw(inmate.inner()), Signal::SIGKILL).unwrap();
    assert_eq!(inmate.child.wait().unwrap().signal(), Some(libc::SIGKILL));
}

fn signals_go_in() {
    for user in users() {
        for role in ROLES {
            for signal in [Signal::SIGTERM, Signal::SIGHUP] {
                let mut inmate = Inmate::start(user, role, Stage::Locked, &["signal"]);
                kill(Pid::from_raw(inmate.pid()), signal).unwrap();
                assert_eq!(inmate.line(), (signal as i32).to_string());
                assert_eq!(inmate.child.wait().unwrap().code(), Some(3));
            }
        }
    }
}

/// Signals that the program says nothing about do to it what they do outside, though it is an init.
fn signals_that_nobody_handles_end_it() {
    for stage in [Stage::Locked, Stage::Isolated] {
        for signal in [Signal::SIGINT, Signal::SIGUSR1, Signal::SIGQUIT] {
            let mut inmate = Inmate::start(User::Same, Role::Net, stage, &["wait"]);
            // Waiting would close it, and that would end the inmate too.
            let _open = inmate.child.stdin.take();
            kill(Pid::from_raw(inmate.pid()), signal).unwrap();
            assert_eq!(inmate.child.wait().unwrap().signal(), Some(signal as i32));
        }
    }
}

fn the_inmate_dies_with_its_reaper() {
    for user in users() {
        let mut inmate = Inmate::start(user, Role::Vmm, Stage::Locked, &["wait"]);
        let inner = inmate.inner();
        assert!(lives(inner));
        inmate.child.kill().unwrap();
        inmate.child.wait().unwrap();
        eventually("the inmate is gone", || !lives(inner));
    }
}

fn both_die_with_the_parent_if_asked() {
    for user in users() {
        let mut nurse = Inmate::start(user, Role::Blk, Stage::Locked, &["nurse"]);
        let reaper: i32 = nurse.line().parse().unwrap();
        let inner = strata_sandbox::inner(reaper).unwrap();
        assert!(lives(reaper) && lives(inner));
        nurse.child.kill().unwrap();
        nurse.child.wait().unwrap();
        eventually("the reaper is gone", || !lives(reaper));
        eventually("the inmate is gone", || !lives(inner));
    }
}

fn a_second_thread_is_refused() {
    let ended = run(command(User::Same, Role::Vmm, Stage::Locked, &["threads-first"]));
    assert_eq!(ended.status.code(), Some(99), "{}", ended.describe());
    assert!(ended.error.contains("this one has 2"), "{}", ended.describe());
}

fn a_chroot_is_left_by_root_and_named_to_others() {
    if !can_chroot() {
        return;
    }
    let (command_in, _dir) = in_chroot(command(User::Same, Role::Vmm, Stage::Locked, &["wait"]));
    let inmate = Inmate::from(command_in);
    let report = strata_sandbox::audit(inmate.pid()).unwrap();
    assert!(report.is_locked(), "{report:?}");
    assert!(inmate.finish().success());
    // Uid and gid of a Command are set before pre_exec, so this one becomes another user in the chroot.
    let (mut command_in, _dir) = in_chroot(command(User::Same, Role::Vmm, Stage::Locked, &["exit", "0"]));
    let leave_root = || Ok(nix::unistd::setresuid(PLAIN.into(), PLAIN.into(), PLAIN.into())?);
    #[allow(unsafe_code)]
    // SAFETY: it makes a system call only.
    unsafe {
        command_in.pre_exec(leave_root);
    }
    let ended = run(command_in);
    assert!(ended.status.code() == Some(99) && ended.error.contains("a chroot"), "{}", ended.describe());
}

fn what_a_service_manager_made() {
    let given = |user, act: &str, no_new_privs: bool| {
        let mut command = command(user, Role::Blk, Stage::Locked, &[act]);
        let set = move || {
            if no_new_privs {
                nix::sys::prctl::set_no_new_privs()?;
            }
            Ok(())
        };
        #[allow(unsafe_code)]
        // SAFETY: it makes a system call only.
        unsafe {
            command.pre_exec(set)
        };
        command
    };
    for user in users().into_iter().filter(|user| *user == User::Plain || !is_root()) {
        let ended = run(given(user, "given", false));
        assert!(ended.status.code() == Some(99) && ended.error.contains("NoNewPriv"), "{}", ended.describe());
        let inmate = Inmate::from(given(user, "given", true));
        let report = strata_sandbox::audit(inmate.pid()).unwrap();
        assert_eq!(report.pid, inmate.pid(), "there is no reaper");
        assert!(matches!(report.seccomp, Seccomp::Filter(_)) && report.no_new_privs, "{report:?}");
        assert_eq!(report.capabilities.effective | report.capabilities.permitted, 0);
        assert!(inmate.finish().success());
        assert!(run(given(user, "given-open", true)).refused());
    }
    if is_root() {
        let ended = run(given(User::Same, "given", true));
        assert!(
            ended.status.code() == Some(99) && ended.error.contains("runs as root"),
            "{}",
            ended.describe()
        );
    }
}

fn a_socket_is_removed_at_the_end() {
    for user in users() {
        let dir = tempfile::tempdir().unwrap();
        if user == User::Plain {
            std::os::unix::fs::chown(dir.path(), Some(PLAIN), Some(PLAIN)).unwrap();
        }
        let path = dir.path().join("disk.sock");
        let act = ["socket", path.to_str().unwrap()];
        let mut inmate = Inmate::start(user, Role::Blk, Stage::Locked, &act);
        assert!(path.exists());
        assert!(strata_sandbox::audit(inmate.pid()).unwrap().is_locked());
        kill(Pid::from_raw(inmate.pid()), Signal::SIGTERM).unwrap();
        assert_eq!(inmate.line(), "15");
        assert_eq!(inmate.child.wait().unwrap().code(), Some(3));
        assert!(!path.exists(), "{user:?}");
        // Not one that somebody else has put there since.
        let mut inmate = Inmate::start(user, Role::Blk, Stage::Locked, &act);
        std::fs::rename(&path, dir.path().join("old.sock")).unwrap();
        std::fs::write(&path, "another").unwrap();
        kill(Pid::from_raw(inmate.pid()), Signal::SIGTERM).unwrap();
        assert_eq!(inmate.child.wait().unwrap().code(), Some(3));
        assert!(path.exists(), "{user:?}");
        // Killed, it cannot.
        std::fs::remove_file(&path).unwrap();
        let mut inmate = Inmate::start(user, Role::Blk, Stage::Locked, &act);
        let inner = inmate.inner();
        inmate.child.kill().unwrap();
        inmate.child.wait().unwrap();
        eventually("the inmate is gone", || !lives(inner));
        assert!(path.exists());
    }
}
