//! placeholder, filled by its owner
/// Guest memory.
#[derive(Debug)]
pub struct Memory;
