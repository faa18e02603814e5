//! Strata inside Strata: a guest loads KVM and runs a guest of its own on the same programs, and what that costs.

mod reads;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use strata_rig::{Kvm, tool};
use strata_tests::case::{Context, skip};
use strata_tests::{Case, guest, libraries};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("nested::a_guest_of_a_guest", a_guest_of_a_guest),
        Case::kvm("nested::reads_of_a_guest_of_a_guest", reads::of_a_guest_of_a_guest),
    ]
}

const INNER: &str = "say inner disk $(cat /sys/block/vda/size)";

/// Runs as process 1 of the outer guest, on the disk that holds everything.
const OUTER: &str = "#!/bin/busybox sh
ln -s /proc/self/fd /dev/fd; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp
truncate -s 4M /tmp/inner.img
say() { echo \"guest: $*\"; }
say kvm $(ls /dev/kvm)
/strata/strata run --name inner --kernel /strata/vmlinuz --initrd /strata/initrd --memory 256M \\
  --cmdline 'console=hvc0 quiet loglevel=4 panic=-1' --disk path=/tmp/inner.img
say status $?
sync; poweroff -f
";

/// Runs as process 1 of the outer guest's initramfs: KVM, then the disk with everything.
const OUTERMOST: &str = "
for m in $(cat /mod/more); do insmod /mod/$m 2>/dev/null; done
mkdir -p /new; mount -t ext4 /dev/vda /new
for d in proc sys dev; do mount --move /$d /new/$d; done
exec switch_root /new /outer.sh
";

fn a_guest_of_a_guest(context: &Context) -> anyhow::Result<()> {
    let disk = disk_with_strata(context, OUTER, INNER, &[])?;
    let mut vm = context.machine(OUTERMOST)?.memory("1G").disk(&disk, "").start()?;
    ensure!(vm.guest_value("kvm")? == "/dev/kvm", "the guest has no KVM of its own");
    vm.guest("init")?;
    vm.guest("inner disk 8192")?;
    ensure!(vm.guest_value("status")? == "0", "{}", vm.tails());
    vm.expect_exit(0)
}

fn nested_is_on() -> bool {
    ["kvm_amd", "kvm_intel"].iter().any(|module| {
        let text = fs::read_to_string(format!("/sys/module/{module}/parameters/nested")).unwrap_or_default();
        matches!(text.trim(), "1" | "Y")
    })
}

/// An ext4 image with busybox, the programs with their libraries, the kernel, `outer` as the outer guest's process 1 and
/// an initramfs that runs `inner`, with `files` in it.
fn disk_with_strata(
    context: &Context,
    outer: &str,
    inner: &str,
    files: &[(&str, u32, Vec<u8>)],
) -> anyhow::Result<PathBuf> {
    if !nested_is_on() {
        return Err(skip(format!("nested virtualization is off on this host ({})", Kvm::probe())));
    }
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
    fs::write(root.join("outer.sh"), outer)?;
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
    guest::initrd(&context.place, &root.join("strata/initrd"), inner, files)?;
    let image = context.file("outer.img");
    let mut mke2fs = tool::command("mke2fs");
    mke2fs.args(["-q", "-t", "ext4", "-O", "^has_journal", "-d"]).arg(&root).arg(&image).arg("96M");
    tool::output(&mut mke2fs)?;
    Ok(image)
}
