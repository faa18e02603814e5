//! fio in a guest: a root file system on a disk with nothing in it but Debian's fio and the libraries it needs.
//!
//! Called by: `blk` cases. The guest mounts it read-only from a disk that is served by the backend under test, so it
//! also shows that a file system can be read from there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use strata_rig::{modules, tool};

use crate::case::Context;
use crate::guest;

/// Sparse; fio's libraries are about 90 MB.
const SIZE: &str = "192M";
/// What the kernel needs to mount it.
const MODULES: &[&str] = &["ext4"];

/// What the guest does first: `/dev/vda` becomes a root with fio in it. `verified NAME DEVICE ARG...` then runs one job
/// that reads back and checks every block it has written.
const PREPARE: &str = "
for m in $(cat /mod/ext4); do insmod /mod/$m; done
mount -t ext4 -o ro /dev/vda /mnt && mount --bind /dev /mnt/dev && mount -t proc proc /mnt/proc && mount -t tmpfs tmp /mnt/tmp ||
  say no root
verified() {
  name=$1; device=$2; shift 2
  chroot /mnt /usr/bin/fio --name=$name --filename=$device --ioengine=libaio --direct=1 --thread \\
    --verify=crc32c --verify_fatal=1 --verify_state_save=0 --group_reporting --minimal $* > /tmp/$name 2>&1 && return 0
  tail -3 /tmp/$name; return 1
}
";

/// Makes the disk.
///
/// # Errors
/// If fio is not installed, or mke2fs fails.
pub fn disk(context: &Context) -> anyhow::Result<PathBuf> {
    let program = tool::find("fio").context("no fio: cargo xtask setup")?;
    let (tree, image) = (context.file("fio-root"), context.file("fio.ext4"));
    for folder in ["dev", "proc", "tmp"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    let listed = tool::text(tool::command("ldd").arg(&program))?;
    copy(&program, &tree)?;
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        copy(Path::new(library), &tree)?;
    }
    tool::output(tool::command("mke2fs").args(["-q", "-t", "ext4", "-d"]).arg(&tree).arg(&image).arg(SIZE))?;
    fs::remove_dir_all(&tree)?;
    Ok(image)
}

/// A file under the path it has here, without the links on the way.
fn copy(file: &Path, tree: &Path) -> anyhow::Result<()> {
    let place = tree.join(file.strip_prefix("/").context("a path that is not absolute")?);
    ensure!(file.is_file(), "{} is not there", file.display());
    fs::create_dir_all(place.parent().context("a file without a folder")?)?;
    fs::copy(file, &place).with_context(|| format!("cannot copy {}", file.display())).map(drop)
}

/// An initramfs whose guest has [`disk`] as its first disk and then runs `script`.
///
/// # Errors
/// As [`guest::initrd`].
pub fn initrd(context: &Context, script: &str) -> anyhow::Result<PathBuf> {
    let path = context.file("initrd-fio");
    let modules = modules::ordered(&context.place.guest_kernel(), MODULES)?;
    let order: String = modules.iter().map(|module| format!("{}\n", module.file)).collect();
    let names: Vec<String> = modules.iter().map(|module| format!("mod/{}", module.file)).collect();
    let mut files = vec![("mod/ext4", 0o644, order.into_bytes())];
    for (name, module) in names.iter().zip(modules) {
        files.push((name, 0o644, module.content));
    }
    guest::initrd(&context.place, &path, &format!("{PREPARE}\n{script}"), &files)?;
    Ok(path)
}
