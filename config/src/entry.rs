//! The tables of the machine file as they are written: one per disk, NIC and other device.
//! Nothing is checked here but the types; see [`crate::check`].

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::backend::BackendEntry;
use crate::compact;
use crate::error::ConfigError;
use crate::size::NumberOrText;
use crate::vcpu::VcpuEntry;

/// A disk: an image served by an own vhost-blk process, or a vhost-user socket somebody else serves.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskEntry {
    /// The image file or block device. Give either `path` or `socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// The socket of a running vhost-user-blk backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// `raw` or `qcow2`; default: raw, but refused when the image begins like another format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["raw", "qcow2"]))]
    pub format: Option<String>,
    /// The guest cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readonly: Option<bool>,
    /// What the guest finds in /sys/block/vdX/serial: 1 to 20 printable ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 20))]
    pub serial: Option<String>,
    /// Use of the host's page cache: `none` (direct I/O), `writeback`, `unsafe` (a flush does nothing) or `auto`;
    /// default `auto`: `none` where the file system has direct I/O.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["auto", "none", "writeback", "unsafe"]))]
    pub cache: Option<String>,
    /// How requests reach the image: `io_uring`, `sync` (system calls that wait) or `auto`, the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["auto", "io_uring", "sync"]))]
    pub engine: Option<String>,
    /// What happens when the image fails: `report` (the guest gets the error, the default) or `stop` (the disk waits
    /// for `strata disk resume`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["report", "stop"]))]
    pub on_error: Option<String>,
    /// Most requests per second; default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub iops: Option<i64>,
    /// Requests that may come at once after a pause; default: a tenth of a second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000_000))]
    pub iops_burst: Option<i64>,
    /// Most bytes per second, e.g. `100M`; a plain number means MiB; default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<NumberOrText>,
    /// Bytes that may be transferred at once after a pause; default: a tenth of a second's worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_burst: Option<NumberOrText>,
    /// Processors for the queues' threads, one each: `3`, `"2,5"` or `"2-5"`; default: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<NumberOrText>,
    /// Longest time a queue is polled before its thread sleeps, 0 (never) to 5000 microseconds; default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 5000))]
    pub poll_us: Option<i64>,
    /// Longest time the guest is not interrupted for an answer it can see already, while the queue is polled, 0 (not at
    /// all, the default) to 1000 microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub coalesce_us: Option<i64>,
    /// Queues, 1 to 64; default: one per vCPU up to 8 for an image, all the backend has for a socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<i64>,
    /// The disk's name within the machine; default `disk0`, `disk1`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Any other vhost-user device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// The socket of a running vhost-user backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// The virtio device type: a name (`rng`, `fs`, `vsock`, ...) or its number.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<NumberOrText>,
    /// Queues, 1 to 64; default: all the backend has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub queues: Option<i64>,
    /// The device's name within the machine; default `dev0`, `dev1`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

macro_rules! from_flag {
    ($($entry:ty),*) => {$(
        impl $entry {
            /// Reads a flag's compact text, e.g. `path=disk.img,readonly`. A word alone means `=true`, a
            /// doubled comma is one comma of the value.
            ///
            /// # Errors
            /// [`ConfigError`] naming the key and what is allowed.
            pub fn from_flag(text: &str) -> Result<Self, ConfigError> {
                compact::parse(text)
            }
        }
    )*};
}
from_flag!(DiskEntry, DeviceEntry, VcpuEntry, BackendEntry);
