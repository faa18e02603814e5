//! A guest under QEMU's own interpreter, as an independent frontend of our backends. Needs no KVM; boots in three
//! seconds.
//!
//! Called by: `foreign` cases, natively (an interpreter inside the rig's would take minutes).

use std::path::Path;
use std::process::Command;

use crate::case::Context;
use crate::process::{self, Process};

/// A QEMU command line being put together.
pub struct Guest {
    command: Command,
    disks: u32,
}

impl Guest {
    /// The guest kernel with `script`, one processor, 256 MiB of shared memory.
    ///
    /// # Errors
    /// If the initramfs cannot be made.
    pub fn new(context: &Context, script: &str) -> anyhow::Result<Self> {
        Ok(Self::with_initrd(context, &context.initrd(script)?))
    }

    /// The same with an initramfs that is there.
    pub fn with_initrd(context: &Context, initrd: &Path) -> Self {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-machine", "q35,memory-backend=ram", "-accel", "tcg", "-cpu", "max", "-m", "256"]);
        command.args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]);
        command.args(["-chardev", "stdio,id=console,signal=off", "-device", "virtio-serial-pci"]);
        command.args([
            "-device",
            "virtconsole,chardev=console",
            "-append",
            "console=hvc0 quiet loglevel=4 panic=-1",
        ]);
        command.arg("-kernel").arg(context.place.guest_vmlinuz()).arg("-initrd").arg(initrd);
        Self { command, disks: 0 }
    }

    /// Adds a disk served at `socket`.
    pub fn blk(mut self, socket: &Path, queues: u32) -> Self {
        let id = format!("blk{}", self.disks);
        self.disks += 1;
        self.command.arg("-chardev").arg(format!("socket,id={id},path={}", socket.display()));
        self.command.arg("-device").arg(format!("vhost-user-blk-pci,chardev={id},num-queues={queues}"));
        self
    }

    /// Adds a NIC served at `socket`.
    pub fn net(mut self, socket: &Path) -> Self {
        self.command.arg("-chardev").arg(format!("socket,id=net,path={}", socket.display()));
        self.command.args([
            "-netdev",
            "vhost-user,id=nic,chardev=net",
            "-device",
            "virtio-net-pci,netdev=nic,romfile=",
        ]);
        self
    }

    /// Starts it; its standard output is the guest's console.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn start(mut self) -> anyhow::Result<Process> {
        process::start("qemu-system-x86_64", &mut self.command)
    }
}
