//! Disk and NIC are killed, restarted and stopped for good, over and over, while the guest uses both and checks all it
//! reads. The NIC is a port of a bridge that its unit makes, in a VLAN.

use anyhow::{Context as _, ensure};
use strata_rig::debian::Release;
use strata_tests::net::ip_in;
use strata_tests::node::Node;
use strata_tests::process::until;
use strata_tests::stream::Stream;
use strata_tests::{Context, image};

use super::guest;
use super::plugged::of_interface;

/// How often each of the two is killed, and how often each is restarted.
const TIMES: u32 = 20;
/// How often both are stopped and left to their watchdogs.
const STOPS: u32 = 2;
/// Bytes that must come back through the network after each time, before the next.
const STRIDE: u64 = 64 << 10;
/// Bytes of the disk that the guest's two workers use.
const USED: u64 = 128 << 10;
/// The NIC's port, and the unit that makes it.
const INTERFACE: &str = "vm-web-net0";
const CABLE: &str = "strata-attach@web-net0.service";
const UNITS: [&str; 2] = ["vhost-blk@web-disk0.service", "vhost-net@web-net0.service"];

/// Two workers write random blocks, read them back past the cache and compare; a stream from the host goes through the
/// guest and back. The power button ends the workers, and then the guest.
const GUEST: &str = "
work() {
  n=0
  while [ ! -e /tmp/stop ]; do
    n=$((n+1))
    head -c 65536 /dev/urandom > /tmp/w$1
    dd if=/tmp/w$1 of=/dev/vda bs=4k seek=$(($1*16)) oflag=direct conv=notrunc 2>/tmp/e$1 || say ERROR $(cat /tmp/e$1)
    dd if=/dev/vda of=/tmp/r$1 bs=4k skip=$(($1*16)) count=16 iflag=direct 2>/tmp/e$1 || say ERROR $(cat /tmp/e$1)
    cmp -s /tmp/w$1 /tmp/r$1 && say round $n of worker $1 || say DIFFERENT $1 $n
  done
}
ip link set eth0 up; ip addr add 10.77.0.2/24 dev eth0
(nc 10.77.0.1 DOWN </dev/null | nc 10.77.0.1 UP >/dev/null) &
work 0 & A=$!
work 1 & B=$!
button
say ready; echo READY=1 > /dev/hvc1
pressed; touch /tmp/stop
wait $A $B
say sum $(dd if=/dev/vda bs=4k count=32 iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1)
say errors $(dmesg | grep -ci 'i/o error')
";

pub(super) fn disk_and_nic_die_under_load(context: &Context) -> anyhow::Result<()> {
    Node::with_package(context, Release::Host)?.explain(|node| die(context, node))
}

/// The main processes of disk and NIC, asked for at once: here each command takes its time.
fn main_pids(node: &Node) -> anyhow::Result<[u32; 2]> {
    let text = node.run(&["systemctl", "show", "-P", "MainPID", UNITS[0], UNITS[1]])?;
    let mut pids = text.split_whitespace().map(str::parse);
    let mut next = || -> anyhow::Result<u32> { Ok(pids.next().context("a MainPID is missing")??) };
    Ok([next()?, next()?])
}

/// Somebody removes the port. Its unit makes another, for which the NIC's process is started again, and the guest goes on.
fn port_is_made_anew(node: &Node, stream: &Stream) -> anyhow::Result<()> {
    let vmm = node.main_pid("strata-vm@web")?;
    ip_in(&node.network(), &format!("link del {INTERFACE}"))?;
    node.run(&["systemctl", "restart", CABLE])?;
    let bytes = stream.returned()?;
    until("frames through the new port", || Ok(stream.returned()? > bytes + STRIDE))?;
    ensure!(node.main_pid("strata-vm@web")? == vmm, "a new port ended the machine");
    Ok(())
}

fn die(context: &Context, node: &Node) -> anyhow::Result<()> {
    guest::bridge(node)?;
    let stream = Stream::open(&node.network())?;
    let script = GUEST.replace("DOWN", &stream.down.to_string()).replace("UP", &stream.up.to_string());
    guest::install(context, node, &script, guest::PORT)?;
    node.run(&["systemctl", "start", "strata-vm@web"])?;
    let console = guest::Console::of(node);
    until("the guest's first rounds", || Ok(console.count("guest: round")? > 4))?;

    let mut before = main_pids(node)?;
    let port = of_interface(node, INTERFACE);
    for time in 0..2 * TIMES + STOPS {
        if time >= 2 * TIMES {
            node.run(&["systemctl", "kill", "-s", "STOP", UNITS[0], UNITS[1]])?;
            until("their watchdogs to have both replaced", || {
                let now = main_pids(node)?;
                Ok(now.iter().zip(before).all(|(now, before)| *now != 0 && *now != before))
            })?;
        } else if time % 2 == 0 {
            node.run(&["systemctl", "kill", "-s", "KILL", UNITS[0], UNITS[1]])?;
        } else {
            node.run(&["systemctl", "restart", UNITS[0], UNITS[1]])?;
        }
        let (rounds, bytes) = (console.count("guest: round")?, stream.returned()?);
        // The round that runs now may have been done before; the one after it has not.
        until("both to serve again", || {
            Ok(console.count("guest: round")? > rounds + 2 && stream.returned()? > bytes + STRIDE)
        })?;
        let after = main_pids(node)?;
        ensure!(
            before[0] != after[0] && before[1] != after[1],
            "a process is the same: {before:?}, {after:?}"
        );
        before = after;
    }
    let now = of_interface(node, INTERFACE);
    ensure!(now == port, "the port is another, or lost its carrier: {port:?}, {now:?}");
    port_is_made_anew(node, &stream)?;
    let bytes = stream.finish()?;
    node.run(&["systemctl", "stop", "strata-vm@web"])?;
    let said = console.text()?;
    let rounds = said.matches("guest: round").count();
    ensure!(!said.contains("DIFFERENT") && !said.contains("ERROR"), "{said}");
    ensure!(said.contains("guest: errors 0"), "the guest's kernel saw errors:\n{said}");
    let sum = image::sha256(&node.path(guest::IMAGE), USED)?;
    ensure!(said.contains(&format!("guest: sum {sum}")), "the image holds {sum}:\n{said}");
    ensure!(node.property("strata-vm@web", "Result")? == "success");
    until("the NIC's port to go with its machine", || {
        Ok(!node.path("/sys/class/net").join(INTERFACE).exists() && !node.is_active(CABLE)?)
    })?;
    println!(
        "     {TIMES} kills, {TIMES} restarts and {STOPS} stops of each: {rounds} rounds of 64 KiB equal, {bytes} bytes through the \
         network and back"
    );
    Ok(())
}
