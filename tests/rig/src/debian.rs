//! Small real Debians: one on a disk image for the demo's guest (systemd, udev, a login prompt, a network), and folders,
//! the nodes that the tests of systemd boot.
//!
//! Owns: `debian.ext4` and `node-RELEASE` in the cache. Called by: `xtask demo` and `xtask test`. Made with mmdebstrap
//! from this host's own mirror; the image is written without mounting anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::place::Place;
use crate::progress::{say, step};
use crate::{packages, stamp, tool};

const PACKAGES: &str = "systemd-sysv,udev,iproute2,iputils-ping,login,passwd,kmod";
/// machined and networkd, the bus they talk over, and what the package depends on.
const NODE_PACKAGES: &str = "systemd-sysv,systemd-container,dbus,libgcc-s1";
/// Sparse: what is not used is not there.
const SIZE: &str = "1G";

/// What makes a plain Debian this guest: who it is, its address, a root without a password on its console.
const CUSTOMIZE: &str = include_str!("debian.sh");
/// What makes a plain Debian the node: only what is under test is enabled.
const NODE_CUSTOMIZE: &str = include_str!("node.sh");

/// A Debian that a node can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// This host's own.
    Host,
    /// Debian 13, with systemd 257; on a Debian 13 the same as the host's.
    Trixie,
}

impl Release {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Host, Self::Trixie];

    fn codename(self) -> String {
        match self {
            Self::Host => packages::codename(),
            Self::Trixie => "trixie".to_owned(),
        }
    }

    /// The node's root file system: a folder.
    pub fn root(self, place: &Place) -> PathBuf {
        place.cache().join(format!("node-{}", self.codename()))
    }
}

/// The image, made if it is not there yet.
///
/// # Errors
/// If mmdebstrap fails or root is not to be had.
pub fn image(place: &Place) -> anyhow::Result<PathBuf> {
    let image = place.cache().join("debian.ext4");
    let codename = packages::codename();
    let (mirror, options) = packages::source_of(&codename)?;
    let source = format!("deb {options}{mirror} {codename} main");
    let of = format!("{source}\n{PACKAGES} {SIZE}\n{CUSTOMIZE}");
    if stamp::fresh(&image, &of) {
        return Ok(image);
    }
    stamp::forget(&image);
    let tree = place.cache().join("debian-root");
    remove(&tree)?;
    step(&format!("a Debian ({codename}) root file system with mmdebstrap"), || {
        bootstrap((&codename, &source), &tree, PACKAGES, CUSTOMIZE)
    })?;
    step("its disk image", || {
        let _ = fs::remove_file(&image);
        let mut mke2fs = as_root("mke2fs");
        mke2fs.args(["-q", "-t", "ext4", "-L", "debian", "-d"]).arg(&tree).arg(&image).arg(SIZE);
        as_root_output(&mut mke2fs)?;
        remove(&tree)?;
        stamp::write(&image, &of)
    })?;
    Ok(image)
}

/// A node's root file system, made if it is not there yet.
///
/// # Errors
/// If mmdebstrap fails or root is not to be had.
pub fn node(place: &Place, release: Release) -> anyhow::Result<PathBuf> {
    let tree = release.root(place);
    let codename = release.codename();
    // A mirror has all releases.
    let (mirror, options) = packages::source_of(&packages::codename())?;
    let source = format!("deb {options}{mirror} {codename} main");
    let of = format!("{source}\n{NODE_PACKAGES}\n{NODE_CUSTOMIZE}");
    if stamp::fresh(&tree, &of) {
        return Ok(tree);
    }
    stamp::forget(&tree);
    remove(&tree)?;
    step(&format!("a Debian ({codename}) for a node under systemd, with mmdebstrap"), || {
        bootstrap((&codename, &source), &tree, NODE_PACKAGES, NODE_CUSTOMIZE)?;
        stamp::write(&tree, &of)
    })?;
    Ok(tree)
}

fn bootstrap(
    (codename, source): (&str, &str),
    tree: &Path,
    packages: &str,
    customize: &str,
) -> anyhow::Result<()> {
    let hook = tree.with_extension("customize.sh");
    fs::write(&hook, customize).with_context(|| format!("cannot write {}", hook.display()))?;
    let mut mmdebstrap = as_root("mmdebstrap");
    mmdebstrap.args(["--quiet", "--mode=root", "--variant=minbase", "--aptopt=Acquire::Languages \"none\""]);
    mmdebstrap
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]);
    mmdebstrap.arg(format!("--include={packages}"));
    mmdebstrap.arg(format!("--customize-hook=sh {} \"$1\"", hook.display()));
    mmdebstrap.arg(codename).arg(tree).arg(source);
    as_root_output(&mut mmdebstrap)
}

/// Removes a root file system. What an interrupted mmdebstrap has left mounted in it is not followed, and is an error.
fn remove(tree: &Path) -> anyhow::Result<()> {
    as_root_output(as_root("rm").args(["-rf", "--one-file-system"]).arg(tree))
}

fn as_root(program: &str) -> Command {
    if packages::is_root() {
        return tool::command(
            tool::find(program).unwrap_or_else(|| program.into()).to_string_lossy().as_ref(),
        );
    }
    say(&format!("not root: using sudo for {program}"));
    let mut command = tool::command("sudo");
    command.args(["-n", program]);
    command
}

fn as_root_output(command: &mut Command) -> anyhow::Result<()> {
    tool::output(command).map(drop)
}
