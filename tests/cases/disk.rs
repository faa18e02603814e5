//! Disks served by vhost-blk to the kernel's own driver.

use anyhow::ensure;
use strata_tests::{Case, Context, image};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("disk::data_survives_a_reboot", data_survives_a_reboot),
        Case::kvm("disk::read_only_refuses_writes", read_only_refuses_writes),
        Case::kvm("disk::two_disks_with_several_queues", two_disks_with_several_queues),
    ]
}

const MIB: u64 = 1 << 20;

/// 64 MiB of random data, written by the guest, read back by it after a real reboot, and by us from the image.
fn data_survives_a_reboot(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 65)?;
    // The 65th MiB tells the second boot from the first.
    let script = "
sum() { dd if=/dev/vda bs=1M count=64 iflag=direct 2>/dev/null | sha256sum | cut -d' ' -f1; }
if [ \"$(dd if=/dev/vda bs=1M skip=64 count=1 2>/dev/null | head -c 7)\" != WRITTEN ]; then
  dd if=/dev/urandom of=/dev/vda bs=1M count=64 2>/dev/null
  echo WRITTEN | dd of=/dev/vda bs=1M seek=64 conv=notrunc 2>/dev/null
  sync
  say written $(sum)
  reboot -f
fi
say read $(sum)
";
    let mut vm = context.machine(script)?.disk(&disk, "").start()?;
    let written = vm.guest_value("written")?;
    ensure!(written.len() == 64, "no checksum: {written:?}");
    let backend = vm.pid_of("disk0")?;
    vm.guest("init")?;
    let read = vm.guest_value("read")?;
    ensure!(read == written, "written {written}, read back after the reboot {read}");
    ensure!(vm.pid_of("disk0")? == backend, "the backend was replaced by the reboot");
    vm.expect_exit(0)?;
    let on_the_host = image::sha256(&disk, 64 * MIB)?;
    ensure!(on_the_host == written, "the image holds {on_the_host}, the guest wrote {written}");
    Ok(())
}

fn read_only_refuses_writes(context: &Context) -> anyhow::Result<()> {
    let disk = context.file("disk.img");
    image::random(&disk, MIB)?;
    let before = image::sha256(&disk, MIB)?;
    let script = "
say readonly $(cat /sys/block/vda/ro)
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say wrote || say refused
say sum $(sha256sum < /dev/vda | cut -d' ' -f1)
";
    let mut vm = context.machine(script)?.disk(&disk, ",readonly").start()?;
    ensure!(vm.guest_value("readonly")? == "1", "the guest sees a disk it may write");
    vm.guest("refused")?;
    ensure!(vm.guest_value("sum")? == before, "the guest reads something else than the image holds");
    vm.expect_exit(0)?;
    ensure!(image::sha256(&disk, MIB)? == before, "the image changed");
    Ok(())
}

/// Two disks are told apart by their serial numbers; both queues of the second carry data.
fn two_disks_with_several_queues(context: &Context) -> anyhow::Result<()> {
    let (first, second) = (context.disk("first.img", 8)?, context.disk("second.img", 32)?);
    let script = "
say serials $(cat /sys/block/vda/serial) $(cat /sys/block/vdb/serial)
say queues $(ls /sys/block/vda/mq | wc -l) $(ls /sys/block/vdb/mq | wc -l)
head -c 16777216 /dev/urandom > /tmp/f
(taskset 1 dd if=/tmp/f of=/dev/vdb bs=64k oflag=direct 2>/dev/null) &
taskset 2 dd if=/tmp/f of=/dev/vdb bs=64k oflag=direct seek=256 2>/dev/null
wait
sync
A=$(sha256sum < /tmp/f); echo 3 > /proc/sys/vm/drop_caches
B=$(dd if=/dev/vdb bs=64k count=256 2>/dev/null | sha256sum); C=$(dd if=/dev/vdb bs=64k skip=256 2>/dev/null | sha256sum)
[ \"$A\" = \"$B\" ] && [ \"$A\" = \"$C\" ] && say same
";
    let machine = context.machine(script)?.cpus(2);
    let machine = machine.disk(&first, ",serial=first,queues=1").disk(&second, ",serial=second,queues=2");
    let mut vm = machine.start()?;
    ensure!(vm.guest_value("serials")? == "first second");
    ensure!(vm.guest_value("queues")? == "1 2");
    vm.guest("same")?;
    vm.expect_exit(0)
}
