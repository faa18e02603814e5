//! What /proc tells of our processes: vCPU threads, their time, and memory. Read only.

use std::fs;

use serde::Serialize;

/// The process that does the work: a sandboxed one is the child of the reaper the launcher started.
pub(crate) fn worker(pid: u32) -> u32 {
    let inner = i32::try_from(pid).ok().and_then(strata_sandbox::inner);
    inner.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(pid)
}

/// (vCPU, thread) of a vmm, by the names it gives its threads.
pub(crate) fn vcpus(vmm: u32) -> Vec<(u32, u32)> {
    let entries = fs::read_dir(format!("/proc/{vmm}/task")).into_iter().flatten().flatten();
    let mut found: Vec<(u32, u32)> = entries
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("comm")).ok()?;
            let index = name.trim_end().strip_prefix("vcpu")?.parse().ok()?;
            Some((index, entry.file_name().to_str()?.parse().ok()?))
        })
        .collect();
    found.sort_unstable();
    found
}

/// Nanoseconds a thread ran, and waited for a CPU although it could have run (Documentation/scheduler/sched-stats).
pub(crate) fn ran_and_waited(process: u32, thread: u32) -> Option<(u64, u64)> {
    ran(&fs::read_to_string(format!("/proc/{process}/task/{thread}/schedstat")).ok()?)
}

fn ran(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text.split_whitespace().map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Milliseconds all threads of a process ran, in clock ticks of 10.
pub(crate) fn cpu_milliseconds(process: u32) -> Option<u64> {
    ticks(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?).map(|ticks| ticks * 10)
}

/// utime and stime: fields 14 and 15 of proc_pid_stat(5), the 12th and 13th after the name.
fn ticks(text: &str) -> Option<u64> {
    let mut fields = text.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    Some(user + fields.next()?.parse::<u64>().ok()?)
}

/// All CPUs' time and the part of it the hypervisor below gave to others, in ticks since boot.
pub(crate) fn stolen() -> Option<(u64, u64)> {
    steal(&fs::read_to_string("/proc/stat").ok()?)
}

fn steal(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guest times are part of user already.
    let times: Vec<u64> = line.split_whitespace().take(8).filter_map(|time| time.parse().ok()).collect();
    Some((times.iter().sum(), *times.get(7)?))
}

/// A process's memory in bytes. `None`: only root may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// Pages no other process has mapped, guest memory among them.
    pub(crate) private_bytes: Option<u64>,
    /// Its own: anonymous memory, and its share of programs and libraries.
    pub(crate) own_bytes: Option<u64>,
    /// Its share of shared memory: the guest's.
    pub(crate) guest_bytes: Option<u64>,
    /// Anonymous memory; everybody may see it.
    pub(crate) anonymous_bytes: Option<u64>,
}

impl Memory {
    /// Of a process.
    pub(crate) fn of(process: u32) -> Self {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).unwrap_or_default();
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        Self::read(&rollup, &status)
    }

    fn read(rollup: &str, status: &str) -> Self {
        let add = |keys: &[&str]| {
            keys.iter().map(|key| bytes(rollup, key)).try_fold(0_u64, |sum, value| Some(sum + value?))
        };
        Self {
            private_bytes: add(&["Private_Clean", "Private_Dirty", "Private_Hugetlb"]),
            own_bytes: add(&["Pss_Anon", "Pss_File"]),
            guest_bytes: add(&["Pss_Shmem", "Shared_Hugetlb", "Private_Hugetlb"]),
            anonymous_bytes: bytes(status, "RssAnon"),
        }
    }
}

fn bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_in_the_kernels_texts() {
        assert_eq!(ran("120 34 5\n"), Some((120, 34)));
        assert_eq!(ran(""), None);
        let stat = "8 (vmm) x) S 1 8 8 0 -1 4194560 100 0 0 0 30 12 0 0 20 0 3 0 99";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(steal("cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1\n"), Some((36, 8)));
        assert_eq!(steal("intr 1\n"), None);
    }

    #[test]
    fn memory_is_divided_and_absent_where_it_may_not_be_seen() {
        let rollup = "0-1 ---p 00000000 00:00 0 [rollup]\nPss_Anon: 8 kB\nPss_File: 4 kB\nPss_Shmem: 100 kB\n\
                      Private_Clean: 1 kB\nPrivate_Dirty: 2 kB\nShared_Hugetlb: 0 kB\nPrivate_Hugetlb: 0 kB\n";
        let memory = Memory::read(rollup, "Name:\tvmm\nRssAnon:\t     16 kB\n");
        assert_eq!(memory.own_bytes, Some(12 << 10));
        assert_eq!(memory.guest_bytes, Some(100 << 10));
        assert_eq!(memory.private_bytes, Some(3 << 10));
        assert_eq!(memory.anonymous_bytes, Some(16 << 10));
        let hidden = Memory::read("", "");
        assert_eq!((hidden.own_bytes, hidden.anonymous_bytes), (None, None));
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let own = std::process::id();
        assert_eq!(worker(own), own);
        assert!(Memory::of(own).own_bytes.is_some_and(|bytes| bytes > 0));
        assert!(cpu_milliseconds(own).is_some());
        let index = std::thread::Builder::new().name("vcpu7".into()).spawn(move || {
            let found = vcpus(own);
            let (index, thread) = *found.first().unwrap();
            assert!(ran_and_waited(own, thread).is_some());
            index
        });
        assert_eq!(index.unwrap().join().unwrap(), 7);
    }
}
