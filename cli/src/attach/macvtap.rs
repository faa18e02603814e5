//! Macvtaps: an address of its own on an interface of the host.

use std::fs::{File, Permissions, set_permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};

use super::link::Links;
use super::tun;

/// What the interface is called, in its own namespace.
const NAME: &str = "macvtap0";

/// Makes a macvtap on interface `parent` in a network namespace of its own, with the address `mac`, and opens `queues`
/// queues of it. The namespace's descriptor keeps it.
pub(super) fn make(
    links: &mut Links,
    parent: u32,
    mac: [u8; 6],
    mtu: u32,
    queues: u16,
) -> io::Result<(String, Vec<OwnedFd>, OwnedFd)> {
    let (mut inside, namespace) = namespace()?;
    // The node in /dev has the interface's number in its name, so the number must differ from those of all other
    // namespaces.
    let mut index = number();
    let mut tries = 0;
    loop {
        match links.add_macvtap(parent, index, NAME, mac, Some(namespace.as_raw_fd())) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && tries < 10 => {
                tries += 1;
                index = number();
            }
            other => break other?,
        }
    }
    inside.bring_up(index, mtu, None)?;
    let node = node(index);
    let open = open(&node, queues).map_err(|error| explained(error, &node))?;
    Ok((NAME.to_owned(), open, namespace))
}

/// The node of the macvtap with this number.
pub(super) fn node(index: u32) -> PathBuf {
    PathBuf::from(format!("/dev/tap{index}"))
}

/// Lets members of `group` open the macvtap with this number.
pub(super) fn give(index: u32, group: u32) -> io::Result<()> {
    let node = node(index);
    // The kernel gives it to root alone. A process in that group needs no right of its own to pass it on.
    chown(&node, None, Some(group))
        .and_then(|()| set_permissions(&node, Permissions::from_mode(0o660)))
        .map_err(|error| explained(error, &node))
}

/// The error of a node that is not there.
fn explained(error: io::Error, node: &Path) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            let why = format!("{} did not appear; /dev must be a devtmpfs", node.display());
            io::Error::new(io::ErrorKind::NotFound, why)
        }
        _ => error,
    }
}

/// Opens `queues` queues of the macvtap behind a node.
pub(super) fn open(node: &Path, queues: u16) -> io::Result<Vec<OwnedFd>> {
    let open = |_| {
        let queue = tun::node_of(node)?;
        let name = tun::name_of(&queue)?;
        tun::set(&queue, &name, queues > 1)?;
        Ok(queue)
    };
    (0..queues).map(open).collect()
}

/// A new network namespace, and a way to its interfaces.
fn namespace() -> io::Result<(Links, OwnedFd)> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace = OwnedFd::from(File::open("/proc/thread-self/ns/net")?);
        Ok((Links::open()?, namespace))
    });
    thread.join().map_err(|_| io::Error::other("the namespace's thread panicked"))?
}

/// A number that no interface has, most likely: large, and of this process and moment.
fn number() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    // Seeded by the system's random numbers.
    let random = RandomState::new().hash_one(std::process::id());
    large(random as u32)
}

/// One of the numbers that the kernel does not come to by counting.
pub(super) fn large(any: u32) -> u32 {
    0x1000_0000 | (any & 0x0fff_ffff)
}
