//! What vhost-blk adds to serving a disk: it grows and is limited under its guest, and it may be killed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use strata_tests::control::Control;
use strata_tests::process::{self, Process};
use strata_tests::{Case, Context, fio, qemu};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm(
            "blk::a_disk_grows_and_is_limited_under_its_guest",
            a_disk_grows_and_is_limited_under_its_guest,
        ),
        Case::kvm(
            "blk::killed_again_and_again_under_verified_load",
            killed_again_and_again_under_verified_load,
        ),
        Case::host("blk::qemu_guests_see_a_disk_grow", qemu_guests_see_a_disk_grow),
        Case::host("blk::fio_verifies_under_qemu", fio_verifies_under_qemu),
    ]
}

const MIB: u64 = 1 << 20;

/// Prints the size of `/dev/vda`, waits until it has changed and prints it again.
const WATCH_SIZE: &str = "
old=$(blockdev --getsize64 /dev/vda); say old $old
while [ $(blockdev --getsize64 /dev/vda) = $old ]; do usleep 50000; done
say new $(blockdev --getsize64 /dev/vda)
echo at the end | dd of=/dev/vda bs=512 seek=$(($(blockdev --getsz /dev/vda) - 1)) conv=sync oflag=direct 2>/dev/null && say written
";

/// The number at a place; 0 if there is none.
fn at(value: &Value, pointer: &str) -> u64 {
    value.pointer(pointer).and_then(Value::as_u64).unwrap_or_default()
}

fn strata(context: &Context, args: &[&str]) -> anyhow::Result<String> {
    let mut command = context.start("strata", args)?;
    command.expect_exit(0)?;
    Ok(command.output.so_far())
}

fn a_disk_grows_and_is_limited_under_its_guest(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 16)?;
    let script = format!(
        "{WATCH_SIZE}\nread go\ndd if=/dev/vda of=/dev/null bs=4k count=64 iflag=direct; say read; read end"
    );
    let mut vm = context.machine(&script)?.disk(&disk, ",cache=writeback,iops=100000").start()?;
    ensure!(vm.guest_value("old")? == (16 * MIB).to_string());
    let mut smaller = context.start("strata", &["disk", "resize", "vm", "disk0", "8M"])?;
    smaller.expect_exit(1)?;
    ensure!(smaller.errors.so_far().contains("a disk in use only grows"), "{}", smaller.tails());
    strata(context, &["disk", "resize", "vm", "disk0", "32M"])?;
    ensure!(vm.guest_value("new")? == (32 * MIB).to_string());
    vm.guest("written")?;
    let tail = std::fs::read(&disk)?.split_off((32 * MIB - 512) as usize);
    ensure!(tail.starts_with(b"at the end"), "the last sector is not in the image");

    let limits = strata(context, &["disk", "limit", "vm", "disk0", "--output", "json"])?;
    ensure!(at(&serde_json::from_str(&limits)?, "/iops") == 100_000, "{limits}");
    let limits = strata(context, &["disk", "limit", "vm", "disk0", "--iops", "50", "--iops-burst", "1"])?;
    ensure!(limits.starts_with("requests: 50 per second, bursts of 1\n"), "{limits}");
    vm.type_in("go\n")?;
    vm.guest("read")?;
    let stats = strata(context, &["disk", "stats", "vm", "disk0", "--output", "json"])?;
    let stats: Value = serde_json::from_str(&stats)?;
    let count = |name: &str| at(&stats, &format!("/0/queues/0/{name}"));
    ensure!(count("reads") >= 64 && count("writes") >= 1 && count("throttled") > 0, "{stats:#}");
    ensure!(at(&stats, "/0/status/bytes") == 32 * MIB, "{stats:#}");
    let metrics = strata(context, &["disk", "stats", "--output", "prometheus"])?;
    let series = "strata_disk_requests_total{machine=\"vm\",id=\"disk0\",disk=";
    ensure!(metrics.contains(series), "{metrics}");
    let mut unknown = context.start("strata", &["disk", "resize", "vm", "disk7", "8M"])?;
    unknown.expect_exit(1)?;
    ensure!(unknown.errors.so_far().contains("vm has no disk disk7; it has disk0"), "{}", unknown.tails());
    vm.type_in("end\n")?;
    vm.expect_exit(0)
}

fn serve(context: &Context, name: &str, disk: &std::path::Path, more: &[&str]) -> anyhow::Result<Process> {
    let socket = context.file(&format!("{name}.sock"));
    // What a killed one has left.
    let _ = std::fs::remove_file(&socket);
    let mut command: Command = context.command("vhost-blk");
    command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(disk).args(more);
    let mut server = process::start("vhost-blk", &mut command)?;
    process::until("the backend's socket", || {
        if let Some(status) = server.ended()? {
            anyhow::bail!("vhost-blk ended with {status}\n{}", server.tails());
        }
        Ok(socket.exists())
    })?;
    Ok(server)
}

/// The guest's fio never sees an error or a stale block, whenever the backend is shot. The backend is started by hand: a
/// launcher would give up on one that dies so often.
fn killed_again_and_again_under_verified_load(context: &Context) -> anyhow::Result<()> {
    let (root, disk) = (fio::disk(context)?, context.disk("disk.img", 16)?);
    let script = "
n=0
while ! read -t 1 stop; do
  verified v$n /dev/vdb --rw=randwrite --bs=4k --iodepth=16 --size=8m --number_ios=1024 --randseed=$n || say failed $n
  n=$((n+1)); say round $n
done
dmesg | grep -i 'i/o error' && say errors
say rounds $n";
    let mut backend = serve(context, "blk", &disk, &[])?;
    let machine = context.machine("")?.initrd(&fio::initrd(context, script)?).disk(&root, ",readonly");
    let socket = context.file("blk.sock");
    let mut vm = machine.arg("--disk").arg(&format!("socket={}", socket.display())).start()?;
    vm.guest("round 1")?;
    let mut random = 1_u64;
    for _ in 0..process::kills(30) {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Any moment will do; what matters is that they differ.
        std::thread::sleep(Duration::from_millis(random >> 56));
        let server = *process::descendants(backend.pid()).last().context("no process that serves")?;
        process::kill(server)?;
        backend.wait()?;
        backend = serve(context, "blk", &disk, &[])?;
    }
    let rounds = vm.output.so_far().matches("guest: round").count();
    process::until("a round after the last kill", || {
        Ok(vm.output.so_far().matches("guest: round").count() > rounds + 1)
    })?;
    vm.type_in("stop\n")?;
    vm.guest("rounds")?;
    let said = vm.output.so_far();
    ensure!(!said.contains("guest: failed") && !said.contains("guest: errors"), "{said}");
    vm.expect_exit(0)
}

fn qemu_guests_see_a_disk_grow(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 16)?;
    let control = Control::listen(&context.file("control"))?;
    let server = serve(context, "blk", &disk, &["--control-fd", &control.fd()])?;
    let mut guest = qemu::Guest::new(context, WATCH_SIZE)?.blk(&context.file("blk.sock"), 1).start()?;
    ensure!(guest.output.value("guest: old")? == (16 * MIB).to_string());
    control.call("io.strata.Disk.Resize", json!({ "bytes": 32 * MIB }))?;
    ensure!(guest.output.value("guest: new")? == (32 * MIB).to_string());
    guest.output.wait("guest: written")?;
    guest.expect_exit(0)?;
    ends_well(server)
}

fn ends_well(mut server: Process) -> anyhow::Result<()> {
    server.signal(nix::sys::signal::Signal::SIGTERM)?;
    server.expect_exit(0)
}

/// A root file system and a disk under verified load, both ours, under QEMU. Reads and writes of mixed sizes, then
/// discards between them.
fn fio_verifies_under_qemu(context: &Context) -> anyhow::Result<()> {
    let (root, disk) = (fio::disk(context)?, context.disk("disk.img", 64)?);
    let script = "
say fio $(chroot /mnt /usr/bin/fio --version)
verified writes /dev/vdb --rw=randwrite --bsrange=512-64k --blockalign=512 --iodepth=32 --size=16m && say verified writes
verified mixed /dev/vdb --rw=randrw --bs=4k --iodepth=32 --size=8m --numjobs=2 --offset_increment=8m && say verified mixed
blkdiscard -o 16777216 -l 16777216 /dev/vdb && [ $(dd if=/dev/vdb bs=1M skip=16 count=16 2>/dev/null | tr -d '\\000' | wc -c) = 0 ] && say zero
verified again /dev/vdb --rw=write --bs=16k --iodepth=8 --offset=16m --size=16m && say verified again
";
    let first = serve(context, "root", &root, &["--read-only"])?;
    let second = serve(context, "blk", &disk, &["--num-queues", "2"])?;
    let guest = qemu::Guest::with_initrd(context, &fio::initrd(context, script)?);
    let mut guest = guest.blk(&context.file("root.sock"), 1).blk(&context.file("blk.sock"), 2).start()?;
    let version = guest.output.value("guest: fio")?;
    ensure!(version.starts_with("fio-"), "{version}");
    for job in ["verified writes", "verified mixed", "zero", "verified again"] {
        guest.output.wait(&format!("guest: {job}"))?;
    }
    guest.expect_exit(0)?;
    ends_well(first)?;
    ends_well(second)
}
