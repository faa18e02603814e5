//! Names of virtio device types. Numbers from virtio 1.2, 5 "Device Types".

const TYPES: [(&str, u16); 23] = [
    ("net", 1),
    ("block", 2),
    ("console", 3),
    ("rng", 4),
    ("balloon", 5),
    ("scsi", 8),
    ("9p", 9),
    ("gpu", 16),
    ("input", 18),
    ("vsock", 19),
    ("crypto", 20),
    ("iommu", 23),
    ("mem", 24),
    ("sound", 25),
    ("fs", 26),
    ("pmem", 27),
    ("rpmb", 28),
    ("video-encoder", 30),
    ("video-decoder", 31),
    ("scmi", 32),
    ("i2c", 34),
    ("can", 36),
    ("gpio", 41),
];

/// The number of a device type given by name (`rng`) or by number (`4`), if it can be a PCI device id.
pub fn device_id_of(text: &str) -> Option<u16> {
    let named = TYPES.iter().find(|(name, _)| *name == text).map(|(_, id)| *id);
    // virtio 1.2, 4.1.2.1: the PCI device id is 0x1040 + type and must not pass 0x107f.
    named.or_else(|| text.parse().ok().filter(|id| (1..=63).contains(id)))
}

/// The name of a device type, if it has one here.
pub fn device_name_of(id: u16) -> Option<&'static str> {
    TYPES.iter().find(|(_, other)| *other == id).map(|(name, _)| *name)
}

/// All names [`device_id_of`] knows.
pub fn known_device_types() -> impl Iterator<Item = &'static str> {
    TYPES.iter().map(|(name, _)| *name)
}
