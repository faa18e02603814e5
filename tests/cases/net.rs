//! NICs served by vhost-net between the kernel's own driver and a tap.

use anyhow::ensure;
use strata_tests::net::{self, GUEST, HOST, Tap};
use strata_tests::{Case, Context, image};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("net::files_both_ways", |context| files_both_ways(context, 1)),
        Case::kvm("net::files_both_ways_two_pairs", |context| files_both_ways(context, 2)),
    ]
}

const SIZE: u64 = 16 << 20;

/// A file to the guest, and the same file from the guest, over TCP through the tap: equal at both ends.
fn files_both_ways(context: &Context, pairs: u32) -> anyhow::Result<()> {
    let file = context.file("file");
    image::random(&file, SIZE)?;
    let content = std::fs::read(&file)?;
    let tap = Tap::new("tap0", pairs > 1)?;
    let (down, sender) = net::send_once(content.clone())?;
    let (up, receiver) = net::receive_once(content.len())?;
    let script = format!(
        "
say address $(cat /sys/class/net/eth0/address)
say queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
nc {HOST} {down} > /tmp/f </dev/null
say sum $(sha256sum < /tmp/f | cut -d' ' -f1)
nc {HOST} {up} < /tmp/f >/dev/null
say sent
"
    );
    let machine = context.machine(&script)?.cpus(pairs);
    let more = format!(",mac=52:54:00:12:34:56,queues={pairs}");
    let mut vm = machine.net(tap.name(), &more).start()?;
    ensure!(vm.guest_value("address")? == "52:54:00:12:34:56", "the guest has another MAC address");
    ensure!(vm.guest_value("queues")? == pairs.to_string(), "the guest sees another number of pairs");
    ensure!(vm.guest_value("sum")? == image::sha256(&file, SIZE)?, "the guest received something else");
    vm.guest("sent")?;
    net::finish(sender)?;
    ensure!(net::finish(receiver)? == content, "we received something else than the guest has");
    vm.expect_exit(0)
}
