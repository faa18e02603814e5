//! A guest under load, and what that costs in exits: `guest-load` inside, the histogram and the other end outside.
//!
//! Owns: the running machine. Called by: the exit-budget cases and `cargo xtask bench exits`. The guest's script does
//! what it is typed, line by line; nothing is counted but what lies between two lines of the load.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;

use crate::case::Context;
use crate::exits::{Count, Exits};
use crate::guest::{self, Kernel};
use crate::libraries;
use crate::programs::Programs;
use crate::strata::{Machine, Running};

/// What the guest runs: each line that is typed.
pub const SCRIPT: &str = "
ip link set lo up
[ -e /sys/class/net/eth0 ] && { ip addr add 10.77.0.2/24 dev eth0; ip link set eth0 up; }
say under load
while read -r line; do eval \"$line\"; done
";

/// Exits of a load and what it did.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// What it was.
    pub load: String,
    /// Requests, datagrams, MiB or seconds.
    pub operations: f64,
    /// What one operation is.
    pub unit: &'static str,
    /// As the guest's clock has it.
    pub seconds: f64,
    /// All of it.
    pub exits: Exits,
}

impl Measured {
    /// From what a load said at its end: how many operations, in how many nanoseconds.
    ///
    /// # Errors
    /// If it said something else.
    pub fn said(load: &str, unit: &'static str, said: &str, exits: Exits) -> anyhow::Result<Self> {
        let mut numbers = said.split_whitespace().map(str::parse::<f64>);
        let mut number = || numbers.next().context("too few numbers")?.context("no number");
        let (operations, nanos) = number()
            .and_then(|count| Ok((count, number()?)))
            .with_context(|| format!("the load said: {said}"))?;
        Ok(Self { load: load.to_owned(), operations, unit, seconds: nanos / 1e9, exits })
    }

    /// Exits of one operation; host interrupts are left out.
    pub fn each(&self) -> f64 {
        self.exits.total() as f64 / self.operations
    }

    /// Exits of one operation that went on to the vmm's user space.
    pub fn user_each(&self) -> f64 {
        self.exits.user_space() as f64 / self.operations
    }

    /// In one line.
    pub fn line(&self) -> String {
        let Self { load, operations, unit, seconds, .. } = self;
        let reasons = self.exits.by_reason();
        let reasons: Vec<_> =
            reasons.iter().map(|(name, count)| format!("{name} {:.3}", *count as f64 / operations)).collect();
        format!(
            "{load}: {:.3} exits per {unit}, {:.4} to user space ({operations} in {seconds:.2} s: {})",
            self.each(),
            self.user_each(),
            reasons.join(", ")
        )
    }
}

/// A machine that waits for loads.
pub struct Loaded {
    vm: Running,
    count: Count,
}

/// A machine to be, whose guest waits for loads on that kernel: one vCPU, 512 MiB.
///
/// # Errors
/// If its initramfs cannot be made.
pub fn machine(context: &Context, kernel: Kernel) -> anyhow::Result<Machine<'_>> {
    let initrd = context.file("initrd-load");
    let files = files(&context.programs)?;
    let files: Vec<_> =
        files.iter().map(|(name, mode, bytes)| (name.as_str(), *mode, bytes.clone())).collect();
    guest::initrd_of(kernel, &context.place, &initrd, SCRIPT, &files)?;
    Ok(Machine::new(context, &kernel.image(&context.place)?, &initrd))
}

/// `guest-load` and the libraries it needs, as files of an initramfs.
///
/// # Errors
/// If it has not been built.
pub fn files(programs: &Programs) -> anyhow::Result<Vec<(String, u32, Vec<u8>)>> {
    let program = programs.path("guest-load");
    let mut files = vec![("bin/guest-load".to_owned(), 0o755, libraries::stripped(&program)?)];
    for library in libraries::needed(&program)? {
        let name = library.strip_prefix("/").unwrap_or(&library).display().to_string();
        let content =
            std::fs::read(&library).with_context(|| format!("cannot read {}", library.display()))?;
        files.push((name, 0o755, content));
    }
    Ok(files)
}

impl Loaded {
    /// Starts `machine`, which [`machine`] made, and waits until it can be given loads.
    ///
    /// # Errors
    /// If it does not come up, or exits cannot be counted here.
    pub fn start(machine: Machine<'_>) -> anyhow::Result<Self> {
        let count = Count::start()?;
        let vm = machine.start()?;
        vm.guest("under load")?;
        Ok(Self { vm, count })
    }

    /// The machine.
    pub fn vm(&mut self) -> &mut Running {
        &mut self.vm
    }

    /// Has the guest run a line of shell.
    ///
    /// # Errors
    /// If it cannot be typed.
    pub fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        self.vm.type_in(&format!("{line}\n"))
    }

    /// Has the guest run `guest-load WORDS` and counts; an operation is a `unit`.
    ///
    /// # Errors
    /// If the load fails.
    pub fn run(&mut self, load: &str, unit: &'static str, words: &str) -> anyhow::Result<Measured> {
        self.tell(&format!("guest-load {words} || say did nothing"))?;
        self.vm.guest("ready")?;
        let before = self.count.so_far()?;
        self.tell("")?;
        let said = self.vm.guest_value("did")?;
        Measured::said(load, unit, &said, self.count.so_far()?.since(&before))
    }

    /// Waits until the guest has been up for 20 seconds: until then it looks for routers and for others with its address,
    /// and each packet is a doorbell. That is traffic and not idleness.
    ///
    /// # Errors
    /// If it does not say so.
    pub fn settle(&mut self) -> anyhow::Result<()> {
        self.tell("until [ $(cut -d. -f1 /proc/uptime) -ge 20 ]; do sleep 1; done; say settled")?;
        self.vm.guest("settled").map(drop)
    }

    /// Counts while the guest does nothing for `time`.
    ///
    /// # Errors
    /// If exits cannot be counted.
    pub fn idle(&mut self, time: Duration) -> anyhow::Result<Measured> {
        let (before, start) = (self.count.so_far()?, Instant::now());
        std::thread::sleep(time);
        let exits = self.count.so_far()?.since(&before);
        let seconds = start.elapsed().as_secs_f64();
        Ok(Measured { load: "idle".to_owned(), operations: seconds, unit: "second", seconds, exits })
    }

    /// Powers the guest off and waits for its end.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.tell("poweroff -f")?;
        self.vm.expect_exit(0)
    }
}
