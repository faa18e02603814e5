//! NICs served by vhost-net between the kernel's own driver and a tap.

use anyhow::ensure;
use strata_rig::tool;
use strata_tests::net::{Exchange, GUEST, HOST, Tap, ip};
use strata_tests::{Case, Context, skip};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("net::files_both_ways", |context| files_both_ways(context, 1)),
        Case::kvm("net::files_both_ways_two_pairs", |context| files_both_ways(context, 2)),
        Case::kvm("net::vlans_of_a_bridge_are_kept_apart", vlans_of_a_bridge_are_kept_apart),
        Case::kvm(
            "net::a_cable_is_pulled_and_frames_are_captured",
            a_cable_is_pulled_and_frames_are_captured,
        ),
    ]
}

const SIZE: u64 = 16 << 20;
const FIRST: &str = "02:00:00:00:00:42";
const SECOND: &str = "02:00:00:00:00:43";

/// A file to the guest, and the same file from the guest, over TCP through the tap: equal at both ends.
fn files_both_ways(context: &Context, pairs: u32) -> anyhow::Result<()> {
    let tap = Tap::new("tap0", pairs > 1)?;
    let exchange = Exchange::new(&context.file("file"), SIZE)?;
    let card = "
say address $(cat /sys/class/net/eth0/address)
say queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
";
    let script = card.to_owned() + &exchange.script();
    let machine = context.machine(&script)?.cpus(pairs);
    let more = format!(",mac=52:54:00:12:34:56,queues={pairs}");
    let mut vm = machine.net(tap.name(), &more).start()?;
    ensure!(vm.guest_value("address")? == "52:54:00:12:34:56", "the guest has another MAC address");
    ensure!(vm.guest_value("queues")? == pairs.to_string(), "the guest sees another number of pairs");
    let sum = vm.guest_value("sum")?;
    vm.guest("sent")?;
    exchange.finish(&sum)?;
    vm.expect_exit(0)
}

/// A bridge of the host, and hosts of this namespace on ports of it; all gone when dropped.
struct Bridge;

impl Bridge {
    /// `None`: this kernel's bridges do not filter VLANs.
    fn new() -> anyhow::Result<Option<Self>> {
        if ip("link add br0 type bridge vlan_filtering 1 mcast_snooping 0").is_err() {
            return Ok(None);
        }
        ip("link set br0 up")?;
        Ok(Some(Self))
    }

    /// An interface `name` with an address, on a port in this VLAN alone.
    fn host(&self, name: &str, vlan: u16, address: &str) -> anyhow::Result<()> {
        ip(&format!("link add {name} type veth peer name p{name}"))?;
        ip(&format!("link set p{name} master br0 up"))?;
        for arguments in
            [format!("vlan del dev p{name} vid 1"), format!("vlan add dev p{name} vid {vlan} pvid untagged")]
        {
            tool::output(tool::command("bridge").args(arguments.split_whitespace()))?;
        }
        ip(&format!("addr add {address}/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for name in ["v42", "v43", "br0"] {
            let _ = ip(&format!("link del {name}"));
        }
    }
}

/// A guest in VLAN 42 by one NIC and in 43 by another's tags: a file through each way, and no way from one to the other,
/// whatever tags the guest puts on its frames.
fn vlans_of_a_bridge_are_kept_apart(context: &Context) -> anyhow::Result<()> {
    let Some(bridge) = Bridge::new()? else { return Err(skip("bridges of this kernel do not filter VLANs")) };
    bridge.host("v42", 42, "10.78.42.1")?;
    bridge.host("v43", 43, "10.78.43.1")?;
    let exchange = Exchange::new(&context.file("file"), SIZE)?;
    let (down, up) = (exchange.down, exchange.up);
    let script = format!(
        "
for m in $(cat /mod/more); do case $m in *kvm*|*tun*) ;; *) insmod /mod/$m 2>/dev/null;; esac; done
ip link set eth0 up; ip addr add 10.78.42.2/24 dev eth0
ip link set eth1 up; ip link add link eth1 name t43 type vlan id 43; ip link set t43 up
nc 10.78.42.1 {down} > /tmp/f </dev/null
say sum $(sha256sum < /tmp/f | cut -d' ' -f1)
# From 42 into 43: untagged, and with its tag. The trunk is no way into 42 either.
ip addr add 10.78.43.3/24 dev eth0
ping -c 3 -W 1 -I eth0 10.78.43.1 >/dev/null && say crossed || say kept apart
ip addr del 10.78.43.3/24 dev eth0
ip link add link eth0 name e43 type vlan id 43; ip link set e43 up; ip addr add 10.78.43.4/24 dev e43
ping -c 3 -W 1 -I e43 10.78.43.1 >/dev/null && say crossed || say tag refused
ip link del e43
ip link add link eth1 name t42 type vlan id 42; ip link set t42 up; ip addr add 10.78.42.5/32 dev t42
ping -c 3 -W 1 -I t42 10.78.42.1 >/dev/null && say crossed || say trunk is one VLAN
ip link del t42
say tried; read go
ip addr add 10.78.43.2/24 dev t43
nc 10.78.43.1 {up} < /tmp/f >/dev/null
say sent
"
    );
    let machine = context.machine(&script)?.arg("--net").arg(&format!("bridge=br0,vlan=42,mac={FIRST}"));
    let mut vm = machine.arg("--net").arg(&format!("bridge=br0,trunk=43,mac={SECOND}")).start()?;
    let sum = vm.guest_value("sum")?;
    vm.guest("kept apart")?;
    vm.guest("tag refused")?;
    vm.guest("trunk is one VLAN")?;
    vm.guest("tried")?;
    // Hosts answer for all their addresses on all their interfaces, so it is the bridge that is asked: no frame of the
    // first NIC was taken in any other VLAN, none of the second in the first's.
    let learned = tool::text(tool::command("bridge").args(["fdb", "show", "br", "br0"]))?;
    for (mac, vlan) in [(FIRST, "vlan 42 "), (SECOND, "vlan 43 ")] {
        let mut entries = learned.lines().filter(|line| line.starts_with(mac)).peekable();
        ensure!(entries.peek().is_some(), "the bridge has not heard {mac}:\n{learned}");
        ensure!(entries.all(|line| line.contains(vlan)), "{mac} is heard outside {vlan}:\n{learned}");
    }
    vm.type_in("go\n")?;
    vm.guest("sent")?;
    exchange.finish(&sum)?;
    vm.expect_exit(0)?;
    drop(vm);
    let left = ip("-br link show type tun")?;
    ensure!(!left.contains("strata"), "taps are left: {left}");
    Ok(())
}

/// The guest sees its link go and come; what it and we send meanwhile is in a capture that other programs read.
fn a_cable_is_pulled_and_frames_are_captured(context: &Context) -> anyhow::Result<()> {
    let script = format!(
        "
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
c() {{ cat /sys/class/net/eth0/carrier; }}
say ready; read go
ping -c 5 {HOST} >/dev/null && say answered
while [ $(c) = 1 ]; do usleep 20000; done; say down
while [ $(c) = 0 ]; do usleep 20000; done; say up
ping -c 1 -w 10 {HOST} >/dev/null && say again
"
    );
    let tap = "caught0";
    let mut vm = context.machine(&script)?.net(tap, "").start()?;
    vm.guest("ready")?;
    ip(&format!("addr add {HOST}/24 dev {tap}"))?;
    let file = context.file("frames.pcapng");
    let path = file.to_str().unwrap_or_default();
    let mut capture = context.start("strata", &["net", "capture", "vm", "net0", "-w", path, "-c", "8"])?;
    strata_tests::process::until("the capture begins", || {
        Ok(std::fs::metadata(&file).is_ok_and(|file| file.len() > 0))
    })?;
    vm.type_in("go\n")?;
    vm.guest("answered")?;
    capture.expect_exit(0)?;
    for (state, told) in [("down", "down"), ("up", "up")] {
        context.run("strata", &["net", "link", "vm", "net0", state])?.expect_exit(0)?;
        vm.guest(told)?;
    }
    vm.guest("again")?;
    let mut read = context.start("strata", &["net", "stats", "vm", "net0"])?;
    read.expect_exit(0)?;
    read.output.wait("caught0, ")?;
    vm.expect_exit(0)?;
    let text = tool::text(tool::command("tshark").args(["-n", "-r", path]))?;
    let has = |from: &str, to: &str| text.lines().any(|line| line.contains(from) && line.contains(to));
    ensure!(text.lines().count() == 8, "not eight frames:\n{text}");
    ensure!(has(&format!("{GUEST} → {HOST} "), "Echo (ping) request"), "no request:\n{text}");
    ensure!(has(&format!("{HOST} → {GUEST} "), "Echo (ping) reply"), "no answer:\n{text}");
    ensure!(ip(&format!("link show {tap}")).is_err(), "the tap is left");
    Ok(())
}
