//! A machine's life as an operator sees it: installed, enabled, listed, upgraded under, rebooted, stopped, purged.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, ensure};
use strata_rig::debian::Release;
use strata_tests::Context;
use strata_tests::node::Node;
use strata_tests::process::until;

use super::guest;

const VM: &str = "strata-vm@web.service";
const DISK: &str = "vhost-blk@web-disk0.service";
const NIC: &str = "vhost-net@web-net0.service";
/// machined's socket, of systemd 257 and newer.
const VARLINK: &str = "/run/systemd/machine/io.systemd.Machine";

/// A guest that heeds its power button, and shows that its disk works.
const GUEST: &str = "
n=0
alive() { while :; do n=$((n+1)); dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/tmp/e && say alive $n, $(cat /sys/block/vda/size) sectors || say ERROR $(cat /tmp/e); usleep 300000; done; }
alive &
say uuid $(cat /sys/class/dmi/id/product_uuid)
grep -q 'io.systemd.credential:test.text=hello there' /sys/firmware/dmi/tables/DMI && say text credential
grep -q 'io.systemd.credential.binary:test.secret=AGJpbmFyeQ==' /sys/firmware/dmi/tables/DMI && say file credential
button
say ready
echo STATUS=almost there > /dev/hvc1
until [ \"$(dd if=/dev/vda bs=512 skip=100 count=1 iflag=direct 2>/dev/null | head -c 2)\" = go ]; do usleep 200000; done
echo READY=1 > /dev/hvc1
pressed
";

pub(super) fn a_machines_life(context: &Context) -> anyhow::Result<()> {
    Node::with_package(context, Release::Host)?.explain(|node| {
        let console = begins(context, node)?;
        upgraded(context, node, &console)?;
        rebooted(node, &console)?;
        node.run(&["systemctl", "start", VM])?;
        ended(node, &console)?;

        node.run(&["dpkg", "--purge", "strata"])?;
        let left = node.run(&[
            "sh",
            "-c",
            "ls -d /run/strata /etc/systemd/system/strata* /usr/libexec/strata || :",
        ])?;
        ensure!(left.is_empty(), "left behind by the package: {left}");
        Ok(())
    })
}

/// What a newer systemd could do another way, and how machined hears of a machine.
pub(super) fn a_machines_life_on_257(context: &Context) -> anyhow::Result<()> {
    Node::with_package(context, Release::Trixie)?.explain(|node| {
        // machined ends when it has nothing to do, and has something to do while somebody is connected.
        node.run(&["systemctl", "start", "systemd-machined"])?;
        let kept = UnixStream::connect(node.path(VARLINK)).context("machined serves no Varlink")?;
        let console = begins(context, node)?;
        is_entered(node, "Varlink")?;
        rebooted(node, &console)?;

        // One that does not run has left its socket behind, and is started by who asks over D-Bus: nobody else here does
        // before the machine is entered.
        drop(kept);
        node.run(&["systemctl", "stop", "systemd-machined"])?;
        ensure!(node.path(VARLINK).exists(), "machined takes its socket with it; nothing left to test here");
        node.run(&["systemctl", "start", VM])?;
        is_entered(node, "D-Bus")?;
        is_listed(node)?;
        ended(node, &console)
    })
}

/// How machined heard of the machine the last time.
fn is_entered(node: &Node, by: &str) -> anyhow::Result<()> {
    until(&format!("machined to have heard of the machine over {by}"), || {
        let said = node.journal(&["-u", "strata-register@web"])?;
        let last = said.lines().rfind(|line| line.contains("machinectl knows"));
        Ok(last.is_some_and(|line| line.contains(&format!("({by})"))))
    })
}

/// Installed, started, listed, its disk made larger, reloaded.
fn begins(context: &Context, node: &Node) -> anyhow::Result<guest::Console> {
    guest::bridged_tap(node)?;
    guest::install(context, node, GUEST, guest::TAP)?;
    let console = guest::Console::of(node);
    let complaints = node.run(&["systemd-analyze", "verify", "--man=no", VM, "strata.target"])?;
    ensure!(complaints.is_empty(), "systemd does not understand the installed units: {complaints}");
    started(node, &console)?;
    listed(node)?;
    node.run(&["strata", "disk", "resize", "web", "disk0", "32M"])?;
    until("the guest to see its larger disk", || Ok(console.count("65536 sectors")? > 0))?;
    reloaded(node)?;
    Ok(console)
}

/// Started by one command, and not before the guest says so.
fn started(node: &Node, console: &guest::Console) -> anyhow::Result<()> {
    node.run(&["systemctl", "enable", "--now", "--no-block", "strata-vm@web"])?;
    until("the guest's own words in the machine's status", || {
        ensure!(node.property(VM, "ActiveState")? != "failed", "the machine does not start");
        Ok(node.property(VM, "StatusText")?.contains("almost there"))
    })?;
    let state = node.property(VM, "ActiveState")?;
    ensure!(state == "activating", "the guest is not up, and the machine is {state}");
    // The guest waits for this.
    OpenOptions::new().write(true).open(node.path(guest::IMAGE))?.write_all_at(b"go", 100 * 512)?;
    until("the machine to be up when its guest says so", || node.is_active(VM))?;
    ensure!(node.property(VM, "StatusText")? == "the guest is up");
    for unit in [DISK, NIC] {
        ensure!(node.is_active(unit)?, "{unit} is not active");
    }
    let said = console.text()?;
    for line in [&format!("uuid {}", guest::UUID), "text credential", "file credential"] {
        ensure!(said.contains(&format!("guest: {line}")), "the guest did not find its {line}:\n{said}");
    }
    Ok(())
}

/// Everybody who lists machines lists this one.
fn listed(node: &Node) -> anyhow::Result<()> {
    let ps = node.run(&["strata", "ps"])?;
    ensure!(ps.lines().any(|line| line.starts_with("web") && line.contains("running")), "strata ps: {ps}");
    let slice = node.property(VM, "Slice")?;
    for unit in [VM, DISK, NIC] {
        ensure!(node.property(unit, "Slice")? == slice, "{unit} is not in {slice}");
    }
    let cgroup = cgroup(node, &slice)?;
    for (file, value) in [("memory.max", "1073741824"), ("cpu.weight", "50")] {
        let text = fs::read_to_string(cgroup.join(file)).with_context(|| format!("no {file} of {slice}"))?;
        ensure!(text.trim() == value, "{file} of {slice} is {text:?}");
    }
    is_listed(node)?;
    let status = node.run(&["machinectl", "status", "web"])?;
    ensure!(status.contains("Unit: strata-vm@web.service"), "machinectl status: {status}");
    let id = node.run(&["machinectl", "show", "web", "-p", "Id", "--value"])?;
    ensure!(id.trim() == guest::UUID.replace('-', ""), "machinectl show: {id}");
    let journal = node.journal(&["STRATA_MACHINE=web", "STRATA_DEVICE=disk0"])?;
    ensure!(journal.contains("web.img"), "the journal has nothing of web's disk: {journal}");
    Ok(())
}

/// The folder of a unit's cgroup.
fn cgroup(node: &Node, unit: &str) -> anyhow::Result<std::path::PathBuf> {
    let path = node.property(unit, "ControlGroup")?;
    Ok(node.path("/sys/fs/cgroup").join(path.trim_start_matches('/')))
}

/// machined hears of it once it is up.
fn is_listed(node: &Node) -> anyhow::Result<()> {
    until("machinectl to list the machine", || {
        let machines = node.run(&["machinectl", "list", "--no-legend"])?;
        Ok(machines.split_whitespace().take(3).eq(["web", "vm", "strata"]))
    })
}

/// The machine file is edited: limits and resources are in force at once, the rest is named, and a wrong file changes
/// nothing.
fn reloaded(node: &Node) -> anyhow::Result<()> {
    let path = node.path("/etc/strata/machines/web.toml");
    let before = [node.main_pid(VM)?, node.main_pid(DISK)?, node.main_pid(NIC)?];
    let mut text = fs::read_to_string(&path)?;
    fs::write(&path, text.replace("cpu_weight = 50", "cpu_weight = 'much'"))?;
    let refused = node.try_run(&["systemctl", "reload", VM])?;
    ensure!(!refused.status.success() && node.is_active(VM)?, "a wrong file: {refused:?}");
    for (key, edited) in [
        ("cpu_weight = 50", "cpu_weight = 70"),
        ("stop_timeout = 100", "stop_timeout = 101"),
        ("serial =", "iops = 5000\nserial ="),
        ("mac =", "tx_rate = '1G'\nmac ="),
    ] {
        ensure!(text.contains(key), "the machine file has no {key}");
        text = text.replace(key, edited);
    }
    fs::write(&path, text)?;
    node.run(&["systemctl", "reload", VM])?;
    let disk = node.run(&["strata", "disk", "limit", "web", "disk0"])?;
    ensure!(disk.contains("requests: 5000 per second"), "the disk's limits: {disk}");
    let nic = node.run(&["strata", "net", "limit", "web", "net0"])?;
    ensure!(nic.contains("from the guest: 1G bit/s"), "the NIC's limits: {nic}");
    let slice = node.property(VM, "Slice")?;
    let weight = fs::read_to_string(cgroup(node, &slice)?.join("cpu.weight"))?;
    ensure!(weight.trim() == "70", "cpu.weight of {slice} is {weight:?}");
    let said = node.journal(&["-u", VM, "-n", "20"])?;
    for line in ["cpu_weight", "strata-vm@web`: stop_timeout", "disk0: requests: 5000"] {
        ensure!(said.contains(line), "the reload did not say {line:?}: {said}");
    }
    let after = [node.main_pid(VM)?, node.main_pid(DISK)?, node.main_pid(NIC)?];
    ensure!(before == after && node.is_active(VM)?, "the reload was a restart: {before:?}, {after:?}");
    Ok(())
}

/// The package is upgraded to a later version under the running machine: its disk and NIC are new processes of the new
/// program, its vmm is the old one.
fn upgraded(context: &Context, node: &Node, console: &guest::Console) -> anyhow::Result<()> {
    let version = || node.run(&["dpkg-query", "-W", "-f=${Version}", "strata"]);
    let old = version()?;
    let before = [node.main_pid(VM)?, node.main_pid(DISK)?, node.main_pid(NIC)?];
    node.install(&context.place.later_package())?;
    let new = version()?;
    node.run(&["dpkg", "--compare-versions", &old, "lt", &new])?;
    let told = fs::read_to_string(node.path("/var/log/dpkg.log")).unwrap_or_default();
    ensure!(
        told.contains(&format!(" upgrade strata:amd64 {old} {new}")),
        "{old} to {new} was no upgrade: {told}"
    );
    let (seen, errors) = (console.count("guest: alive")?, console.count("guest: ERROR")?);
    until("the guest to go on after the upgrade", || Ok(console.count("guest: alive")? > seen + 1))?;
    ensure!(
        console.count("guest: ERROR")? == errors && errors == 0,
        "the guest was harmed: {}",
        console.text()?
    );
    let after = [node.main_pid(VM)?, node.main_pid(DISK)?, node.main_pid(NIC)?];
    ensure!(before[0] == after[0], "the upgrade ended the vmm");
    ensure!(before[1] != after[1] && before[2] != after[2], "the upgrade left an old backend: {before:?}");
    ensure!(after.iter().all(|pid| *pid != 0), "a process is missing after the upgrade: {after:?}");
    for (unit, is_new) in [(VM, false), (DISK, true), (NIC, true)] {
        let pid = node.pid_outside(node.main_pid(unit)?)?;
        let program = fs::read_link(format!("/proc/{pid}/exe"))?;
        let replaced = program.to_string_lossy().ends_with(" (deleted)");
        ensure!(replaced != is_new, "{unit} runs {}", program.display());
    }
    Ok(())
}

/// machinectl asks the guest to power off, and it is another guest of the same machine that comes up; then for good.
fn rebooted(node: &Node, console: &guest::Console) -> anyhow::Result<()> {
    let vmm = node.main_pid(VM)?;
    let (inits, buttons) = (console.count("guest: init")?, console.count("guest: button")?);
    node.run(&["machinectl", "reboot", "web"])?;
    until("the guest to boot again", || Ok(console.count("guest: init")? > inits))?;
    ensure!(console.count("guest: button")? == buttons + 1, "the guest was not asked");
    until("the guest to be up again", || Ok(console.count("guest: ready")? > inits))?;
    ensure!(node.main_pid(VM)? == vmm && node.is_active(VM)?, "the reboot ended the vmm");
    node.run(&["machinectl", "poweroff", "web"])?;
    until("the machine to end", || Ok(node.property(VM, "ActiveState")? == "inactive"))?;
    ensure!(node.property(VM, "Result")? == "success", "machinectl poweroff was no success");
    ensure!(node.run(&["machinectl", "list", "--no-legend"])?.is_empty(), "machined still lists it");
    Ok(())
}

/// Stopped by systemctl: the guest is asked, ends by itself, and its devices go with it.
fn ended(node: &Node, console: &guest::Console) -> anyhow::Result<()> {
    let buttons = console.count("guest: button")?;
    node.run(&["systemctl", "stop", VM])?;
    ensure!(console.count("guest: button")? == buttons + 1, "the guest's power button was not pressed");
    let result = node.property(VM, "Result")?;
    ensure!(result == "success", "the machine's end was no success: {result}");
    for unit in [DISK, NIC, "vhost-blk@web-disk0.socket", "vhost-net@web-net0.socket"] {
        until(&format!("{unit} to go with its machine"), || {
            Ok(node.property(unit, "ActiveState")? == "inactive")
        })?;
    }
    Ok(())
}
