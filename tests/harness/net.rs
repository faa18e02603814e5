//! The host's end of a guest's network: a tap in this process's own network namespace, and files over TCP.
//!
//! Owns: the namespace (left with the process) and listener threads. Called by: cases and the demo. The namespace keeps
//! taps and addresses of tests away from the host's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use strata_rig::tool;

use crate::image;

/// The host's address on the tap; the guest takes [`GUEST`].
pub const HOST: &str = "10.77.0.1";
/// The guest's address.
pub const GUEST: &str = "10.77.0.2";

/// Moves this process into a network namespace of its own. Before any thread is started. The rig is a machine of its
/// own; nothing happens there.
///
/// # Errors
/// If we may not (it takes root).
pub fn own_namespace() -> anyhow::Result<()> {
    if std::env::var_os("IN_RIG").is_some() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
        .context("cannot make a network namespace (needs root)")?;
    tool::output(tool::command("ip").args(["link", "set", "lo", "up"]))?;
    show_in_sysfs()
}

/// A sysfs shows the interfaces of the namespace it was mounted in, so ours are bound over those of `/sys`.
fn show_in_sysfs() -> anyhow::Result<()> {
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot keep mounts to ourselves")?;
    let dir = tempfile::tempdir()?;
    mount(Some("sysfs"), dir.path(), Some("sysfs"), MsFlags::empty(), none).context("cannot mount sysfs")?;
    for folder in ["devices/virtual/net", "class/net"] {
        let over = Path::new("/sys").join(folder);
        mount(Some(&dir.path().join(folder)), &over, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot bind {}", over.display()))?;
    }
    umount(dir.path()).context("cannot unmount sysfs")
}

/// A tap with the host's address, removed when dropped.
pub struct Tap {
    name: String,
}

impl Tap {
    /// Makes tap `name`, up, with [`HOST`]'s address; `multi_queue` if the NIC will have several pairs.
    ///
    /// # Errors
    /// If we may not make taps here.
    pub fn new(name: &str, multi_queue: bool) -> anyhow::Result<Self> {
        let mut add = tool::command("ip");
        add.args(["tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr"]);
        if multi_queue {
            add.arg("multi_queue");
        }
        tool::output(&mut add)?;
        let tap = Self { name: name.to_owned() };
        tool::output(tool::command("ip").args(["addr", "add", &format!("{HOST}/24"), "dev", name]))?;
        tool::output(tool::command("ip").args(["link", "set", name, "up"]))?;
        Ok(tap)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = tool::output(tool::command("ip").args(["link", "del", &self.name]));
    }
}

/// What `ip` says to `arguments`, words with spaces between them.
///
/// # Errors
/// If it refuses them.
pub fn ip(arguments: &str) -> anyhow::Result<String> {
    tool::text(tool::command("ip").args(arguments.split_whitespace()))
}

/// The same in another network namespace, given as a file.
///
/// # Errors
/// As those of [`ip`].
pub fn ip_in(network: &Path, arguments: &str) -> anyhow::Result<String> {
    let mut command = tool::command("nsenter");
    command.arg(format!("--net={}", network.display())).arg("ip").args(arguments.split_whitespace());
    tool::text(&mut command)
}

/// Random bytes that a guest gets over TCP and sends back.
pub struct Exchange {
    /// The port the guest gets them from.
    pub down: u16,
    /// The port it sends them to.
    pub up: u16,
    content: Vec<u8>,
    sum: String,
    sender: JoinHandle<anyhow::Result<()>>,
    receiver: JoinHandle<anyhow::Result<Vec<u8>>>,
}

impl Exchange {
    /// Bytes to exchange, which stand in `file` as well, and somebody at both ports.
    ///
    /// # Errors
    /// If the file cannot be written, or there is no port to listen on.
    pub fn new(file: &Path, size: u64) -> anyhow::Result<Self> {
        image::random(file, size)?;
        let content = std::fs::read(file)?;
        let (down, sender) = send_once(content.clone())?;
        let (up, receiver) = receive_once(content.len())?;
        Ok(Self { down, up, content, sum: image::sha256(file, size)?, sender, receiver })
    }

    /// What a guest with one card on a [`Tap`]'s network does: says the `sum` of what it got, then that it is `sent`.
    pub fn script(&self) -> String {
        let Self { down, up, .. } = self;
        format!(
            "
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
nc {HOST} {down} > /tmp/f </dev/null
say sum $(sha256sum < /tmp/f | cut -d' ' -f1)
nc {HOST} {up} < /tmp/f >/dev/null
say sent
"
        )
    }

    /// Waits until both ways are done, and compares; `sum` is the guest's SHA-256 of what it got.
    ///
    /// # Errors
    /// If either side got something else than was sent.
    pub fn finish(self, sum: &str) -> anyhow::Result<()> {
        ensure!(sum == self.sum, "the guest received something else");
        finish(self.sender)?;
        ensure!(finish(self.receiver)? == self.content, "we received something else than the guest has");
        Ok(())
    }
}

/// Sends `content` to the first that connects to the returned port.
///
/// # Errors
/// If there is no port to listen on.
fn send_once(content: Vec<u8>) -> anyhow::Result<(u16, JoinHandle<anyhow::Result<()>>)> {
    let (listener, port) = listen()?;
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.write_all(&content)?;
        Ok(())
    });
    Ok((port, sender))
}

/// Receives `size` bytes from the first that connects to the returned port.
///
/// # Errors
/// If there is no port to listen on.
fn receive_once(size: usize) -> anyhow::Result<(u16, JoinHandle<anyhow::Result<Vec<u8>>>)> {
    let (listener, port) = listen()?;
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut content = vec![0; size];
        stream.read_exact(&mut content).context("the guest sent less than it should have")?;
        Ok(content)
    });
    Ok((port, receiver))
}

fn listen() -> anyhow::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], 0)))?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

/// Waits for a thread at the host's end of a connection.
///
/// # Errors
/// Those of the thread.
pub fn finish<T>(thread: JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the network thread panicked"))?
}
