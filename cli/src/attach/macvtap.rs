//! Macvtaps: an address of its own on an interface of the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
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
        match links.add_macvtap(parent, index, NAME, mac, namespace.as_raw_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && tries < 10 => {
                tries += 1;
                index = number();
            }
            other => break other?,
        }
    }
    inside.bring_up(index, mtu, None)?;
    let node = PathBuf::from(format!("/dev/tap{index}"));
    let open = open(&node, queues).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            let why = format!("{} did not appear; /dev must be a devtmpfs", node.display());
            io::Error::new(io::ErrorKind::NotFound, why)
        }
        _ => error,
    })?;
    Ok((NAME.to_owned(), open, namespace))
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
    0x1000_0000 | (random as u32 & 0x0fff_ffff)
}
