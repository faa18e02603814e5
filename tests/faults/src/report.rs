//! What a `load-vmm` says when it ends well.

use serde::{Deserialize, Serialize};

/// Of all devices.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Report {
    /// By device.
    pub disks: Vec<Disk>,
    /// By device.
    pub nics: Vec<Nic>,
}

/// Of a disk.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Disk {
    /// Its id.
    pub id: String,
    /// Requests answered well.
    pub reads: u64,
    /// Requests answered well.
    pub writes: u64,
    /// Requests answered well.
    pub flushes: u64,
    /// Requests answered with an error; each was made again until it was answered well.
    pub errors: u64,
    /// Blocks whose contents were compared, while running and at the end.
    pub compared: u64,
    /// Resets by the driver, in the middle of requests.
    pub resets: u64,
    /// Connections to the backend that were lost.
    pub losses: u64,
    /// Times between two answers, while there were requests, of 5 ms and more; in microseconds.
    pub gaps: Vec<u64>,
}

/// Of a card.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Nic {
    /// Its id.
    pub id: String,
    /// Frames taken from the peer.
    pub received: u64,
    /// Frames given to the peer.
    pub sent: u64,
    /// Resets by the driver.
    pub resets: u64,
    /// Connections to the backend that were lost.
    pub losses: u64,
}
