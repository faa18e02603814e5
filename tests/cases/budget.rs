//! What a boot costs in exits. The budget is a promise: a change that breaks it fails here.

use anyhow::ensure;
use strata_tests::exits::{Count, Exits};
use strata_tests::net::Tap;
use strata_tests::{Case, Context};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![Case::kvm("budget::boot_with_disk_and_nic", boot_with_disk_and_nic)]
}

const EXITS: u64 = 2800;
const NESTED_PAGE_FAULTS: u64 = 700;

/// One vCPU, 512 MiB, a 64 MiB disk, a NIC; from the start to the first line of init, and on until all drivers are
/// bound. Host interrupts are left out: they measure time.
fn boot_with_disk_and_nic(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 64)?;
    let tap = Tap::new("tap0", false)?;
    let script = "say disk $(cat /sys/block/vda/size) nic $(cat /sys/class/net/eth0/mtu); read go";
    let machine = context.machine(script)?.disk(&disk, "").net(tap.name(), "");
    let count = Count::start()?;
    let mut vm = machine.start()?;
    vm.guest("init")?;
    let to_init = count.so_far()?;
    vm.guest("disk 131072 nic 1500")?;
    let to_drivers = count.so_far()?;
    println!("   to init: {}", to_init.line());
    println!("   to disk and NIC in use: {}", to_drivers.line());
    vm.type_in("go\n")?;
    vm.expect_exit(0)?;
    within("to init", &to_init)?;
    within("to disk and NIC in use", &to_drivers)
}

fn within(what: &str, exits: &Exits) -> anyhow::Result<()> {
    let (total, faults) = (exits.total(), exits.nested_page_faults());
    ensure!(total > 100, "only {total} exits {what}: the counter does not count");
    ensure!(total <= EXITS, "{what}: {total} exits, the budget is {EXITS}; {}", exits.line());
    ensure!(
        faults <= NESTED_PAGE_FAULTS,
        "{what}: {faults} nested page faults, the budget is {NESTED_PAGE_FAULTS}; {}",
        exits.line()
    );
    Ok(())
}
