//! A user in group kvm, without any other right, runs a machine with a disk and a NIC.

use anyhow::ensure;
use strata_rig::tool;
use strata_tests::{Case, Context, account, process};

use crate::sandbox;

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("unprivileged::a_user_in_group_kvm", a_user_in_group_kvm),
        Case::kvm("unprivileged::a_tap_that_is_not_there", a_tap_that_is_not_there),
    ]
}

/// Root gets one made; a user is told how to come by one.
fn a_tap_that_is_not_there(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine("say nic; read go")?.name("made").net("nosuchtap", "").start()?;
    vm.guest("nic")?;
    let there = std::path::Path::new("/sys/class/net/nosuchtap");
    ensure!(there.exists(), "no tap was made\n{}", vm.tails());
    vm.type_in("go\n")?;
    vm.expect_exit(0)?;
    process::until("the end of the tap that was made", || Ok(!there.exists()))?;
    let outsider = account::outsider(context, &[account::kvm_group()?])?;
    let kernel = context.file("vmlinuz");
    std::fs::copy(context.place.guest_vmlinuz(), &kernel)?;
    let machine = context.machine("")?.kernel(&kernel).net("nosuchtap", "");
    let mut vm = machine.start_by(&outsider)?;
    vm.expect_exit(1)?;
    let said = vm.errors.so_far();
    ensure!(said.contains("nosuchtap") && said.contains("ip tuntap add"), "{said}");
    Ok(())
}

fn a_user_in_group_kvm(context: &Context) -> anyhow::Result<()> {
    let outsider = account::outsider(context, &[account::kvm_group()?])?;
    let disk = context.disk("disk.img", 8)?;
    account::give(&disk)?;
    let kernel = context.file("vmlinuz");
    std::fs::copy(context.place.guest_vmlinuz(), &kernel)?;
    let tap = "tap0";
    let user = account::USER.to_string();
    tool::output(
        tool::command("ip").args(["tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr", "user", &user]),
    )?;
    let script = "
say disk $(blockdev --getsize64 /dev/vda)
dd if=/dev/urandom of=/dev/vda bs=1M count=4 oflag=direct 2>/dev/null && say written
say nic $(cat /sys/class/net/eth0/address | wc -c)
say ready; read go
";
    let machine = context.machine(script)?.kernel(&kernel).disk(&disk, "").net(tap, "");
    let mut vm = machine.start_by(&outsider)?;
    ensure!(vm.guest_value("disk")? == (8 << 20).to_string());
    vm.guest("written")?;
    ensure!(vm.guest_value("nic")? == "18", "no NIC in the guest");
    vm.guest("ready")?;
    for id in ["vmm", "disk0", "net0"] {
        sandbox::is_locked(vm.pid_of(id)?, id)?;
    }
    vm.type_in("go\n")?;
    vm.expect_exit(0)?;
    tool::output(tool::command("ip").args(["link", "del", tap]))?;
    process::until("the tap's end", || Ok(!std::path::Path::new("/sys/class/net").join(tap).exists()))
}
