//! What the exit budget is about: a boot, and each load in each setting. One list, for the gates and for the bench.
//!
//! Called by: the exit-budget cases and `cargo xtask bench exits`. All on one vCPU and 512 MiB, a 64 MiB raw disk and a
//! NIC, each on its own process; host interrupts are left out.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use crate::case::Context;
use crate::exits::{Count, Detail, Exits};
use crate::guest::Kernel;
use crate::load::{self, Loaded};
use crate::net::Tap;
use crate::peers::Peers;

pub use crate::load::Measured;

/// A boot.
#[derive(Debug, Serialize)]
pub struct Boot {
    /// From the start to the first line of init.
    pub to_init: Exits,
    /// And on until all drivers are bound.
    pub to_devices: Exits,
}

/// Boots a guest with a disk, a NIC and further `flags`, to the end. With `detail`, prints what the exits up to init
/// were about.
///
/// # Errors
/// If it does not boot, or exits cannot be counted here.
pub fn boot(context: &Context, flags: &[&str], detail: bool) -> anyhow::Result<Boot> {
    let disk = context.disk("boot.img", 64)?;
    let tap = Tap::new("tap0", false)?;
    let script = "say disk $(cat /sys/block/vda/size) nic $(cat /sys/class/net/eth0/mtu); read go";
    let machine = context.machine(script)?.disk(&disk, "").net(tap.name(), "");
    let machine = flags.iter().fold(machine, |machine, flag| machine.arg(flag));
    let detail = detail.then(Detail::start).transpose()?;
    let count = Count::start()?;
    let mut vm = machine.start()?;
    vm.guest("init")?;
    let to_init = count.so_far()?;
    if let Some(detail) = &detail {
        println!("{}", detail.so_far()?);
    }
    vm.guest("disk 131072 nic 1500")?;
    let to_devices = count.so_far()?;
    vm.type_in("go\n")?;
    vm.expect_exit(0)?;
    Ok(Boot { to_init, to_devices })
}

/// How requests and their completions are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Nobody looks: a doorbell and an interrupt each time.
    Event,
    /// As a machine is by default.
    Default,
    /// The backend looks and puts its calls off, and the guest looks before it halts: its haltpoll driver and governor, on
    /// the kernel that has both.
    Polling,
    /// The backend looks, and the guest reads through a queue without interrupts (`virtio_blk.poll_queues`).
    PollQueues,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Event, Self::Default, Self::Polling, Self::PollQueues];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Default => "default",
            Self::Polling => "polling",
            Self::PollQueues => "poll queues",
        }
    }
}

/// Which loads of a setting, and how much of each.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Requests of each disk load.
    pub requests: u32,
    /// Packets of each packet load; MiB of a stream are a hundredth of it. Zero: no NIC.
    pub packets: u32,
    /// How long to watch an idle guest; zero: not at all.
    pub idle: Duration,
}

/// How long a guest of [`Setting::Polling`] looks at most. By default a fifth of a millisecond, which the rig, where all
/// takes tens of times longer, needs for a read alone.
const LOOKS: &str = "haltpoll.guest_halt_poll_ns=5000000";
/// Its backend: it looks for longer than a burst of 32 takes in the rig, and gives the guest time to change to its idle
/// task, so that it is looking when the call comes.
const POLLS: &str = ",poll_us=5000,coalesce_us=100";

/// Boots a guest in that setting and runs loads of that amount.
///
/// # Errors
/// If a load fails, or exits cannot be counted here.
pub fn loads(context: &Context, setting: Setting, amount: Amount) -> anyhow::Result<Vec<Measured>> {
    let disk = context.disk("load.img", 64)?;
    // So that reads find blocks and no holes.
    crate::image::random(&disk, 64 << 20)?;
    let tap = Tap::new("tap0", false)?;
    let kernel = if setting == Setting::Polling { Kernel::Big } else { Kernel::Cloud };
    let machine = load::machine(context, kernel)?.net(tap.name(), "");
    let machine = match setting {
        Setting::Event => machine.disk(&disk, ",poll_us=0"),
        Setting::Default => machine.disk(&disk, ""),
        Setting::Polling => {
            let machine = machine.disk(&disk, POLLS).append(LOOKS);
            machine.halting("poll")?
        }
        // The driver makes at most one queue for each possible processor, and keeps one for interrupts.
        Setting::PollQueues => {
            let machine = machine.disk(&disk, ",queues=2,poll_us=1000");
            machine.append("possible_cpus=2 virtio_blk.poll_queues=1")
        }
    };
    let mut guest = Loaded::start(machine)?;
    if setting == Setting::Polling {
        guest.tell("say governor $(cat /sys/devices/system/cpu/cpuidle/current_governor_ro)")?;
        let governor = guest.vm().guest_value("governor")?;
        ensure!(
            governor == "haltpoll",
            "the guest's idle governor is {governor}: it does not look before it halts"
        );
    }
    let mut measured = Vec::new();
    let requests = amount.requests;
    let way = if setting == Setting::PollQueues { "polled" } else { "disk" };
    for (load, depth, count) in [("read, depth 1", 1, requests), ("read, depth 32", 32, requests * 4)] {
        measured.push(guest.run(load, "read", &format!("{way} /dev/vda {depth} {count}"))?);
    }
    if amount.packets > 0 && setting != Setting::PollQueues {
        let peers = Peers::start()?;
        let (packets, mib) = (amount.packets, amount.packets / 100);
        for (load, unit, words) in [
            ("UDP out", "packet", format!("udp-send {} {packets}", peers.udp_sink)),
            ("UDP in", "packet", format!("udp-receive {} {packets}", peers.udp_source)),
            ("TCP out", "MiB", format!("tcp-send {} {mib}", peers.tcp_sink)),
            ("TCP in", "MiB", format!("tcp-receive {} {mib}", peers.tcp_source)),
            ("request/response", "pair", format!("request {} {}", peers.echo, packets / 2)),
        ] {
            measured.push(guest.run(load, unit, &words)?);
        }
    }
    if !amount.idle.is_zero() {
        guest.settle()?;
        measured.push(guest.idle(amount.idle)?);
    }
    guest.finish()?;
    Ok(measured)
}
