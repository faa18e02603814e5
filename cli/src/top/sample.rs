//! Everything about all machines at one moment, gathered.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::meter::Reading;
use crate::run_dir::{Running, base};
use crate::threads::{self, Memory};

/// How long a machine may take before it is shown as not answering; the others wait meanwhile.
const ANSWER: Duration = Duration::from_millis(500);

/// All machines.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) at: Instant,
    pub(crate) cpus: usize,
    /// As [`threads::stolen`].
    pub(crate) stolen: Option<(u64, u64)>,
    pub(crate) machines: Vec<Machine>,
}

/// One machine.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    pub(crate) name: String,
    /// The launcher.
    pub(crate) pid: u32,
    /// When `times` was read.
    pub(crate) at: Instant,
    /// By vCPU: thread, nanoseconds it ran, nanoseconds it waited for a CPU.
    pub(crate) times: BTreeMap<u32, (u32, u64, u64)>,
    pub(crate) processes: Vec<Process>,
    /// `None`: it does not answer.
    pub(crate) reading: Option<Reading>,
}

/// One of its processes.
#[derive(Debug, Clone)]
pub(crate) struct Process {
    pub(crate) id: String,
    /// The one that works, inside the sandbox.
    pub(crate) pid: u32,
    /// Milliseconds it ran.
    pub(crate) cpu: Option<u64>,
    pub(crate) memory: Memory,
}

impl Sample {
    pub(crate) async fn take() -> std::io::Result<Self> {
        let mut machines = Vec::new();
        for running in Running::all(&base())? {
            machines.push(Machine::look(&running).await);
        }
        Ok(Self {
            at: Instant::now(),
            cpus: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            stolen: threads::stolen(),
            machines,
        })
    }
}

impl Machine {
    async fn look(running: &Running) -> Self {
        let workers = running.processes().into_iter().map(|(id, pid)| (id, threads::worker(pid)));
        let mut workers: Vec<(String, u32)> = workers.collect();
        workers.insert(0, ("strata".to_owned(), running.pid));
        let process = |(id, pid): (String, u32)| Process {
            id,
            pid,
            cpu: threads::cpu_milliseconds(pid),
            memory: Memory::of(pid),
        };
        let vmm = workers.iter().find(|(id, _)| id == "vmm").map(|(_, pid)| *pid);
        let processes = workers.into_iter().map(process).collect();
        let at = Instant::now();
        let vcpus = vmm.map(|vmm| (vmm, threads::vcpus(vmm)));
        let times = vcpus.into_iter().flat_map(|(vmm, vcpus)| {
            vcpus.into_iter().filter_map(move |(vcpu, thread)| {
                let (ran, waited) = threads::ran_and_waited(vmm, thread)?;
                Some((vcpu, (thread, ran, waited)))
            })
        });
        Self {
            name: running.name(),
            pid: running.pid,
            at,
            times: times.collect(),
            processes,
            reading: Reading::take(running, ANSWER).await.ok(),
        }
    }
}
