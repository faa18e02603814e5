//! What the systemd of this host can that an older one cannot.
//!
//! Called by [`super::run`] and what checks a machine. A generator is told no version (systemd.generator(7)) and must not
//! ask the manager, which waits for it; systemctl has the same version as the manager whose package it is in. Without
//! systemctl nothing is taken for granted.

use std::process::Command;

/// The first with `OpenFile=` (systemd.service(5)).
const OPEN_FILE: u32 = 253;

/// What is asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Systemd {
    /// It opens files for a service and passes the descriptors.
    pub(super) opens_files: bool,
}

impl Systemd {
    /// This host's.
    pub(super) fn here() -> Self {
        let asked = Command::new("systemctl").arg("--version").output();
        let said = asked.map(|done| String::from_utf8_lossy(&done.stdout).into_owned()).unwrap_or_default();
        Self { opens_files: version(&said).is_some_and(|version| version >= OPEN_FILE) }
    }
}

/// `systemd 257 (257.13-1~deb13u1)`, or `systemd 258~rc1 (...)`.
fn version(said: &str) -> Option<u32> {
    let number = said.strip_prefix("systemd ")?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod systemd_test {
    use super::version;

    #[test]
    fn the_version_is_the_first_number() {
        assert_eq!(version("systemd 252 (252.39-1~deb12u1)\n+PAM +AUDIT"), Some(252));
        assert_eq!(version("systemd 258~rc1 (258~rc1)"), Some(258));
        assert_eq!(version(""), None);
        assert_eq!(version("systemd unknown"), None);
    }
}
