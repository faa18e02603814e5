//! Guests boot: both kernel formats, one vCPU and four, little memory and much.

use anyhow::ensure;
use strata_tests::{Case, Context};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("boot::bzimage_1_cpu", |c| boots(c, Format::BzImage, 1, "512M")),
        Case::kvm("boot::bzimage_4_cpus", |c| boots(c, Format::BzImage, 4, "512M")),
        Case::kvm("boot::vmlinux_1_cpu", |c| boots(c, Format::Vmlinux, 1, "512M")),
        Case::kvm("boot::vmlinux_4_cpus", |c| boots(c, Format::Vmlinux, 4, "512M")),
        Case::kvm("boot::memory_256m", |c| boots(c, Format::BzImage, 1, "256M")),
        Case::kvm("boot::memory_6g", six_gib),
    ]
}

#[derive(Clone, Copy)]
enum Format {
    BzImage,
    Vmlinux,
}

const SCRIPT: &str = "
say cpus $(nproc)
say memory $(awk '/MemTotal/ { print $2 }' /proc/meminfo)
";

fn boots(context: &Context, format: Format, cpus: u32, memory: &str) -> anyhow::Result<()> {
    let kernel = match format {
        Format::BzImage => context.place.guest_vmlinuz(),
        Format::Vmlinux => context.place.guest_vmlinux(),
    };
    let mut vm = context.machine(SCRIPT)?.kernel(&kernel).cpus(cpus).memory(memory).start()?;
    let seen: u32 = vm.guest_value("cpus")?.parse()?;
    ensure!(seen == cpus, "the guest sees {seen} CPUs of {cpus}");
    let kib: u64 = vm.guest_value("memory")?.parse()?;
    let mib: u64 = memory.trim_end_matches('M').parse()?;
    // The kernel keeps its own image, page tables and struct pages out of MemTotal.
    ensure!(kib / 1024 <= mib && kib / 1024 + 70 >= mib, "the guest sees {} MiB of {mib}", kib / 1024);
    vm.expect_exit(0)
}

/// 6 GiB reach round the PCI hole: half of them lie above 4 GiB. Linux takes memory from there first (ZONE_NORMAL), so
/// a file in a tmpfs lands there; it must read back equal, and the zone must have paid for it.
fn six_gib(context: &Context) -> anyhow::Result<()> {
    let script = format!(
        "{SCRIPT}
normal() {{ awk '/zone/ {{ z = $4 }} /nr_free_pages/ && z == \"Normal\" {{ print $2 }}' /proc/zoneinfo; }}
mount -t tmpfs -o size=90% t /mnt
BEFORE=$(normal)
A=$(head -c 48000000 /dev/urandom | tee /mnt/f | md5sum)
AFTER=$(normal)
B=$(md5sum < /mnt/f)
[ \"$A\" = \"$B\" ] && say same
say taken $(( (BEFORE - AFTER) / 256 ))
"
    );
    let mut vm = context.machine(&script)?.memory("6G").cpus(2).start()?;
    let mib = vm.guest_value("memory")?.parse::<u64>()? / 1024;
    ensure!((5800..=6144).contains(&mib), "the guest sees {mib} MiB of 6144");
    vm.guest("same")?;
    let taken: i64 = vm.guest_value("taken")?.parse()?;
    ensure!(taken >= 40, "only {taken} MiB came from above 4 GiB");
    vm.expect_exit(0)
}
