//! placeholder, filled by its owner
/// One queue's part of the inflight region.
#[derive(Debug)]
pub struct QueueRegion;
