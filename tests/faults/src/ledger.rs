//! What each block of a disk must hold: kept in a file beside the disk, so that it outlives the process that writes
//! the disk. Two versions per block: the last one acknowledged and the last one asked for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The versions of one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Block {
    /// Acknowledged by the disk; what it holds is this or a later one asked for.
    pub acked: u64,
    /// Asked for. The same as `acked` if nothing is under way.
    pub asked: u64,
}

/// The file.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    blocks: Vec<Block>,
}

impl Ledger {
    /// Opens the ledger at `path` of a disk of `blocks` blocks; one that is not there says that none was written.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(path: &Path, blocks: usize) -> io::Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        file.set_len(blocks as u64 * 16)?;
        let mut bytes = vec![0; blocks * 16];
        file.read_exact_at(&mut bytes, 0)?;
        let word = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
        let block = |bytes: &[u8]| {
            let (acked, asked) = bytes.split_at(8);
            Block { acked: word(acked), asked: word(asked) }
        };
        Ok(Self { file, blocks: bytes.chunks_exact(16).map(block).collect() })
    }

    /// How many blocks there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// A block's versions.
    #[must_use]
    pub fn get(&self, block: usize) -> Block {
        self.blocks.get(block).copied().unwrap_or_default()
    }

    /// Notes them, before they are acted on.
    ///
    /// # Errors
    /// The file system's.
    pub fn set(&mut self, block: usize, now: Block) -> io::Result<()> {
        if let Some(slot) = self.blocks.get_mut(block) {
            *slot = now;
        }
        let bytes = [now.acked.to_le_bytes(), now.asked.to_le_bytes()].concat();
        self.file.write_all_at(&bytes, block as u64 * 16)
    }
}
