//! What the kernel says of a backend's threads: the evidence of whether it is at work, waits, or hangs.
//!
//! Read from `/proc/PID/task` of the process the launcher started and of all below it (a sandboxed program is its
//! reaper's child). Nothing here is the backend's word.

use std::collections::BTreeMap;
use std::fs;

/// Clock ticks a second, in which the kernel counts CPU time for user space (USER_HZ, fixed on x86).
pub(crate) const TICKS: u64 = 100;

/// One thread at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Thread {
    /// `R`, `S`, `D`, `T`, `t`, ... (proc_pid_stat(5)).
    pub(crate) state: char,
    /// CPU time used, in ticks.
    pub(crate) ticks: u64,
    /// How often it left the CPU: it ran between two of these.
    pub(crate) switches: u64,
    /// It is the kernel's own thread of an io_uring.
    pub(crate) kernel: bool,
}

/// All threads of a backend's processes, by thread ID.
pub(crate) type Vitals = BTreeMap<u32, Thread>;

/// Looks at process `pid`, or at those below it if there are any: a reaper has nothing to do but wait. Empty if it
/// is gone.
pub(crate) fn of(pid: u32) -> Vitals {
    let mut vitals = Vitals::new();
    let mut pids = vec![pid];
    while let Some(pid) = pids.pop() {
        let mut own = Vitals::new();
        let below = pids.len();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        for task in tasks {
            let Some(tid) = task.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            if let Some(thread) = thread(&read("stat"), &read("status")) {
                own.insert(tid, thread);
            }
            pids.extend(read("children").split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
        if pids.len() == below {
            vitals.append(&mut own);
        }
    }
    vitals
}

fn thread(stat: &str, status: &str) -> Option<Thread> {
    // The name before the last `)` may hold anything.
    let (head, fields) = stat.rsplit_once(") ")?;
    let kernel = head.contains("(iou-");
    let mut fields = fields.split_whitespace();
    let state = fields.next()?.chars().next()?;
    if state == 'Z' || state == 'X' {
        return None;
    }
    // utime and stime are fields 14 and 15; the state was 3.
    let [user, system] = [fields.nth(10)?.parse::<u64>().ok()?, fields.next()?.parse::<u64>().ok()?];
    let switches = status
        .lines()
        .filter_map(|line| line.split_once("voluntary_ctxt_switches:"))
        .filter_map(|(_, count)| count.trim().parse::<u64>().ok())
        .fold(0, u64::wrapping_add);
    Some(Thread { state, ticks: user.wrapping_add(system), switches, kernel })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_read() {
        let stat = "71 (a) b) S 1 71 71 0 -1 4194560 100 0 0 0 12 30 0 0 20 0 3 0 9000 1 2\n";
        let status = "Name:\ta) b\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(thread(stat, status), Some(Thread { state: 'S', ticks: 42, switches: 12, kernel: false }));
        assert_eq!(thread("71 (x) Z 1 71 71 0 -1 0 0 0 0 0 0 0 0", ""), None);
        assert_eq!(thread("", ""), None);
    }

    #[test]
    fn our_own_threads_are_found_and_move() {
        let before = of(std::process::id());
        assert!(before.values().any(|thread| thread.state == 'R'), "{before:?}");
        std::thread::sleep(std::time::Duration::from_millis(20));
        let moved = of(std::process::id())
            .iter()
            .any(|(tid, now)| before.get(tid).is_some_and(|before| now.switches > before.switches));
        assert!(moved);
        assert!(of(u32::MAX).is_empty());
    }
}
