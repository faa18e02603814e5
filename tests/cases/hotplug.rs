//! Disks and NICs that come and go while their guest runs.

use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use strata_rig::tool;
use strata_tests::net::{Exchange, GUEST, HOST, Tap};
use strata_tests::process;
use strata_tests::strata::Running;
use strata_tests::{Case, Context, image};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("hotplug::a_dead_disk_makes_room_for_a_new_one", a_dead_disk_makes_room_for_a_new_one),
        Case::kvm("hotplug::a_card_is_changed_between_two_streams", a_card_is_changed_between_two_streams),
        Case::kvm("hotplug::a_guest_that_lets_go_of_nothing", a_guest_that_lets_go_of_nothing),
        Case::kvm(
            "hotplug::a_disk_torn_from_its_driver_hangs_nobody",
            a_disk_torn_from_its_driver_hangs_nobody,
        ),
        Case::kvm("hotplug::what_is_plugged_outlives_a_reboot", what_is_plugged_outlives_a_reboot),
    ]
}

/// `strata` and its words: what it printed.
fn strata(context: &Context, words: &[&str]) -> anyhow::Result<String> {
    tool::text(context.command("strata").args(words))
}

fn key(of: &Value, name: &str) -> Value {
    of.get(name).cloned().unwrap_or_default()
}

/// The machine's devices as `strata status` has them.
fn devices(context: &Context) -> anyhow::Result<Vec<Value>> {
    let status: Value = serde_json::from_str(&strata(context, &["status", "vm", "--output", "json"])?)?;
    Ok(status.get("devices").and_then(Value::as_array).cloned().unwrap_or_default())
}

fn device(context: &Context, id: &str) -> anyhow::Result<Option<Value>> {
    Ok(devices(context)?.into_iter().find(|device| key(device, "id") == id))
}

/// Nothing of a device is left in the machine's folder, nor in what is said of the machine.
fn is_free(context: &Context, vm: &Running, id: &str) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(vm.run_dir())? {
        let name = entry?.file_name();
        ensure!(!name.to_string_lossy().starts_with(&format!("{id}.")), "{name:?} is left");
    }
    let machine = std::fs::read_to_string(vm.run_dir().join("machine.json"))?;
    ensure!(!machine.contains(&format!("\"{id}\"")), "{id} is left in {machine}");
    ensure!(device(context, id)?.is_none(), "{id} is still in the status");
    ensure!(!strata(context, &["ps"])?.contains(id), "{id} is still in `strata ps`");
    Ok(())
}

/// The process behind the reaper dies, and cannot come back: its image has gone.
fn bury(context: &Context, vm: &Running, id: &str, image: &Path) -> anyhow::Result<()> {
    std::fs::remove_file(image)?;
    process::kill(vm.pid_of(id)?)?;
    process::until("the machine to be degraded", || {
        let all: Value = serde_json::from_str(&strata(context, &["ps", "--output", "json"])?)?;
        Ok(all.pointer("/0/degraded") == Some(&Value::Bool(true)))
    })
}

/// A disk whose process has died for good, with requests waiting, is unplugged: the guest's requests fail, the guest has no
/// such disk any more, name and slot are free, and another disk takes both.
fn a_dead_disk_makes_room_for_a_new_one(context: &Context) -> anyhow::Result<()> {
    let (first, second) = (context.disk("first.img", 8)?, context.disk("second.img", 8)?);
    let new = context.disk("new.img", 16)?;
    image::random(&new, 16 << 20)?;
    let script = "
say disks $(ls /sys/block | grep -c ^vd)
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say used
read go
(dd if=/dev/zero of=/dev/vda bs=4k count=4 oflag=direct 2>/dev/null; say ended $?) &
say waits
while [ -e /sys/block/vda ]; do usleep 50000; done
wait
say gone $(ls /sys/block | grep -c ^vd)
dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && say other works
while [ ! -b /dev/vda ]; do usleep 50000; done
say size $(cat /sys/block/vda/size)
say sum $(sha256sum < /dev/vda | cut -d' ' -f1)
(head -c 1048576 /dev/urandom > /tmp/f; dd if=/tmp/f of=/dev/vda bs=64k oflag=direct 2>/dev/null; sync)
say wrote $(sha256sum < /tmp/f | cut -d' ' -f1)
say complaints $(dmesg | grep -c -E 'BUG|WARNING|hung_task|blocked for more')
";
    let machine = context.machine(script)?.disk(&first, "").disk(&second, "");
    let mut vm = machine.start()?;
    ensure!(vm.guest_value("disks")? == "2", "the guest has other disks");
    vm.guest("used")?;
    let slot = key(&device(context, "disk0")?.context("no disk0")?, "slot");
    ensure!(slot.is_u64(), "disk0 has no slot");
    bury(context, &vm, "disk0", &first)?;
    vm.type_in("go\n")?;
    vm.guest("waits")?;
    let said = strata(context, &["device", "unplug", "vm", "disk0", "--output", "json"])?;
    let report: Value = serde_json::from_str(&said)?;
    ensure!(key(&report, "forced") == false && key(&report, "slot") == slot, "unplugged otherwise: {said}");
    ensure!(vm.guest_value("ended")? == "1", "the request that waited did not fail");
    ensure!(vm.guest_value("gone")? == "1", "the guest still has the disk");
    vm.guest("other works")?;
    is_free(context, &vm, "disk0")?;
    let again = strata(context, &["device", "unplug", "vm", "disk0"]);
    let why = again.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(why.contains("there is no device disk0; those that can go: disk1"), "unplugged twice: {why}");

    let path = format!("path={}", new.display());
    let taken = strata(context, &["device", "plug", "vm", "--disk", &format!("{path},id=disk1")]);
    let why = taken.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(why.contains("another device has it"), "a name was taken twice: {why}");
    let said = strata(context, &["device", "plug", "vm", "--disk", &path, "--output", "json"])?;
    let report: Value = serde_json::from_str(&said)?;
    ensure!(
        key(&report, "device") == "disk0" && key(&report, "slot") == slot,
        "name or slot were not free: {said}"
    );
    ensure!(vm.guest_value("size")? == "32768", "the new disk has another size");
    ensure!(vm.guest_value("sum")? == image::sha256(&new, 16 << 20)?, "the guest reads something else");
    let wrote = vm.guest_value("wrote")?;
    ensure!(wrote == image::sha256(&new, 1 << 20)?, "the guest wrote something else");
    ensure!(vm.guest_value("complaints")? == "0", "the guest's kernel complains:\n{}", vm.tails());
    vm.expect_exit(0)
}

/// A card goes after a stream over it, and another comes, under the same name, for the next one.
fn a_card_is_changed_between_two_streams(context: &Context) -> anyhow::Result<()> {
    let exchange = Exchange::new(&context.file("file"), 4 << 20)?;
    let (first, second) = (exchange.down, exchange.up);
    let tap = Tap::new("tap0", false)?;
    let script = format!(
        "
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
nc {HOST} {first} > /tmp/f </dev/null
say sum $(sha256sum < /tmp/f | cut -d' ' -f1)
while [ -e /sys/class/net/eth0 ]; do usleep 50000; done
say gone
while [ ! -e /sys/class/net/eth0 ]; do usleep 50000; done
say address $(cat /sys/class/net/eth0/address)
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
nc {HOST} {second} < /tmp/f >/dev/null
say sent
"
    );
    let mut vm = context.machine(&script)?.net(tap.name(), "").start()?;
    let sum = vm.guest_value("sum")?;
    let said = strata(context, &["device", "unplug", "vm", "net0"])?;
    ensure!(said.contains("net0 of vm is unplugged"), "{said}");
    vm.guest("gone")?;
    is_free(context, &vm, "net0")?;
    let keys = format!("tap={},mac=52:54:00:12:34:99", tap.name());
    let said = strata(context, &["device", "plug", "vm", "--net", &keys])?;
    ensure!(said.starts_with("net0 is plugged into vm, in slot "), "{said}");
    ensure!(vm.guest_value("address")? == "52:54:00:12:34:99", "the new card has another address");
    vm.guest("sent")?;
    exchange.finish(&sum)?;
    vm.expect_exit(0)
}

/// A guest without ACPI hot-plug: the request comes to nothing, and says what to do; by force the device goes all the same,
/// and what the guest had asked of it fails. What is plugged in, such a guest finds when it looks.
fn a_guest_that_lets_go_of_nothing(context: &Context) -> anyhow::Result<()> {
    let (disk, new) = (context.disk("disk.img", 8)?, context.disk("new.img", 8)?);
    let script = "
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say used
read go
say still $(cat /sys/block/vda/size)
read go
dd if=/dev/vda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null &
usleep 300000
say alive
say vendor $(od -An -tx2 -N2 /sys/bus/pci/devices/0000:00:02.0/config | tr -d ' ')
read go
echo 1 > /sys/bus/pci/rescan
while [ ! -b /dev/vdb ]; do usleep 50000; done
dd if=/dev/vdb of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null && say found
read go
poweroff -f
";
    let machine = context.machine(script)?.append("acpiphp.disable=1").disk(&disk, "");
    let mut vm = machine.start()?;
    vm.guest("used")?;
    let asked = strata(context, &["device", "unplug", "vm", "disk0", "--timeout", "2"]);
    let why = asked.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(
        why.contains("the guest has not let go of disk0 within 2 s and keeps it") && why.contains("--force"),
        "{why}"
    );
    ensure!(
        key(&device(context, "disk0")?.context("disk0 has gone")?, "leaving") == false,
        "it is still leaving"
    );
    vm.type_in("go\n")?;
    ensure!(vm.guest_value("still")? == "16384", "the guest has lost what it was to keep");
    strata(context, &["pause", "vm"])?;
    let paused = strata(context, &["device", "unplug", "vm", "disk0"]);
    let why = paused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(why.contains("the machine is paused"), "{why}");
    strata(context, &["resume", "vm"])?;
    let said = strata(context, &["device", "unplug", "vm", "disk0", "--force", "--timeout", "1"])?;
    ensure!(said.contains("without its guest's consent"), "{said}");
    is_free(context, &vm, "disk0")?;
    vm.type_in("go\n")?;
    vm.guest("alive")?;
    ensure!(vm.guest_value("vendor")? == "ffff", "the function is still there");
    let path = format!("path={}", new.display());
    strata(context, &["device", "plug", "vm", "--disk", &path])?;
    vm.type_in("go\n")?;
    vm.guest("found")?;
    vm.type_in("go\n")?;
    vm.expect_exit(0)
}

/// A disk is taken away under its driver's hands, before the guest could let go of it: the driver comes to an end all the
/// same, with the kernel's hot-plugging behind it, and the next disk is used.
fn a_disk_torn_from_its_driver_hangs_nobody(context: &Context) -> anyhow::Result<()> {
    let (disk, new) = (context.disk("disk.img", 8)?, context.disk("new.img", 24)?);
    // What is plugged in while the guest still takes the old function down, it takes for that one.
    let script = "
P=$(cd -P /sys/block/vda/device && cd -P .. && pwd)
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say used
while dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct conv=notrunc 2>/dev/null; do :; done
say ended
while [ -b /dev/vda ] || [ -e \"$P\" ]; do usleep 50000; done
say gone
read go
while [ ! -b /dev/vda ]; do usleep 50000; done
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say size $(cat /sys/block/vda/size)
say complaints $(dmesg | grep -c -E 'BUG|WARNING|hung_task|blocked for more')
";
    let mut vm = context.machine(script)?.disk(&disk, "").start()?;
    vm.guest("used")?;
    strata(context, &["device", "unplug", "vm", "disk0", "--force", "--timeout", "0"])?;
    is_free(context, &vm, "disk0")?;
    vm.guest("ended")?;
    vm.guest("gone")?;
    let path = format!("path={}", new.display());
    strata(context, &["device", "plug", "vm", "--disk", &path])?;
    vm.type_in("go\n")?;
    ensure!(vm.guest_value("size")? == "49152", "the new disk has another size");
    ensure!(vm.guest_value("complaints")? == "0", "the guest's kernel complains:\n{}", vm.tails());
    vm.expect_exit(0)
}

/// A vmm that was broken into cannot ask its launcher for a disk of any file: it has no path to the launcher's socket.
fn launcher_is_out_of_reach(vm: &Running) -> anyhow::Result<()> {
    let reaper = vm.pid_of("vmm")?;
    let children = std::fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children"))?;
    let inner = children.split_whitespace().next().context("no process behind the reaper")?;
    let seen = |path: &Path| Path::new(&format!("/proc/{inner}/root{}", path.display())).exists();
    let folder = vm.run_dir().canonicalize()?;
    let launcher = folder.with_file_name(".vm.launcher");
    ensure!(launcher.exists() && seen(&folder.join("control.sock")), "there is nothing to look for");
    ensure!(!seen(&launcher), "the vmm sees {}", launcher.display());
    Ok(())
}

/// A guest that reboots finds what was plugged in where it was, and not what was unplugged, asked or not.
fn what_is_plugged_outlives_a_reboot(context: &Context) -> anyhow::Result<()> {
    let disks = [context.disk("a.img", 8)?, context.disk("b.img", 8)?, context.disk("c.img", 24)?];
    let [first, second, third] = &disks;
    let script = "
say up $(cat /sys/block/vd*/size | tr '\\n' ' ')
read go
[ \"$go\" = off ] && poweroff -f
reboot -f
";
    let mut vm = context.machine(script)?.disk(first, "").disk(second, "").start()?;
    ensure!(vm.guest_value("up")?.trim() == "16384 16384", "the guest has other disks");
    launcher_is_out_of_reach(&vm)?;
    strata(context, &["device", "unplug", "vm", "disk0"])?;
    let path = format!("path={},id=data", third.display());
    strata(context, &["device", "plug", "vm", "--disk", &path])?;
    // A backend that is replaced, or dies, is as any other's.
    strata(context, &["upgrade", "vm", "data", "--again"])?;
    process::kill(vm.pid_of("data")?)?;
    process::until("the disk's return", || {
        Ok(device(context, "data")?.is_some_and(|it| key(&it, "state") == "connected"))
    })?;
    let before: Vec<_> = devices(context)?.iter().map(|it| (key(it, "id"), key(it, "slot"))).collect();
    vm.type_in("again\n")?;
    vm.guest("up 49152 16384")?;
    let after: Vec<_> = devices(context)?.iter().map(|it| (key(it, "id"), key(it, "slot"))).collect();
    ensure!(before == after, "slots have changed: {before:?}, {after:?}");
    strata(context, &["device", "unplug", "vm", "data"])?;
    vm.type_in("again\n")?;
    vm.guest("up 16384")?;
    vm.type_in("off\n")?;
    vm.expect_exit(0)
}
