//! What a NIC may be plugged into beside a tap, and what holds whatever its guest does: guards and rates.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use strata_tests::net::{Exchange, GUEST, HOST, Tap, ip};
use strata_tests::{Case, Context};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("cables::a_macvtap_carries_files_both_ways", a_macvtap_carries_files_both_ways),
        Case::kvm("cables::a_guest_cannot_be_another", a_guest_cannot_be_another),
        Case::kvm("cables::rates_hold_and_change", rates_hold_and_change),
    ]
}

const SIZE: u64 = 4 << 20;
/// An address of the same network that is not the guest's.
const OTHER: &str = "10.77.0.77";
/// Requests while there is a limit, and the limit per second.
const REQUESTS: u64 = 60;
const PER_SECOND: u64 = 20;

/// A pair of interfaces of the host, both gone when dropped.
struct Pair;

impl Pair {
    fn new() -> anyhow::Result<Self> {
        ip("link add near type veth peer name far")?;
        let pair = Self;
        ip("link set near up")?;
        ip("link set far up")?;
        ip(&format!("addr add {HOST}/24 dev far"))?;
        Ok(pair)
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = ip("link del near");
    }
}

fn a_macvtap_carries_files_both_ways(context: &Context) -> anyhow::Result<()> {
    let _pair = Pair::new()?;
    let exchange = Exchange::new(&context.file("file"), SIZE)?;
    let mut vm = context.machine(&exchange.script())?.arg("--net").arg("macvtap=near").start()?;
    let sum = vm.guest_value("sum")?;
    vm.guest("sent")?;
    exchange.finish(&sum)?;
    vm.expect_exit(0)?;
    let left = ip("-br link show type macvtap")?;
    ensure!(left.trim().is_empty(), "a macvtap is left: {left}");
    Ok(())
}

fn a_guest_cannot_be_another(context: &Context) -> anyhow::Result<()> {
    let script = format!(
        "
reach() {{ ping -c 3 -W 2 $1 {HOST} >/dev/null 2>&1; }}
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
reach && say itself
ip addr add {OTHER}/24 dev eth0
reach '-I {OTHER}' && say REACHED as another
arping -c 2 -w 3 -s {OTHER} -I eth0 {HOST} 2>&1 | grep -q 'from {HOST}' && say CLAIMED by ARP
ip addr del {OTHER}/24 dev eth0
ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:99 2>/dev/null && say CHANGED its card
ip link set eth0 up
reach && say still itself
say tried; read go
"
    );
    let tap = Tap::new("tap0", false)?;
    let more = format!(",ip={GUEST},guard_dhcp,guard_ra,mac=52:54:00:12:34:56");
    let mut vm = context.machine(&script)?.net(tap.name(), &more).start()?;
    vm.guest("itself")?;
    vm.guest("still itself")?;
    vm.guest("tried")?;
    let refused = counter(context, "tx_drop_guard_ip")?;
    let heard = ip("neigh show dev tap0")?;
    vm.type_in("go\n")?;
    vm.expect_exit(0)?;
    let said = vm.output.so_far();
    ensure!(
        !["REACHED", "CLAIMED", "CHANGED"].iter().any(|word| said.contains(word)),
        "the guest was another:\n{}",
        vm.tails()
    );
    // Three requests for an echo or, before them, for the host's hardware address; two announcements.
    ensure!(refused >= 3, "only {refused} frames were refused");
    ensure!(!heard.contains(OTHER), "the host has heard of {OTHER}:\n{heard}");
    Ok(())
}

/// A counter of the machine's NIC, over its pairs.
fn counter(context: &Context, name: &str) -> anyhow::Result<u64> {
    let mut asked = context.start("strata", &["net", "stats", "vm", "net0", "--output", "json"])?;
    asked.expect_exit(0)?;
    let told: Value = serde_json::from_str(&asked.output.so_far()).context("the counters are no JSON")?;
    let pairs = told.pointer("/0/pairs").and_then(Value::as_array).context("no pairs")?;
    let counts = pairs.iter().map(|pair| pair.get(name).and_then(Value::as_u64));
    counts.sum::<Option<u64>>().with_context(|| format!("no counter {name}: {told}"))
}

/// A limit is a bound from above, so the least time it takes is known whatever the machine does meanwhile. Without one the
/// same number of frames is sent again, and the limit is never met.
fn rates_hold_and_change(context: &Context) -> anyhow::Result<()> {
    let script = format!(
        "
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
say ready; read go
ping -c {REQUESTS} -A -W 20 {HOST} | grep -q ' 0% packet loss' && say all
read go
ping -c {REQUESTS} -A -W 20 {HOST} | grep -q ' 0% packet loss' && say all again
read go
"
    );
    let tap = Tap::new("tap0", false)?;
    let mut vm = context
        .machine(&script)?
        .net(tap.name(), &format!(",tx_packets={PER_SECOND},tx_burst=5ms"))
        .start()?;
    vm.guest("ready")?;
    let before = counter(context, "tx_frames")?;
    let began = Instant::now();
    vm.type_in("go\n")?;
    vm.guest("all")?;
    let (took, sent) = (began.elapsed().as_secs_f64(), counter(context, "tx_frames")? - before);
    ensure!(sent >= REQUESTS, "only {sent} frames were sent");
    // A burst is at least one frame; half a second of grace for it and for clocks.
    let least = REQUESTS as f64 / PER_SECOND as f64 - 0.5;
    ensure!(took >= least, "{sent} frames took {took:.2} s; {PER_SECOND} a second are allowed");
    let met = counter(context, "tx_throttled")?;
    ensure!(met > 0, "the limit was never met");
    context.run("strata", &["net", "limit", "vm", "net0", "--none"])?.expect_exit(0)?;
    vm.type_in("go\n")?;
    vm.guest("all again")?;
    let after = counter(context, "tx_throttled")?;
    ensure!(after <= met + 1, "a limit that was removed was met {} times", after - met);
    vm.type_in("go\n")?;
    vm.expect_exit(0)
}
