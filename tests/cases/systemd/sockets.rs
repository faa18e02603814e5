//! What needs no guest: machine files that become units, sockets that start backends, a backend that is killed.

use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, ensure};
use strata_rig::debian::Release;
use strata_tests::Context;
use strata_tests::locked::Report;
use strata_tests::node::Node;
use strata_tests::process::until;

use super::{guest, plugged};

const DISK: &str = "vhost-blk@web-disk0";
const NIC: &str = "vhost-net@web-net0.service";
/// As `/proc/PID/fdinfo` shows it (open(2), x86-64).
const O_DIRECT: i64 = 0o40000;

pub(super) fn units_without_a_guest(context: &Context) -> anyhow::Result<()> {
    Node::with_package(context, Release::Host)?.explain(|node| units(context, node, |_| Ok(())))
}

pub(super) fn units_without_a_guest_on_257(context: &Context) -> anyhow::Result<()> {
    Node::with_package(context, Release::Trixie)?
        .explain(|node| units(context, node, images_are_opened_for_it))
}

/// `running` looks at disk and NIC while they run.
fn units(
    context: &Context,
    node: &Node,
    running: impl FnOnce(&Node) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    guest::install(context, node, "say never", guest::TAP)?;
    node.run(&["id", "strata-vm"])?;
    guest::tap(node)?;
    wrong_files_say_so(node)?;

    // Without a machine nobody needs these: a runtime drop-in keeps them for a look.
    for unit in ["vhost-blk@.socket", "vhost-blk@.service", "vhost-net@.socket", "vhost-net@.service"] {
        let folder = node.path("/run/systemd/system").join(format!("{unit}.d"));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("99-look.conf"), "[Unit]\nStopWhenUnneeded=no\n")?;
    }
    node.run(&["systemctl", "daemon-reload"])?;
    for (unit, device) in [(DISK, "disk0"), ("vhost-net@web-net0", "net0")] {
        let (socket, service) = (format!("{unit}.socket"), format!("{unit}.service"));
        node.run(&["systemctl", "start", &socket])?;
        ensure!(!node.is_active(&service)?, "{service} runs before anybody connects");
        let path = node.path(&format!("/run/strata/web/{device}.sock"));
        let client =
            UnixStream::connect(&path).with_context(|| format!("cannot connect to {}", path.display()))?;
        until(&format!("{service} to be started by its socket"), || node.is_active(&service))?;
        drop(client);
        is_locked(node, &service)?;
    }
    exposed(node)?;
    running(node)?;
    let status = node.property(&format!("{DISK}.service"), "StatusText")?;
    ensure!(status.contains("web.img"), "the disk's status is {status:?}");

    let before = node.main_pid(&format!("{DISK}.service"))?;
    node.run(&["systemctl", "kill", "-s", "KILL", &format!("{DISK}.service")])?;
    replaced(node, &format!("{DISK}.service"), before)?;
    tap_is_kept(node)?;
    stopped_ones_are_replaced(node)?;
    plugged::nics_are_plugged_in(node)?;
    node.run(&["systemctl", "stop", &format!("{DISK}.socket"), &format!("{DISK}.service")])?;
    let result = node.property(&format!("{DISK}.service"), "Result")?;
    ensure!(result == "success", "stopping the disk was no success: {result}");
    node.run(&["dpkg", "--purge", "strata"]).map(drop)
}

/// A tap whose process was killed or restarted has not lost its carrier; one that was made anew is taken anew.
fn tap_is_kept(node: &Node) -> anyhow::Result<()> {
    let tap = node.path("/sys/class/net/tap-web");
    let of_tap = |name: &str| -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(tap.join(name)).unwrap_or_default().trim().to_owned())
    };
    let stored = || node.property(NIC, "NFileDescriptorStore");
    until("the tap's descriptor to be stored", || Ok(stored()? == "1"))?;
    let changes = of_tap("carrier_changes")?;
    let mut before = node.main_pid(NIC)?;
    for words in [&["systemctl", "kill", "-s", "KILL", NIC][..], &["systemctl", "restart", NIC]] {
        node.run(words)?;
        before = replaced(node, NIC, before)?;
        let now = of_tap("carrier_changes")?;
        ensure!(now == changes, "the tap's carrier changed: {changes}, {now}");
    }
    ensure!(stored()? == "1", "stored: {}", stored()?);
    let index = of_tap("ifindex")?;
    node.run(&["networkctl", "delete", "tap-web"])?;
    node.run(&["systemctl", "restart", "systemd-networkd"])?;
    until("networkd to make the tap again", || {
        Ok(!matches!(of_tap("ifindex")?, now if now.is_empty() || now == index))
    })?;
    node.run(&["systemctl", "restart", NIC])?;
    replaced(node, NIC, before)?;
    let said = node.journal(&["-u", NIC, "-n", "20"])?;
    ensure!(said.contains("the tap kept is of no use any more"), "the deleted tap was not missed: {said}");
    until("the new tap's descriptor alone to be stored", || Ok(stored()? == "1"))
}

/// Processes that are stopped and never go on are ended by their watchdogs, and others started.
fn stopped_ones_are_replaced(node: &Node) -> anyhow::Result<()> {
    for unit in [&format!("{DISK}.service"), NIC] {
        let before = node.main_pid(unit)?;
        node.run(&["systemctl", "kill", "-s", "STOP", unit])?;
        replaced(node, unit, before)?;
        let said = node.journal(&["-u", unit, "-n", "20"])?;
        ensure!(said.contains("atchdog timeout"), "{unit} was not ended by its watchdog: {said}");
    }
    Ok(())
}

/// Waits until a unit has another main process than `before`, and is up; that process.
pub(super) fn replaced(node: &Node, unit: &str, before: u32) -> anyhow::Result<u32> {
    until(&format!("{unit} to be another process"), || {
        Ok(!matches!(node.main_pid(unit)?, now if now == 0 || now == before) && node.is_active(unit)?)
    })?;
    node.main_pid(unit)
}

/// A machine file with a mistake: no machine, and its unit says why.
fn wrong_files_say_so(node: &Node) -> anyhow::Result<()> {
    node.machine("wrong", "kernel = '/k'\ncpus = 'many'\n")?;
    let description = node.property("strata-vm@wrong", "Description")?;
    ensure!(description.contains("cpus"), "a wrong machine's description is {description:?}");
    ensure!(
        !node.try_run(&["systemctl", "start", "strata-vm@wrong"])?.status.success(),
        "a wrong machine started"
    );
    let said = node.try_run(&["strata", "unit", "wrong"])?;
    ensure!(String::from_utf8_lossy(&said.stderr).contains("cpus"), "strata unit: {said:?}");
    Ok(())
}

/// The disk serves an image that its account may not open, and of no image it sees a path.
fn images_are_opened_for_it(node: &Node) -> anyhow::Result<()> {
    let image = std::fs::metadata(node.path(guest::IMAGE))?;
    ensure!((image.uid(), image.mode() & 0o777) == (0, 0o600), "the image is not root's alone: {image:?}");
    let pid = node.pid_outside(node.main_pid(&format!("{DISK}.service"))?)?;
    let seen = std::path::Path::new(&format!("/proc/{pid}/root")).join(guest::IMAGE.trim_start_matches('/'));
    ensure!(!seen.exists(), "the disk's process sees {}", seen.display());
    let mut direct = Vec::new();
    for fd in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
        let fd = fd?.path();
        if std::fs::metadata(&fd).is_ok_and(|file| (file.dev(), file.ino()) == (image.dev(), image.ino())) {
            let info = std::fs::read_to_string(fd.to_string_lossy().replace("/fd/", "/fdinfo/"))?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).context("no flags")?;
            direct.push(i64::from_str_radix(flags.trim(), 8)? & O_DIRECT != 0);
        }
    }
    direct.sort_unstable();
    let status = node.property(&format!("{DISK}.service"), "StatusText")?;
    let expected: &[bool] = if status.contains("direct I/O") { &[false, true] } else { &[false] };
    ensure!(
        direct == expected,
        "{status}: descriptors of the image, and whether they are direct: {direct:?}"
    );
    Ok(())
}

/// What this systemd thinks of the services as they are here, with what their machine adds; in tenths, as docs/systemd.md
/// allows.
fn exposed(node: &Node) -> anyhow::Result<()> {
    for (unit, tenths) in [(DISK, "5"), ("strata-vm@web", "8"), ("vhost-net@web-net0", "15")] {
        let unit = format!("{unit}.service");
        let said = node.run(&["systemd-analyze", "security", "--no-pager", "--threshold", tenths, &unit])?;
        let score = said.lines().find(|line| line.contains("Overall exposure"));
        println!("     {}", score.with_context(|| format!("no score of {unit}: {said}"))?);
    }
    Ok(())
}

/// The process behind a service has a filter, no rights and no way to get any.
pub(super) fn is_locked(node: &Node, service: &str) -> anyhow::Result<()> {
    let inside = node.main_pid(service)?;
    let pid = node.pid_outside(inside)?;
    let report = Report::of(pid)?;
    let locked = report.seccomp == 2 && report.no_new_privs && report.no_capabilities && report.uid != 0;
    ensure!(locked, "{service} is not locked: {report:?}");
    Ok(())
}
