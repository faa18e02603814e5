//! A macvtap's queues are opened by a node of its own, not by /dev/net/tun: finds it. Called by [`super::Tap`] alone.
//!
//! Refuses a node that is another's: its name is the interface's number, of which each network namespace has its own.

use std::fs::{File, read_dir, read_to_string};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The node of a macvtap.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) path: PathBuf,
    /// Major and minor number, as the kernel writes them.
    device: String,
}

/// That of the interface `name`; `None`: it is no macvtap.
pub(super) fn find(name: &str) -> io::Result<Option<Node>> {
    let folder = Path::new("/sys/class/net").join(name).join("macvtap");
    let mut entries = match read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        entries => entries?,
    };
    // One folder, of the node's name.
    let entry = entries.next().ok_or(io::ErrorKind::NotFound)??;
    let device = read_to_string(entry.path().join("dev"))?.trim().to_owned();
    Ok(Some(Node { path: Path::new("/dev").join(entry.file_name()), device }))
}

impl Node {
    /// One more queue.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&self.path)?;
        let number = file.metadata()?.rdev();
        if format!("{}:{}", libc::major(number), libc::minor(number)) != self.device {
            return Err(io::Error::other("it is one of another network namespace"));
        }
        Ok(file.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_opened_only_if_it_is_the_interfaces_own() {
        let node = |device: &str| Node { path: "/dev/null".into(), device: device.to_owned() };
        node("1:3").open().unwrap();
        let error = node("246:1").open().unwrap_err();
        assert!(error.to_string().contains("another network namespace"), "{error}");
    }

    #[test]
    fn what_is_no_macvtap_has_none() {
        assert!(find("lo").unwrap().is_none());
        assert!(find("no-such-thing").unwrap().is_none());
    }
}
