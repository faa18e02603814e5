//! Beginning and end: signals, exit status, death in the family.

use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_sandbox::Role;

use crate::Case;
use crate::start::{Inmate, ROLES, Stage, User, command, eventually, lives, run, users};

pub(crate) const CASES: &[Case] = &[
    ("life::the_exit_status_comes_out", the_exit_status_comes_out),
    ("life::a_death_by_signal_comes_out", a_death_by_signal_comes_out),
    ("life::signals_go_in", signals_go_in),
    ("life::the_inmate_dies_with_its_reaper", the_inmate_dies_with_its_reaper),
    ("life::both_die_with_the_parent_if_asked", both_die_with_the_parent_if_asked),
    ("life::a_second_thread_is_refused", a_second_thread_is_refused),
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
    for (act, signal) in [("abort", libc::SIGABRT), ("overflow", libc::SIGABRT)] {
        let ended = run(command(User::Same, Role::Vmm, Stage::Locked, &[act]));
        assert_eq!(ended.status.signal(), Some(signal), "{act}: {}", ended.describe());
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
