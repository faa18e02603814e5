//! The machine file's `[vcpu]` and `profile`: as written, checked, and back.

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cpu_list::CpuList;
use crate::error::ConfigError;

type Checked<T> = Result<T, ConfigError>;

/// 255 means all of them (Intel SDM volume 3, 11.6.1).
const HIGHEST_APIC_ID: u32 = 254;

/// More CPUs than any Linux has (CONFIG_NR_CPUS is at most 8192 on x86).
const HOST_CPUS: u16 = 8192;

/// How the vCPUs are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VcpuEntry {
    /// How many there are: the same as `cpus`, for those who want it here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub count: Option<i64>,
    /// The host CPU each vCPU stays on, one for each: `[2, 3]` or `"2-3"`; default: wherever the host's scheduler
    /// puts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<CpuList>,
    /// The guest may run KVM guests of its own where the host allows it; default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nested: Option<bool>,
    /// What a vCPU without work does: `host` (the default) leaves the guest, and the host may look for work a while
    /// before it sleeps; `poll` has the guest itself look first (its haltpoll driver), which saves most exits; `guest`
    /// halts without leaving, and the host CPU is lost to others. The last two need `pin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["poll", "host", "guest"]))]
    pub halt: Option<String>,
    /// Sockets the guest sees; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub sockets: Option<i64>,
    /// Cores of a socket; default: as many as there are vCPUs for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub cores: Option<i64>,
    /// Threads of a core; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 255))]
    pub threads: Option<i64>,
}

/// The vCPUs, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vcpu {
    /// The guest is offered vmx or svm where the host has it.
    pub nested: bool,
    /// What a vCPU without work does.
    pub halt: Halt,
    /// The host CPU of each vCPU, all different; empty: they are not pinned.
    pub pin: Vec<usize>,
    /// What the guest sees; the product is the number of vCPUs.
    pub topology: Topology,
}

/// What a vCPU without work does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// The guest looks for work itself before it halts (its haltpoll driver and governor).
    Poll,
    /// It exits; the host looks for work, for the time of KVM's `halt_poll_ns`, and sleeps.
    Host,
    /// It halts without an exit (KVM_CAP_X86_DISABLE_EXITS).
    Guest,
}

impl Halt {
    /// The file's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Host => "host",
            Self::Guest => "guest",
        }
    }
}

/// How vCPUs are arranged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Sockets.
    pub sockets: u8,
    /// Cores of each socket.
    pub cores: u8,
    /// Threads of each core.
    pub threads: u8,
}

/// What exits are assumed to cost here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Looked up at start: nested where a hypervisor is below this host.
    #[default]
    Auto,
    /// Dear: this host is itself a virtual machine.
    Nested,
    /// Cheap: this host is a machine.
    Bare,
}

impl Profile {
    /// The file's word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Nested => "nested",
            Self::Bare => "bare",
        }
    }

    pub(crate) fn check(text: Option<&str>) -> Checked<Self> {
        match text {
            None | Some("auto") => Ok(Self::Auto),
            Some("nested") => Ok(Self::Nested),
            Some("bare") => Ok(Self::Bare),
            Some(other) => Err(ConfigError::text("profile", other, "must be auto, nested or bare")),
        }
    }
}

impl Topology {
    /// The number vCPU `index` has in interrupts: thread, core and socket in fields as wide as they have to be (Intel
    /// SDM volume 3, 9.9; AMD APM volume 3, 3.1), so there are gaps where a count is no power of two.
    #[must_use]
    pub fn apic_id(self, index: u8) -> u32 {
        let (threads, cores) = (u32::from(self.threads.max(1)), u32::from(self.cores.max(1)));
        let index = u32::from(index);
        let (thread, core, socket) = (index % threads, index / threads % cores, index / threads / cores);
        let bits = |count: u32| count.next_power_of_two().trailing_zeros();
        (socket << bits(cores) | core) << bits(threads) | thread
    }
}

impl VcpuEntry {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The number of vCPUs, from here or from the key `cpus`.
    pub(crate) fn cpus(&self, cpus: Option<i64>) -> Checked<u8> {
        let (key, count) = match (cpus, self.count) {
            (Some(cpus), Some(count)) if cpus != count => {
                return Err(ConfigError::Conflict {
                    path: "cpus, vcpu.count".to_owned(),
                    reason: format!("{cpus} and {count} vCPUs; keep one of the two"),
                });
            }
            (None, Some(count)) => ("vcpu.count", count),
            (cpus, _) => ("cpus", cpus.unwrap_or(1)),
        };
        match u8::try_from(count) {
            Ok(count @ 1..) => Ok(count),
            _ => Err(ConfigError::value(key, count, "must be 1 to 255")),
        }
    }

    /// The rest, for that many vCPUs.
    pub(crate) fn check(self, cpus: u8) -> Checked<Vcpu> {
        let topology = self.topology(cpus)?;
        let halt = match self.halt.as_deref() {
            None | Some("host") => Halt::Host,
            Some("poll") => Halt::Poll,
            Some("guest") => Halt::Guest,
            Some(other) => return Err(ConfigError::text("halt", other, "must be poll, host or guest")),
        };
        let pin = self.pin.map_or(Ok(Vec::new()), |list| pinned(&list, cpus))?;
        if halt != Halt::Host && pin.is_empty() {
            return Err(ConfigError::text(
                "halt",
                halt.as_str(),
                "needs `pin`: such a vCPU uses its host CPU without working, and must not take it from another",
            ));
        }
        Ok(Vcpu { nested: self.nested.unwrap_or(true), halt, pin, topology })
    }

    fn topology(&self, cpus: u8) -> Checked<Topology> {
        let count = |key: &str, value: Option<i64>| match value.map(u8::try_from) {
            None => Ok(None),
            Some(Ok(count @ 1..)) => Ok(Some(count)),
            _ => Err(ConfigError::value(key, value.unwrap_or(0), "must be 1 to 255")),
        };
        let (sockets, cores) = (count("sockets", self.sockets)?, count("cores", self.cores)?);
        let threads = count("threads", self.threads)?.unwrap_or(1);
        let (sockets, cores) = match (sockets, cores) {
            (Some(sockets), Some(cores)) => (sockets, cores),
            // What is not said follows from the rest.
            (None, Some(cores)) => (quotient(cpus, cores, threads), cores),
            (sockets, None) => {
                let sockets = sockets.unwrap_or(1);
                (sockets, quotient(cpus, sockets, threads))
            }
        };
        if u32::from(sockets) * u32::from(cores) * u32::from(threads) != u32::from(cpus) {
            return Err(ConfigError::value(
                "sockets, cores, threads",
                format_args!("{sockets}, {cores}, {threads}"),
                format!("their product must be the number of vCPUs, {cpus}"),
            ));
        }
        let topology = Topology { sockets, cores, threads };
        if topology.apic_id(cpus - 1) > HIGHEST_APIC_ID {
            return Err(ConfigError::value(
                "sockets, cores, threads",
                format_args!("{sockets}, {cores}, {threads}"),
                "need APIC ids above 254; make cores and threads powers of two",
            ));
        }
        Ok(topology)
    }
}

/// `cpus / (one * other)`, at least one; what does not divide is found out by the product.
fn quotient(cpus: u8, one: u8, other: u8) -> u8 {
    let divisor = (u16::from(one) * u16::from(other)).max(1);
    u8::try_from(u16::from(cpus) / divisor).unwrap_or(1).max(1)
}

/// A host CPU for each vCPU, all different.
fn pinned(list: &CpuList, cpus: u8) -> Checked<Vec<usize>> {
    let refused = |allowed: String| ConfigError::value("pin", list, allowed);
    let pin = list.read(HOST_CPUS, HOST_CPUS.into()).ok_or_else(|| {
        refused(format!("must be CPU numbers below {HOST_CPUS}, such as [2, 3] or \"2-3\""))
    })?;
    let different: BTreeSet<u16> = pin.iter().copied().collect();
    if different.len() != pin.len() {
        return Err(refused("each vCPU needs a host CPU of its own".to_owned()));
    }
    if pin.len() != usize::from(cpus) {
        let (given, one_each) = (pin.len(), "one for each vCPU");
        return Err(refused(format!("{given} host CPUs for {cpus} vCPUs; give {one_each}")));
    }
    Ok(pin.into_iter().map(usize::from).collect())
}

impl From<Vcpu> for VcpuEntry {
    fn from(vcpu: Vcpu) -> Self {
        let number = |cpu| i64::try_from(cpu).unwrap_or(i64::MAX);
        Self {
            // Written as `cpus`.
            count: None,
            pin: (!vcpu.pin.is_empty()).then(|| CpuList::Numbers(vcpu.pin.into_iter().map(number).collect())),
            nested: Some(vcpu.nested),
            halt: Some(vcpu.halt.as_str().to_owned()),
            sockets: Some(vcpu.topology.sockets.into()),
            cores: Some(vcpu.topology.cores.into()),
            threads: Some(vcpu.topology.threads.into()),
        }
    }
}

#[cfg(test)]
#[path = "vcpu_test.rs"]
mod vcpu_test;
