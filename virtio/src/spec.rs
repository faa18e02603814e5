//! Constants of virtio 1.2 and vhost-user that several modules need under one name. Device-specific layouts
//! are in `virtio-bindings`; these are the feature *bits as masks*, which it gives as bit numbers.

/// VIRTIO_F_INDIRECT_DESC (section 6): a descriptor may refer to a table of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (section 6): used_event and avail_event suppress notifications.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// VHOST_USER_F_PROTOCOL_FEATURES: only between frontend and backend, never offered to a driver.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// VIRTIO_F_VERSION_1 (section 6): not a legacy device.
pub const F_VERSION_1: u64 = 1 << 32;
/// VIRTIO_F_ACCESS_PLATFORM (section 6): addresses go through an IOMMU; nothing of ours offers it.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;

/// What every device of ours offers for its rings.
pub const RING_FEATURES: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

/// VIRTQ_DESC_F_NEXT (section 2.7.5): the chain goes on at `next`.
pub const DESC_NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE: the device writes this buffer.
pub const DESC_WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT: the buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Size of a descriptor in bytes.
pub const DESC_SIZE: u64 = 16;

/// VIRTQ_AVAIL_F_NO_INTERRUPT (section 2.7.6): the driver wants no call; only without EVENT_IDX.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// VIRTQ_USED_F_NO_NOTIFY (section 2.7.8): the device wants no kick; only without EVENT_IDX.
pub const USED_NO_NOTIFY: u16 = 1;

/// The largest queue a split ring can have (section 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Device status bits (section 2.1).
pub mod status {
    /// The guest has noticed the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest knows how to drive it.
    pub const DRIVER: u8 = 2;
    /// The driver is set up.
    pub const DRIVER_OK: u8 = 4;
    /// Features are settled.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// The guest has given up.
    pub const FAILED: u8 = 128;
}
