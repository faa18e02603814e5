//! What NICs are plugged into, made by units of their own: a bridge's port, a macvtap, a tap. No guest is needed to see it
//! made, kept while processes come and go, and removed.

use std::os::unix::net::UnixStream;

use anyhow::{Context as _, ensure};
use strata_tests::net::ip_in;
use strata_tests::node::Node;
use strata_tests::process::until;

use super::sockets::{is_locked, replaced};

const MACHINE: &str = "
kernel = '/k'
[[net]]
bridge = 'br-nets'
[[net]]
macvtap = 'near'
mac = '52:54:00:12:34:57'
queues = 2
[[net]]
tap = 'tap-nets'
mtu = 1400
";
/// NIC, its interface, how that is described.
const NICS: [(&str, &str, &[&str]); 3] = [
    ("net0", "vm-nets-net0", &["master br-nets", "multi_queue", "group"]),
    ("net1", "vm-nets-net1", &["macvtap mode bridge", "52:54:00:12:34:57"]),
    ("net2", "tap-nets", &["mtu 1400", "multi_queue", "group"]),
];

/// To be called while templates of NICs are kept although no machine wants them.
pub(super) fn nics_are_plugged_in(node: &Node) -> anyhow::Result<()> {
    let ip = |arguments: &str| ip_in(&node.network(), arguments);
    ip("link add near type veth peer name far")?;
    ip("link set near up")?;
    ip("link add br-nets type bridge")?;
    node.machine("nets", MACHINE)?;
    macvtap_nodes(node)?;
    node.machine("lost", "kernel = '/k'\n[[net]]\nbridge = 'near'\n")?;
    // Which takes the five seconds that a bridge may.
    node.run(&["systemctl", "start", "--no-block", "strata-vm@lost"])?;

    let mut clients = Vec::new();
    for (id, interface, words) in NICS {
        let service = service(id);
        node.run(&["systemctl", "start", &format!("vhost-net@nets-{id}.socket")])?;
        let socket = node.path(&format!("/run/strata/nets/{id}.sock"));
        clients.push(UnixStream::connect(&socket).with_context(|| format!("no {}", socket.display()))?);
        until(&format!("{service} to be started by its socket"), || node.is_active(&service))?;
        is_locked(node, &service)?;
        let seen = ip(&format!("-d link show {interface}"))?;
        for word in words.iter().chain(&[&*format!("alias strata-attach@nets-{id}")]) {
            ensure!(seen.contains(word), "{interface} has no {word:?}: {seen}");
        }
        let of_unit = node.property(&format!("strata-attach@nets-{id}"), "Description")?;
        ensure!(of_unit.contains(id) && of_unit.contains(interface), "its unit is {of_unit:?}");
    }
    drop(clients);

    // Killed and restarted: other processes, the same interfaces.
    let services = NICS.map(|(id, ..)| service(id));
    let units = services.each_ref().map(String::as_str);
    let kept = NICS.map(|(_, interface, _)| of_interface(node, interface));
    for words in [&["systemctl", "kill", "-s", "KILL"][..], &["systemctl", "restart"]] {
        let before = units.iter().map(|unit| node.main_pid(unit)).collect::<Result<Vec<_>, _>>()?;
        node.run(&[words, &units].concat())?;
        for (unit, before) in units.iter().zip(before) {
            replaced(node, unit, before)?;
        }
        let now = NICS.map(|(_, interface, _)| of_interface(node, interface));
        ensure!(now == kept, "an interface is another, or lost its carrier: {kept:?}, {now:?}");
    }

    // Another bridge, by hand.
    ip("link add br-other type bridge")?;
    node.machine("nets", &MACHINE.replace("br-nets", "br-other"))?;
    let (first, before) = (&units[0], node.main_pid(units[0])?);
    node.run(&["systemctl", "restart", "strata-attach@nets-net0"])?;
    replaced(node, first, before)?;
    let seen = ip("-d link show vm-nets-net0")?;
    ensure!(seen.contains("master br-other"), "the port has not moved: {seen}");

    // When nobody needs them any more they go, and what was there before stays.
    let sockets = NICS.map(|(id, ..)| format!("vhost-net@nets-{id}.socket"));
    node.run(&[&["systemctl", "stop"][..], &sockets.each_ref().map(String::as_str), &units].concat())?;
    for (id, interface, _) in NICS {
        until(&format!("{interface} to go"), || {
            Ok(!node.path(&format!("/sys/class/net/{interface}")).exists()
                && node.property(&format!("strata-attach@nets-{id}"), "ActiveState")? == "inactive")
        })?;
    }
    ip("link show near")?;
    ip("link show br-nets")?;
    what_is_no_bridge_is_refused(node)
}

fn service(id: &str) -> String {
    format!("vhost-net@nets-{id}.service")
}

/// What is another when an interface is another, or has lost its carrier in between.
pub(super) fn of_interface(node: &Node, name: &str) -> [String; 2] {
    let folder = node.path("/sys/class/net").join(name);
    ["ifindex", "carrier_changes"].map(|file| {
        std::fs::read_to_string(folder.join(file)).unwrap_or_else(|error| format!("{name}: {error}"))
    })
}

/// The node's /dev is a plain folder, to which the kernel adds nothing; a macvtap's node is shown in it by its name.
fn macvtap_nodes(node: &Node) -> anyhow::Result<()> {
    let units = node.run(&["strata", "unit", "nets"])?;
    let mut allowed = units.lines().filter_map(|line| line.strip_prefix("DeviceAllow=/dev/tap"));
    let number = allowed.next().and_then(|rest| rest.strip_suffix(" rw"));
    let number = number.with_context(|| format!("no macvtap is allowed: {units}"))?;
    node.run(&["mkdir", "/dev/kernel"])?;
    node.run(&["mount", "-t", "devtmpfs", "devtmpfs", "/dev/kernel"])?;
    node.run(&["ln", "-s", &format!("/dev/kernel/tap{number}"), &format!("/dev/tap{number}")]).map(drop)
}

/// The machine is not started, and its journal says why.
fn what_is_no_bridge_is_refused(node: &Node) -> anyhow::Result<()> {
    until("the NIC to be refused", || {
        Ok(node.property("strata-attach@lost-net0", "ActiveState")? == "failed"
            && node.property("strata-vm@lost", "AssertTimestampMonotonic")? != "0")
    })?;
    let asserted = node.property("strata-vm@lost", "AssertResult")?;
    ensure!(asserted == "no", "a machine without a network was started");
    let said = node.journal(&["STRATA_MACHINE=lost", "STRATA_DEVICE=net0"])?;
    ensure!(said.contains("net0: bridge = near: that interface is no bridge"), "it said {said:?}");
    Ok(())
}
