//! Kernels out of Debian's packages: unpacked into the cache, never installed.
//!
//! Two are needed. The rig runs on the big one (it has `kvm_amd`), and guests that poll before they halt; all others run
//! on the unmodified cloud kernel, as a bzImage and as the ELF file inside it.
//!
//! Called by: `setup`. Names differ by release (12: `linux-image-6.1.0-56-cloud-amd64`; 13:
//! `linux-image-6.12.41+deb13-cloud-amd64`), and a mirror may have a kernel only as `-unsigned`, which is the same
//! kernel: so the guest's comes from what `linux-image-cloud-amd64` depends on, and the rig's is the newest 6.12.

use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::place::Place;
use crate::progress::step;
use crate::{modules, stamp, tool, vmlinux};

const META: &str = "linux-image-cloud-amd64";
/// Where the rig is known to work; exits are compared across runs, so it does not wander with the distribution.
const RIG_SERIES: &str = "6.12.";

/// The big kernel for the rig, in `place.rig_kernel()`.
///
/// # Errors
/// If apt knows no such kernel or the download fails.
pub fn for_rig(place: &Place) -> anyhow::Result<()> {
    let tree = place.rig_kernel();
    if stamp::read(&tree).is_some() {
        return Ok(());
    }
    let name = downloadable(rig_names(&all_names()?)).context("apt offers no linux-image-6.x-amd64")?;
    step(&format!("kernel for the rig: {name}"), || {
        unpack(&name, &tree, &place.cache())?;
        stamp::write(&tree, &name)
    })
}

/// The cloud kernel for guests, in `place.guest_kernel()`, with `vmlinuz` and `vmlinux` beside its modules.
///
/// # Errors
/// If apt knows no such kernel, the download fails or the ELF image cannot be taken out of it.
pub fn for_guests(place: &Place) -> anyhow::Result<()> {
    let tree = place.guest_kernel();
    if stamp::read(&tree).is_some() {
        return Ok(());
    }
    let depends = tool::text(tool::command("apt-cache").args(["depends", "--important", META]))?;
    let name = versioned(&depends).with_context(|| format!("{META} depends on no versioned kernel"))?;
    let name = downloadable(vec![name.clone(), format!("{name}-unsigned")])
        .with_context(|| format!("{name} is not in apt's sources, with or without signature"))?;
    step(&format!("kernel for guests: {name}"), || {
        unpack(&name, &tree, &place.cache())?;
        let packed = boot_image(&tree)?;
        fs::copy(&packed, place.guest_vmlinuz())?;
        fs::write(place.guest_vmlinux(), vmlinux::extract(&fs::read(&packed)?)?)?;
        stamp::write(&tree, &name)
    })
}

/// The `boot/vmlinuz-*` of an unpacked kernel package.
///
/// # Errors
/// If there is none.
pub fn boot_image(tree: &Path) -> anyhow::Result<std::path::PathBuf> {
    let image = tree.join("boot").join(format!("vmlinuz-{}", modules::release(tree)?));
    if !image.is_file() {
        bail!("the kernel package holds no {}", image.display());
    }
    Ok(image)
}

fn all_names() -> anyhow::Result<Vec<String>> {
    let names = tool::text(tool::command("apt-cache").args(["pkgnames", "linux-image-"]))?;
    Ok(names.lines().map(str::to_owned).collect())
}

/// Big kernels, the preferred series first, newest first.
fn rig_names(all: &[String]) -> Vec<String> {
    let version = |name: &str| {
        let version = name.strip_prefix("linux-image-")?;
        let version = version.strip_suffix("-unsigned").unwrap_or(version).strip_suffix("-amd64")?;
        let plain = version.starts_with(|c: char| c.is_ascii_digit())
            && !version.contains("-cloud")
            && !version.contains("-rt");
        plain.then(|| version.to_owned())
    };
    let mut names: Vec<_> = all.iter().filter_map(|name| Some((version(name)?, name.clone()))).collect();
    names.sort_by_key(|(version, name)| {
        (version.starts_with(RIG_SERIES), numbers(version), !name.ends_with("-unsigned"))
    });
    names.into_iter().rev().map(|(_, name)| name).collect()
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok()).collect()
}

fn versioned(depends: &str) -> Option<String> {
    depends.lines().find_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned)
}

/// The first of `names` that apt can really fetch (it also knows names that are only mentioned).
fn downloadable(names: Vec<String>) -> Option<String> {
    names.into_iter().find(|name| {
        tool::text(tool::command("apt-cache").args(["policy", name])).is_ok_and(|policy| {
            policy.lines().any(|line| line.contains("Candidate:") && !line.contains("(none)"))
        })
    })
}

fn unpack(name: &str, tree: &Path, cache: &Path) -> anyhow::Result<()> {
    stamp::forget(tree);
    let download = cache.join("download");
    for dir in [tree, &download] {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        fs::create_dir_all(dir)?;
    }
    tool::output(tool::command("apt-get").args(["download", "-qq", name]).current_dir(&download))?;
    let package = fs::read_dir(&download)?.next().context("apt-get downloaded nothing")??.path();
    tool::output(tool::command("dpkg-deb").arg("-x").arg(&package).arg(tree))?;
    fs::remove_dir_all(&download)?;
    // Debian 13 unpacks into usr/lib/modules with no lib beside it.
    if !tree.join("lib").exists() && tree.join("usr/lib/modules").exists() {
        std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
    }
    let release = modules::release(tree)?;
    tool::output(tool::command("depmod").arg("-b").arg(tree).arg(release)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rig_takes_the_newest_of_its_series_on_12_and_13() {
        let names = |list: &[&str]| rig_names(&list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        let bookworm = names(&[
            "linux-image-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.12.95+deb12-amd64",
            "linux-image-6.12.117+deb12-amd64-unsigned",
            "linux-image-6.12.117+deb12-cloud-amd64",
            "linux-image-6.12.117+deb12-rt-amd64",
            "linux-image-6.16.3+deb13-amd64",
        ]);
        assert_eq!(bookworm[0], "linux-image-6.12.117+deb12-amd64-unsigned");
        assert_eq!(bookworm[1], "linux-image-6.12.95+deb12-amd64");
        assert_eq!(bookworm[2], "linux-image-6.16.3+deb13-amd64");
        assert_eq!(bookworm.len(), 4);
    }

    #[test]
    fn the_guest_takes_what_the_metapackage_names() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.12.41+deb13-cloud-amd64\n";
        assert_eq!(versioned(depends).as_deref(), Some("linux-image-6.12.41+deb13-cloud-amd64"));
    }
}
