//! Where a campaign happens: folders, programs, images, networks. All of it is gone when this is dropped.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use strata_vhost_net::host::Namespace;

const DISK: u64 = 16 << 20;
/// A disk whose file system can be filled.
const SMALL: u64 = 8 << 20;
/// That file system: a little larger than the disk, and full at once when something else is on it.
const ROOM: u64 = 12 << 20;

/// One machine's network: the host's end and the guest's, each a namespace.
pub(crate) struct Network {
    pub(crate) host: Namespace,
    pub(crate) guest: Namespace,
}

/// The campaign's place.
pub(crate) struct Place {
    dir: tempfile::TempDir,
    networks: Vec<Network>,
    programs: PathBuf,
    swapped: bool,
    qcow2: bool,
}

/// The host's and the guest's address on every network.
pub(crate) const HOST: &str = "10.78.0.1";
pub(crate) const GUEST: &str = "10.78.0.2";
pub(crate) const MAC: &str = "52:54:00:00:78:02";

impl Place {
    pub(crate) fn new(programs: Option<&Path>, machines: usize) -> anyhow::Result<Self> {
        let beside = || {
            Ok::<_, std::io::Error>(std::env::current_exe()?.parent().unwrap_or(Path::new("/")).to_owned())
        };
        let programs = programs.map_or_else(beside, |path| Ok(path.to_owned()))?;
        let dir = tempfile::Builder::new().prefix("strata-faults-").tempdir()?;
        let mut networks = Vec::new();
        for _ in 0..machines {
            networks.push(network().context("a network (needs root, ip)")?);
        }
        let qcow2 = Command::new("qemu-img").arg("--version").output().is_ok();
        if !qcow2 {
            println!("fault-campaign: no qemu-img, so no qcow2 disks");
        }
        let mut this = Self { dir, networks, programs, swapped: false, qcow2 };
        this.lay_out()?;
        Ok(this)
    }

    fn lay_out(&mut self) -> anyhow::Result<()> {
        for folder in ["run", "libexec", "tmp"] {
            fs::create_dir(self.path(folder))?;
        }
        // Two files of each backend, so that there is another version to upgrade to.
        for name in ["vhost-blk", "vhost-net"] {
            let program = self.programs.join(name);
            for copy in ["a", "b"] {
                let copy = self.path("libexec").join(format!("{name}.{copy}"));
                fs::copy(&program, copy).with_context(|| program.display().to_string())?;
            }
        }
        symlink(self.programs.join("load-vmm"), self.path("libexec/vmm"))?;
        self.swap()?;
        fs::write(self.path("vmlinuz"), "no kernel")?;
        for index in 0..self.machines() {
            let small = self.path(&format!("{}/small", self.name(index)));
            fs::create_dir_all(&small)?;
            let size = format!("size={ROOM}");
            let mounted =
                Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(&small).status()?;
            ensure!(mounted.success(), "cannot mount a tmpfs (needs root)");
            self.images(index)?;
        }
        Ok(())
    }

    /// Fresh images and ledgers for a machine.
    pub(crate) fn images(&self, index: usize) -> anyhow::Result<()> {
        let dir = self.path(&self.name(index));
        for entry in fs::read_dir(&dir)?.chain(fs::read_dir(dir.join("small"))?) {
            let path = entry?.path();
            if path.is_file() {
                fs::remove_file(path)?;
            }
        }
        fs::File::create(dir.join("plain.img"))?.set_len(DISK)?;
        fs::File::create(dir.join("small/small.img"))?.set_len(SMALL)?;
        if self.qcow2 {
            let made = Command::new("qemu-img")
                .args(["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k"])
                .arg(dir.join("layers.img"))
                .arg(DISK.to_string())
                .status()?;
            ensure!(made.success(), "qemu-img failed");
        }
        Ok(())
    }

    /// The other version of the backends is the installed one from now on.
    pub(crate) fn swap(&mut self) -> anyhow::Result<()> {
        self.swapped = !self.swapped;
        let version = if self.swapped { "a" } else { "b" };
        for name in ["vhost-blk", "vhost-net"] {
            let fresh = self.path("libexec").join(format!("{name}.new"));
            symlink(format!("{name}.{version}"), &fresh)?;
            fs::rename(fresh, self.path("libexec").join(name))?;
        }
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn machines(&self) -> usize {
        self.networks.len()
    }

    pub(crate) fn name(&self, index: usize) -> String {
        format!("m{index}")
    }

    pub(crate) fn network(&self, index: usize) -> Option<&Network> {
        self.networks.get(index)
    }

    /// The disks of a machine: id and what `--disk` says of it.
    pub(crate) fn disks(&self, index: usize) -> Vec<(&'static str, String)> {
        let dir = self.path(&self.name(index));
        let path = |name: &str| dir.join(name).display().to_string();
        let mut disks = vec![
            ("plain", format!("path={},id=plain,queues=2", path("plain.img"))),
            ("small", format!("path={},id=small,queues=1", path("small/small.img"))),
        ];
        if self.qcow2 {
            disks.push(("layers", format!("path={},format=qcow2,id=layers,queues=1", path("layers.img"))));
        }
        disks
    }

    /// `strata` with this place's folders in its environment.
    pub(crate) fn strata(&self) -> Command {
        let mut command = Command::new(self.programs.join("strata"));
        command.env("STRATA_RUN_DIR", self.path("run")).env("STRATA_LIBEXEC", self.path("libexec"));
        command.env("TMPDIR", self.path("tmp"));
        command
    }

    /// `/proc/PID/fd/N` of the guest's namespace, for a process that is to enter it.
    pub(crate) fn guest_namespace(&self, index: usize) -> anyhow::Result<String> {
        let network = self.network(index).context("a network")?;
        Ok(format!("/proc/{}/fd/{}", std::process::id(), network.guest.fd().as_raw_fd()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for index in 0..self.machines() {
            let small = self.path(&format!("{}/small", self.name(index)));
            // Lazily: the kernel puts away an io_uring some time after its process.
            let _ = Command::new("umount").arg("--lazy").arg(small).status();
        }
    }
}

fn network() -> std::io::Result<Network> {
    let (host, guest) = (Namespace::new()?, Namespace::new()?);
    for line in [
        "link set lo up",
        "tuntap add dev tap0 mode tap vnet_hdr",
        &format!("addr add {HOST}/24 dev tap0"),
        "link set tap0 up",
    ] {
        host.ip(line)?;
    }
    for line in [
        "link set lo up",
        "tuntap add dev tap1 mode tap",
        &format!("link set tap1 address {MAC}"),
        &format!("addr add {GUEST}/24 dev tap1"),
        "link set tap1 up",
    ] {
        guest.ip(line)?;
    }
    Ok(Network { host, guest })
}
