//! Our parts with other projects': our backends under QEMU, other backends under our vmm.

use std::path::Path;
use std::process::Command;

use anyhow::ensure;
use strata_tests::net::{Exchange, Tap};
use strata_tests::process::{self, Process};
use strata_tests::{Case, Context, image, qemu};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("foreign::qemu_storage_daemon_serves_our_vmm", qemu_storage_daemon_serves_our_vmm),
        Case::kvm("foreign::vhost_device_rng_serves_our_vmm", vhost_device_rng_serves_our_vmm),
        Case::host("foreign::vhost_blk_serves_qemu", vhost_blk_serves_qemu),
        Case::host("foreign::vhost_blk_serves_qemu_read_only", vhost_blk_serves_qemu_read_only),
        Case::host("foreign::vhost_net_serves_qemu", vhost_net_serves_qemu),
    ]
}

const MIB: u64 = 1 << 20;
const WRITE_AND_READ: &str = "
say size $(blockdev --getsize64 /dev/vda)
head -c 16777216 /dev/urandom > /tmp/f
dd if=/tmp/f of=/dev/vda bs=64k oflag=direct 2>/dev/null; sync
A=$(sha256sum < /tmp/f); B=$(dd if=/dev/vda bs=1M count=16 iflag=direct 2>/dev/null | sha256sum)
[ \"$A\" = \"$B\" ] && say sum ${A%% *}
";

fn socket_appears(path: &Path, server: &mut Process) -> anyhow::Result<()> {
    process::until(&format!("socket {}", path.display()), || {
        if let Some(status) = server.ended()? {
            anyhow::bail!("{} ended with {status}\n{}", server.name, server.tails());
        }
        Ok(path.exists())
    })
}

fn qemu_storage_daemon_serves_our_vmm(context: &Context) -> anyhow::Result<()> {
    let (disk, socket) = (context.disk("disk.img", 32)?, context.file("qsd.sock"));
    let mut daemon = Command::new("qemu-storage-daemon");
    daemon.arg("--blockdev").arg(format!("driver=file,node-name=disk,filename={}", disk.display()));
    daemon.arg("--export").arg(format!(
        "type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={},writable=on",
        socket.display()
    ));
    let mut daemon = process::start("qemu-storage-daemon", &mut daemon)?;
    socket_appears(&socket, &mut daemon)?;
    let machine = context.machine(WRITE_AND_READ)?.arg("--disk").arg(&format!("socket={}", socket.display()));
    let mut vm = machine.start()?;
    ensure!(vm.guest_value("size")? == (32 * MIB).to_string());
    let sum = vm.guest_value("sum")?;
    vm.expect_exit(0)?;
    drop(daemon);
    ensure!(image::sha256(&disk, 16 * MIB)? == sum, "the image holds something else than the guest wrote");
    Ok(())
}

/// The source is a file of one byte repeated, so the guest's random numbers show where they come from.
fn vhost_device_rng_serves_our_vmm(context: &Context) -> anyhow::Result<()> {
    let (source, socket) = (context.file("source"), context.file("rng.sock"));
    std::fs::write(&source, vec![0xa5; 1 << 20])?;
    let program = context.place.crates().join("bin/vhost-device-rng");
    ensure!(program.is_file(), "{} is missing: cargo xtask setup", program.display());
    let mut device = Command::new(program);
    device.arg("--socket-path").arg(&socket).arg("--rng-source").arg(&source);
    let mut device = process::start("vhost-device-rng", &mut device)?;
    let socket = context.file("rng.sock0");
    socket_appears(&socket, &mut device)?;
    let script = "
say source $(cat /sys/class/misc/hw_random/rng_current)
say numbers $(head -c 64 /dev/hwrng | hexdump -v -e '1/1 \"%02x\"' | tail -c 16)
";
    let machine =
        context.machine(script)?.arg("--device").arg(&format!("socket={},type=rng", socket.display()));
    let mut vm = machine.start()?;
    ensure!(vm.guest_value("source")?.starts_with("virtio_rng"), "the guest's generator is not ours");
    let numbers = vm.guest_value("numbers")?;
    ensure!(numbers == "a5".repeat(8), "not the device's bytes: {numbers}");
    vm.expect_exit(0)
}

fn serve_blk(context: &Context, disk: &Path, more: &[&str]) -> anyhow::Result<Process> {
    let socket = context.file("blk.sock");
    let mut command = context.command("vhost-blk");
    command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(disk).args(more);
    let mut server = process::start("vhost-blk", &mut command)?;
    socket_appears(&socket, &mut server)?;
    Ok(server)
}

fn ends_well(mut server: Process) -> anyhow::Result<()> {
    server.signal(nix::sys::signal::Signal::SIGTERM)?;
    server.expect_exit(0)
}

fn vhost_blk_serves_qemu(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 32)?;
    let server = serve_blk(context, &disk, &["--serial", "of-ours", "--num-queues", "2"])?;
    // Two guests, one after the other, on the same backend process.
    for _ in 0..2 {
        let script = format!("say serial $(cat /sys/block/vda/serial){WRITE_AND_READ}");
        let mut guest = qemu::Guest::new(context, &script)?.blk(&context.file("blk.sock"), 2).start()?;
        ensure!(guest.output.value("guest: serial")? == "of-ours");
        ensure!(guest.output.value("guest: size")? == (32 * MIB).to_string());
        let sum = guest.output.value("guest: sum")?;
        guest.expect_exit(0)?;
        ensure!(
            image::sha256(&disk, 16 * MIB)? == sum,
            "the image holds something else than the guest wrote"
        );
    }
    ends_well(server)
}

fn vhost_blk_serves_qemu_read_only(context: &Context) -> anyhow::Result<()> {
    let disk = context.file("disk.img");
    image::random(&disk, MIB)?;
    let server = serve_blk(context, &disk, &["--read-only"])?;
    let script = "
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say wrote || say refused
say sum $(sha256sum < /dev/vda | cut -d' ' -f1)
";
    let mut guest = qemu::Guest::new(context, script)?.blk(&context.file("blk.sock"), 1).start()?;
    guest.output.wait("guest: refused")?;
    ensure!(guest.output.value("guest: sum")? == image::sha256(&disk, MIB)?);
    guest.expect_exit(0)?;
    ends_well(server)
}

fn vhost_net_serves_qemu(context: &Context) -> anyhow::Result<()> {
    let tap = Tap::new("tap0", false)?;
    let socket = context.file("net.sock");
    let mut command = context.command("vhost-net");
    command.arg("--socket-path").arg(&socket).args(["--tap", tap.name()]);
    let mut server = process::start("vhost-net", &mut command)?;
    socket_appears(&socket, &mut server)?;
    let exchange = Exchange::new(&context.file("file"), 8 << 20)?;
    let mut guest = qemu::Guest::new(context, &exchange.script())?.net(&socket).start()?;
    let sum = guest.output.value("guest: sum")?;
    guest.expect_exit(0)?;
    exchange.finish(&sum)?;
    ends_well(server)
}
