//! A program's file as it was when it was opened, and what it says of itself.
//!
//! A package manager puts a new file in place of the old one under the same path; the handle keeps the old one, so
//! that it can be started again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::Command;

/// How long a program may take to say what it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// A handle to a program's file.
#[derive(Debug, Clone)]
pub(crate) struct Version(Arc<File>);

/// What a program says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Offer {
    /// `vhost-blk 0.1.0`.
    pub(crate) version: String,
    capabilities: Capabilities,
}

/// `--print-capabilities` (QEMU docs/interop/vhost-user.rst, "Backend program conventions").
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Capabilities {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    features: Vec<String>,
}

impl Version {
    /// What lies at `path` now.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_CLOEXEC).open(path)?;
        Ok(Self(Arc::new(file)))
    }

    /// Whether it still lies there.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        let id = |data: &std::fs::Metadata| (data.dev(), data.ino(), data.mtime(), data.mtime_nsec());
        match (self.0.metadata(), std::fs::metadata(path)) {
            (Ok(ours), Ok(there)) => id(&ours) == id(&there),
            _ => false,
        }
    }

    /// A path by which this process and its children can execute it.
    pub(crate) fn handle(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}

impl Offer {
    /// Asks the program in `file`, which is called `name`.
    ///
    /// # Errors
    /// It does not start, answer in time, or say what the conventions ask for; for people.
    pub(crate) async fn of(file: &Path, name: &Path) -> Result<Self, String> {
        let version = said(file, name, "--version").await?.trim().to_owned();
        let text = said(file, name, "--print-capabilities").await?;
        let capabilities = serde_json::from_str(&text)
            .map_err(|error| format!("what --print-capabilities prints cannot be read: {error}"))?;
        Ok(Self { version, capabilities })
    }

    /// What it lacks that `other` has; for people.
    pub(crate) fn lacks(&self, other: &Self) -> Option<String> {
        let (own, others) = (&self.capabilities, &other.capabilities);
        if own.kind != others.kind {
            return Some(format!("it serves devices of type {:?}, not {:?}", own.kind, others.kind));
        }
        let missing: Vec<&str> = others
            .features
            .iter()
            .filter(|feature| !own.features.contains(feature))
            .map(String::as_str)
            .collect();
        (!missing.is_empty()).then(|| format!("it lacks {}", missing.join(", ")))
    }
}

async fn said(file: &Path, name: &Path, flag: &str) -> Result<String, String> {
    let mut command = Command::new(file);
    command.arg0(name).arg(flag).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => return Err(format!("it does not answer {flag} within {} s", PATIENCE.as_secs())),
        Ok(Err(error)) => return Err(format!("it cannot be started: {error}")),
        Ok(Ok(output)) => output,
    };
    if !output.status.success() {
        return Err(format!("it answers {flag} with {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(text: &str) -> Offer {
        Offer { version: "x 1".into(), capabilities: serde_json::from_str(text).unwrap() }
    }

    #[test]
    fn what_a_version_lacks_is_named() {
        let old = offer(r#"{"type":"block","features":["read-only","blk-file"]}"#);
        assert_eq!(old.lacks(&old), None);
        assert_eq!(offer(r#"{"type":"block","features":["blk-file","more","read-only"]}"#).lacks(&old), None);
        assert_eq!(offer(r#"{"type":"block"}"#).lacks(&old).unwrap(), "it lacks read-only, blk-file");
        let net = offer(r#"{"type":"net","features":["read-only","blk-file"]}"#);
        assert_eq!(net.lacks(&old).unwrap(), "it serves devices of type \"net\", not \"block\"");
    }

    #[test]
    fn a_file_is_kept_when_another_takes_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        std::fs::copy("/bin/true", &path).unwrap();
        let version = Version::open(&path).unwrap();
        assert!(version.is_at(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!version.is_at(&path));
        std::fs::copy("/bin/false", &path).unwrap();
        assert!(!version.is_at(&path));
        let status = |program: PathBuf| std::process::Command::new(program).status().unwrap();
        assert!(status(version.handle()).success());
        assert!(!status(path).success());
    }
}
