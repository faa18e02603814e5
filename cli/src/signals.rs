//! The signals that tell a launcher to end: of a machine ([`crate::supervise`]), of a switch, of a lab.
//!
//! Owns which these are, and that one whoever started us wants ignored stays ignored, as `nohup` does with SIGHUP.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Signals cannot be watched for.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch for signals")]
pub(crate) struct WatchError(#[from] io::Error);

/// Has `tell` called for each signal that comes, for as long as it gives true.
pub(crate) fn watch(tell: impl Fn() -> bool + Clone + Send + 'static) -> Result<(), WatchError> {
    for kind in [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup(), SignalKind::quit()] {
        if ignored(kind) {
            continue;
        }
        let mut stream = signal(kind)?;
        let tell = tell.clone();
        tokio::spawn(async move { while stream.recv().await.is_some() && tell() {} });
    }
    Ok(())
}

fn ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}
