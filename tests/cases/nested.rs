//! Strata inside Strata: a guest loads KVM and runs a guest of its own on the same programs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use strata_rig::{Kvm, tool};
use strata_tests::case::{Context, skip};
use strata_tests::exits::Count;
use strata_tests::{Case, guest, libraries, load};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![Case::kvm("nested::a_guest_of_a_guest", a_guest_of_a_guest)]
}

/// The inner guest reads its disk when it is told to, as the loads of the exit budget do.
const INNER: &str = "say inner disk $(cat /sys/block/vda/size); guest-load disk /dev/vda 1 400";

/// Runs as process 1 of the outer guest, on the disk that holds everything.
const OUTER: &str = "#!/bin/busybox sh
ln -s /proc/self/fd /dev/fd; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
truncate -s 4M /tmp/inner.img
say() { echo \"guest: $*\"; }
say kvm $(ls /dev/kvm)
# Exits of the inner guest as this layer's KVM counts them, without interrupts (0x60).
mount -t tracefs trace /sys/kernel/tracing
E=/sys/kernel/tracing/events/kvm/kvm_exit
echo 'hist:keys=exit_reason:size=2048' > $E/trigger
exits() { awk '/exit_reason:/ && $3 != 96 { sub(/.*hitcount: */, \"\"); sum += $0 } END { print sum + 0 }' $E/hist; }
/strata/strata run --name inner --kernel /strata/vmlinuz --initrd /strata/initrd --memory 256M \\
  --cmdline 'console=hvc0 quiet loglevel=4 panic=-1' --disk path=/tmp/inner.img | while read -r line; do
  echo \"$line\"
  case $line in *'guest: ready'*|*'guest: did'*) say middle $(exits);; esac
done
say status over
sync; poweroff -f
";

fn a_guest_of_a_guest(context: &Context) -> anyhow::Result<()> {
    if !nested_is_on() {
        return Err(skip(format!("nested virtualization is off on this host ({})", Kvm::probe())));
    }
    let disk = disk_with_strata(context)?;
    let script = "
for m in $(cat /mod/more); do insmod /mod/$m 2>/dev/null; done
mkdir -p /new; mount -t ext4 /dev/vda /new
for d in proc sys dev; do mount --move /$d /new/$d; done
exec switch_root /new /outer.sh
";
    let mut vm = context.machine(script)?.memory("1G").disk(&disk, "").start()?;
    ensure!(vm.guest_value("kvm")? == "/dev/kvm", "the guest has no KVM of its own");
    vm.guest("init")?;
    vm.guest("inner disk 8192")?;
    vm.guest("ready")?;
    let number = |text: String| text.parse::<f64>().with_context(|| format!("{text} is no number"));
    let middle = number(vm.guest_value("middle")?)?;
    let count = Count::start()?;
    let before = count.so_far()?;
    vm.type_in("\n")?;
    let done = vm.guest_value("did")?;
    let exits = count.so_far()?.since(&before);
    let requests = number(done.split_whitespace().next().unwrap_or_default().to_owned())?;
    let middle = (number(vm.guest_value("middle")?)? - middle) / requests;
    let lower = exits.total() as f64 / requests;
    println!(
        "   a read of the inner guest, depth 1: {middle:.1} exits to the middle layer, {lower:.1} to this one"
    );
    println!("   to this one: {}", exits.line());
    ensure!(requests >= 400.0 && middle >= 0.5 && lower >= middle, "these counts cannot be: {}", vm.tails());
    vm.guest("status over")?;
    vm.expect_exit(0)
}

fn nested_is_on() -> bool {
    ["kvm_amd", "kvm_intel"].iter().any(|module| {
        let text = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
        matches!(text.trim(), "1" | "Y")
    })
}

/// An ext4 image with busybox, the programs with their libraries, the kernel and an initramfs.
fn disk_with_strata(context: &Context) -> anyhow::Result<PathBuf> {
    let root = context.file("root");
    for dir in ["bin", "proc", "sys", "dev", "run", "tmp", "etc", "strata"] {
        fs::create_dir_all(root.join(dir))?;
    }
    let busybox = tool::find("busybox").context("no busybox")?;
    fs::copy(&busybox, root.join("bin/busybox"))?;
    for name in tool::text(tool::command("busybox").arg("--list"))?.lines().filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    fs::write(root.join("outer.sh"), OUTER)?;
    fs::set_permissions(root.join("outer.sh"), fs::Permissions::from_mode(0o755))?;
    let mut needed = BTreeSet::new();
    for name in ["strata", "vmm", "vhost-blk"] {
        let program = context.programs.path(name);
        needed.extend(libraries::needed(&program)?);
        let copy = root.join("strata").join(name);
        // Without symbols: what is read through two levels of disks should be small.
        fs::write(&copy, libraries::stripped(&program)?)?;
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    }
    for library in needed {
        let copy = root.join(library.strip_prefix("/").unwrap_or(&library));
        fs::create_dir_all(copy.parent().context("a library without a folder")?)?;
        fs::copy(&library, copy)?;
    }
    fs::copy(context.place.guest_vmlinuz(), root.join("strata/vmlinuz"))?;
    let load = load::files(&context.programs)?;
    let load: Vec<_> = load.iter().map(|(name, mode, bytes)| (name.as_str(), *mode, bytes.clone())).collect();
    guest::initrd(&context.place, &root.join("strata/initrd"), INNER, &load)?;
    let image = context.file("outer.img");
    let mut mke2fs = tool::command("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&image).arg("96M");
    tool::output(&mut mke2fs)?;
    Ok(image)
}
