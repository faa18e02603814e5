#![allow(unsafe_code)] // prlimit and sched_setscheduler of other processes

//! The faults.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use strata_faults::Random;

use crate::machine::{Machine, until};
use crate::place::Place;
use crate::tally::Tally;

/// What can be done to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Fault {
    /// SIGKILL to a backend.
    Kill,
    /// SIGSTOP to a backend, and SIGCONT soon after.
    Stop,
    /// SIGSTOP to a backend, for good.
    Hang,
    /// No CPU time for a backend, for a while: only what others leave over, or a hundredth of a CPU by cgroup.
    Starve,
    /// No descriptors for a backend, for a while, and a connection to accept.
    Limit,
    /// A disk's file system is full, for a while.
    Fill,
    /// A connection breaks.
    Sever,
    /// A connection breaks again and again in the middle of messages.
    Truncate,
    /// Messages are slow, and the connection breaks.
    Delay,
    /// All backends are replaced by the other version.
    Upgrade,
    /// The driver resets all devices.
    Reset,
    /// SIGKILL to the vmm; the machine starts again on what its disks hold.
    Vmm,
    /// SIGKILL to the launcher; likewise.
    Launcher,
}

/// All of them; kills more often than what takes long.
pub(crate) fn all() -> Vec<Fault> {
    use Fault::{
        Delay, Fill, Hang, Kill, Launcher, Limit, Reset, Sever, Starve, Stop, Truncate, Upgrade, Vmm,
    };
    let often = [Kill, Kill, Kill, Kill, Kill, Kill, Stop, Stop, Stop, Sever, Sever, Reset, Reset];
    let seldom = [Hang, Starve, Limit, Fill, Truncate, Delay, Upgrade, Vmm, Launcher];
    let mut all: Vec<Fault> = often.into_iter().chain(seldom).collect();
    // The backends are somebody else's processes by the time we limit them.
    if !has_capability(24) {
        println!("fault-campaign: no CAP_SYS_RESOURCE here, so descriptors are not limited");
        all.retain(|fault| *fault != Limit);
    }
    all
}

/// Whether this process has a capability, by its number.
fn has_capability(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> number & 1 == 1)
}

/// Does it to `machines[victim]`.
pub(crate) fn strike(
    fault: Fault,
    place: &mut Place,
    machines: &mut Vec<Machine>,
    victim: usize,
    random: &mut Random,
    tally: &mut Tally,
) -> anyhow::Result<()> {
    let name = fault.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    if let Fault::Vmm | Fault::Launcher = fault {
        let mut machine = machines.remove(victim);
        // Not in the first moments of a vmm: what it says then is another matter.
        machine.settle()?;
        machine.kill(if fault == Fault::Vmm { "vmm" } else { "launcher" })?;
        drop(machine);
        machines.insert(victim, Machine::start(place, victim)?);
        tally.count(&name);
        return Ok(());
    }
    let machine = machines.get_mut(victim).context("a machine")?;
    machine.check()?;
    let device = random.pick(&machine.devices()).cloned().unwrap_or_default();
    let done = match fault {
        // Now and then a young one, too.
        Fault::Kill => one_kill(machine, &device, random.below(8) > 0, random)?,
        Fault::Stop => stop(machine, &device, Duration::from_millis(20 + random.below(280))),
        Fault::Hang => hang(machine, &device, tally)?,
        Fault::Starve if random.below(2) == 0 && squeeze(machine, &device) => true,
        Fault::Starve => starve(machine, &device)?,
        Fault::Limit => limit(machine, &device),
        Fault::Fill => fill(place, victim, Duration::from_millis(100 + random.below(300)))?,
        Fault::Sever => {
            with(machine, &device, |proxy| proxy.sever());
            true
        }
        Fault::Truncate => {
            for _ in 0..1 + random.below(5) {
                let messages = random.below(60);
                with(machine, &device, |proxy| {
                    proxy.cut_after(messages);
                    proxy.sever();
                });
                std::thread::sleep(Duration::from_millis(random.below(150)));
            }
            with(machine, &device, |proxy| proxy.relent());
            true
        }
        Fault::Delay => {
            let time = Duration::from_millis(1 + random.below(30));
            with(machine, &device, |proxy| {
                proxy.delay(time);
                proxy.sever();
            });
            std::thread::sleep(Duration::from_millis(500));
            with(machine, &device, |proxy| proxy.relent());
            true
        }
        Fault::Upgrade => {
            place.swap()?;
            return upgrade(machine, tally, &name);
        }
        Fault::Reset => {
            machine.ask(&["reboot", &machine.name])?;
            true
        }
        Fault::Vmm | Fault::Launcher => false,
    };
    if done {
        tally.count(&name);
    }
    Ok(())
}

fn with(machine: &Machine, device: &str, act: impl FnOnce(&crate::proxy::Proxy)) {
    if let Some(proxy) = machine.proxies.get(device) {
        act(proxy);
    }
}

fn signal(pid: i32, signal: Signal) -> bool {
    kill(Pid::from_raw(pid), signal).is_ok()
}

/// Kills the reaper or the process behind it.
fn one_kill(machine: &mut Machine, device: &str, grown: bool, random: &mut Random) -> anyhow::Result<bool> {
    if grown && !machine.is_served(device) {
        return Ok(false);
    }
    let pid =
        if random.below(2) == 0 { machine.pid_of(device, grown) } else { machine.inner_of(device, grown) };
    Ok(pid.is_some_and(|pid| signal(pid, Signal::SIGKILL)))
}

fn stop(machine: &Machine, device: &str, time: Duration) -> bool {
    let Some(pid) = machine.inner_of(device, true) else { return false };
    let stopped = signal(pid, Signal::SIGSTOP);
    std::thread::sleep(time);
    signal(pid, Signal::SIGCONT) && stopped
}

/// Stops it for good: the launcher has to find out, and another has to serve.
fn hang(machine: &mut Machine, device: &str, tally: &mut Tally) -> anyhow::Result<bool> {
    let Some(pid) = machine.inner_of(device, true).filter(|_| machine.is_served(device)) else {
        return Ok(false);
    };
    let start = Instant::now();
    if !signal(pid, Signal::SIGSTOP) {
        return Ok(false);
    }
    until(&format!("{device}, which hangs, to be replaced"), || {
        machine.check()?;
        let other = machine.inner_of(device, false).is_some_and(|now| now != pid);
        Ok((other && machine.is_served(device)).then_some(()))
    })?;
    tally.hang_recoveries.push(start.elapsed().as_secs_f64() * 1e3);
    Ok(true)
}

/// A hundredth of a CPU, by a cgroup of its own; false where there is none to be had.
fn squeeze(machine: &Machine, device: &str) -> bool {
    let Some(pid) = machine.inner_of(device, true) else { return false };
    let group = format!("strata-faults-{}", std::process::id());
    // Version 1 has a folder for the controller, version 2 one for all.
    let v1 = Path::new("/sys/fs/cgroup/cpu");
    let (root, file, quota) = match v1.join("cpu.cfs_quota_us").exists() {
        true => (v1, "cpu.cfs_quota_us", "1000"),
        false => (Path::new("/sys/fs/cgroup"), "cpu.max", "1000 100000"),
    };
    let (own, move_to) =
        (root.join(group), |folder: &Path| fs::write(folder.join("cgroup.procs"), pid.to_string()));
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let home = lines.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?.trim_start_matches('/');
        (controllers.is_empty() || controllers.split(',').any(|it| it == "cpu")).then(|| root.join(path))
    });
    let Some(home) = home else { return false };
    let squeezed =
        fs::create_dir(&own).is_ok() && fs::write(own.join(file), quota).is_ok() && move_to(&own).is_ok();
    if squeezed {
        std::thread::sleep(Duration::from_millis(400));
        // It may have ended meanwhile.
        let _ = move_to(&home);
    }
    let _ = fs::remove_dir(own);
    squeezed
}

/// Only what others leave over, while two threads leave nothing.
fn starve(machine: &Machine, device: &str) -> anyhow::Result<bool> {
    let Some(pid) = machine.inner_of(device, true) else { return Ok(false) };
    let tasks = || fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let set = |policy: i32| {
        for tid in tasks().filter_map(|task| task.file_name().to_str()?.parse::<i32>().ok()) {
            let param = libc::sched_param { sched_priority: 0 };
            // SAFETY: reads `param`.
            unsafe { libc::sched_setscheduler(tid, policy, &raw const param) };
        }
    };
    set(libc::SCHED_IDLE);
    let end = Instant::now() + Duration::from_millis(400);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| while Instant::now() < end {});
        }
    });
    set(libc::SCHED_OTHER);
    Ok(true)
}

fn limit(machine: &Machine, device: &str) -> bool {
    let Some(pid) = machine.inner_of(device, true) else { return false };
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes `before`.
    if unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before) } < 0 {
        return false;
    }
    let few = libc::rlimit { rlim_cur: 3, rlim_max: before.rlim_max };
    // SAFETY: reads `few`.
    unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const few, std::ptr::null_mut()) };
    with(machine, device, crate::proxy::Proxy::sever);
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: reads `before`.
    unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const before, std::ptr::null_mut()) };
    true
}

fn fill(place: &Place, victim: usize, time: Duration) -> anyhow::Result<bool> {
    let path = place.path(&place.name(victim)).join("small/filler");
    let mut file = fs::File::create(&path)?;
    let piece = vec![0xff; 64 << 10];
    while file.write_all(&piece).is_ok() {}
    std::thread::sleep(time);
    fs::remove_file(path)?;
    Ok(true)
}

fn upgrade(machine: &mut Machine, tally: &mut Tally, name: &str) -> anyhow::Result<()> {
    let text = machine.ask(&["upgrade", &machine.name, "--output", "json"])?;
    let reports: Vec<Value> = serde_json::from_str(&text).context("what strata upgrade said")?;
    ensure!(reports.len() == machine.devices().len(), "not all devices are reported: {text}");
    for report in reports.iter().filter(|it| it.get("outcome").and_then(Value::as_str) == Some("replaced")) {
        tally.upgrade_stalls.extend(report.get("stall_milliseconds").and_then(Value::as_f64));
        tally.count(name);
    }
    Ok(())
}
