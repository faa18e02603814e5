//! Who may use a machine's folder and sockets, where the kernel cannot say it twice.
//!
//! A machine that root starts runs as nobody. From Linux 6.3 on, the vmm sees its folder through an idmapped mount and
//! nothing outside changes hands; before that, a tmpfs cannot be mounted so, and folder and sockets are nobody's own.

use std::io;
use std::path::Path;

use nix::unistd::{Gid, Uid, chown, geteuid};

/// The first Linux that mounts a tmpfs with other ids.
const IDMAPPED_TMPFS: (u32, u32) = (6, 3);
/// Whom the sandbox turns root into, unless told otherwise.
const NOBODY: u32 = 65534;

/// Gives `path` to the account the vmm will run as, if it could not use it otherwise.
pub(crate) fn give(path: &Path) -> io::Result<()> {
    if !geteuid().is_root() || running().is_none_or(|version| version >= IDMAPPED_TMPFS) {
        return Ok(());
    }
    Ok(chown(path, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))?)
}

fn running() -> Option<(u32, u32)> {
    version(nix::sys::utsname::uname().ok()?.release().to_str()?)
}

/// `6.1.0-56-cloud-amd64` is (6, 1).
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read() {
        assert_eq!(version("6.1.0-56-cloud-amd64"), Some((6, 1)));
        assert_eq!(version("6.12.117+deb12-amd64"), Some((6, 12)));
        assert_eq!(version("unknown"), None);
    }
}
