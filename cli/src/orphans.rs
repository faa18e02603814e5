//! Processes whose parents died: a sandboxed process is its reaper's child, and outlives it by a moment.
//! The launcher adopts them (PR_SET_CHILD_SUBREAPER), so that "nothing is left behind" is a fact when it ends.

use std::fs;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::say::say;

/// Makes this process the one that descendants without a parent go to.
pub(crate) fn adopt() {
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        say(format_args!("strata: cannot adopt orphans: {error}"));
    }
}

/// Kills and reaps every child there still is. For the very end: nobody else may be waiting for a child then.
pub(crate) async fn end_all() {
    for round in 0..500 {
        match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            // They die by themselves, within a moment of their parents; those that do not are helped.
            Ok(WaitStatus::StillAlive) => {
                if round > 10 {
                    for child in children() {
                        let _ = kill(child, Signal::SIGKILL);
                    }
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            _ => {}
        }
    }
    let left: Vec<String> = children().map(|child| child.to_string()).collect();
    say(format_args!("strata: processes that cannot be ended: {}", left.join(", ")));
}

/// Unreaped children of this process; a pid here cannot be anybody else's, as only we could reap it.
fn children() -> impl Iterator<Item = Pid> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids: Vec<Pid> = lists
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
        .collect();
    pids.into_iter()
}
