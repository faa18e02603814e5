//! placeholder, filled by its owner
/// Why a ring cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("ring")]
pub struct RingError;
