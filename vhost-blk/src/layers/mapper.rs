//! What one queue remembers of where the pieces of its disk lie.
//!
//! A direct-mapped table: each piece has one place in it. An entry is good as long as the piece's version is the one
//! it was taken at; whoever changes the mapping moves the version on before the change is answered
//! ([`Layers::forget`]), whichever queue's lane does it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Layers;

/// Pieces remembered; with pieces of 64 KiB, 4 GiB of disk in 1 MiB of memory, if all of it is touched.
const ENTRIES: usize = 65536;

/// Where a piece lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In one of the files, as it is.
    File {
        /// Which.
        node: usize,
        /// Byte offset there.
        offset: u64,
        /// Whether it may be written there.
        writable: bool,
    },
    /// Nowhere: it reads as zero.
    Zero,
}

/// What a lane has found out about one piece.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    /// The piece's number.
    pub(super) granule: u64,
    /// Where it lies.
    pub(super) place: Place,
    /// Its version before that was asked.
    pub(super) version: u32,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Lowest bits: kind (0 zero, 1 file, 3 writable file), then the node. See `pack`.
    place: u64,
    /// Number of the piece plus one; 0 is an empty entry. 2^32 pieces are more than an image can have.
    tag: u32,
    version: u32,
}

/// One queue's memory.
#[derive(Debug)]
pub struct Mapper {
    layers: Arc<Layers>,
    entries: Vec<Entry>,
}

impl Mapper {
    /// Remembers nothing yet.
    #[must_use]
    pub fn new(layers: Arc<Layers>) -> Self {
        // Zero pages until they are touched.
        let entries = vec![Entry { tag: 0, place: 0, version: 0 }; ENTRIES];
        Self { layers, entries }
    }

    /// The chain.
    #[must_use]
    pub fn layers(&self) -> &Arc<Layers> {
        &self.layers
    }

    /// Where the byte at `offset` lies, if that is remembered, and how many of the following lie behind it; how
    /// many belong to its piece, otherwise.
    #[inline]
    pub fn find(&self, offset: u64) -> (Option<Place>, u64) {
        let bits = self.layers.granule_bits;
        let (granule, inside) = (offset >> bits, offset & ((1 << bits) - 1));
        let entry = self.entries.get(granule as usize % ENTRIES);
        let place = entry
            .filter(|entry| u64::from(entry.tag) == granule + 1)
            .filter(|entry| entry.version == self.layers.version(granule).load(Ordering::Acquire))
            .map(|entry| match unpack(entry.place) {
                Place::File { node, offset, writable } => {
                    Place::File { node, offset: offset + inside, writable }
                }
                Place::Zero => Place::Zero,
            });
        (place, (1 << bits) - inside)
    }

    /// Remembers.
    pub fn learn(&mut self, found: &Found) {
        let (tag, entry) =
            (u32::try_from(found.granule + 1), self.entries.get_mut(found.granule as usize % ENTRIES));
        if let (Ok(tag), Some(entry)) = (tag, entry) {
            *entry = Entry { tag, place: pack(found.place), version: found.version };
        }
    }
}

/// Offsets of pieces in files are multiples of 512 in every qcow2 image (clusters), and in a raw one if the piece's
/// own is; the nine low bits say the rest.
fn pack(place: Place) -> u64 {
    match place {
        Place::Zero => 0,
        Place::File { node, offset, writable } => {
            (offset & !511) | (node as u64 & 0x3f) << 2 | u64::from(writable) << 1 | 1
        }
    }
}

fn unpack(packed: u64) -> Place {
    if packed & 1 == 0 {
        return Place::Zero;
    }
    Place::File { node: (packed >> 2 & 0x3f) as usize, offset: packed & !511, writable: packed & 2 != 0 }
}

#[cfg(test)]
mod mapper_test {
    use super::*;

    #[test]
    fn places_survive_packing() {
        for place in [
            Place::Zero,
            Place::File { node: 0, offset: 0, writable: false },
            Place::File { node: 15, offset: 512, writable: true },
            Place::File { node: 3, offset: (1 << 62) - 512, writable: false },
        ] {
            assert_eq!(unpack(pack(place)), place);
        }
    }
}
