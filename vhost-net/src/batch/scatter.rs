#![allow(unsafe_code)] // Send for a list of addresses
//! Scatter lists of several frames, one behind the other, in the form the kernel takes. Made once and filled
//! again for each batch.

use strata_virtio::memory::IoSlice;

/// The most pieces of one frame: what readv and writev take (UIO_MAXIOV).
pub const MAX_PIECES: usize = 1024;

/// The pieces of up to a batch of frames.
#[derive(Debug, Default)]
pub struct Scatter {
    pieces: Vec<libc::iovec>,
    /// Where each frame ends in `pieces`.
    ends: Vec<usize>,
}

// SAFETY: addresses and lengths; what lies behind is touched by the kernel alone, when the holder asks.
unsafe impl Send for Scatter {}

impl Scatter {
    /// Forgets all frames.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.ends.clear();
    }

    /// Adds a piece of guest memory to the frame being described.
    #[inline]
    pub fn guest(&mut self, piece: IoSlice) {
        self.pieces.push(libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() });
    }

    /// Adds memory of our own to the frame being described.
    #[inline]
    pub fn own(&mut self, piece: &mut [u8]) {
        self.pieces.push(libc::iovec { iov_base: piece.as_mut_ptr().cast(), iov_len: piece.len() });
    }

    /// Ends the frame being described.
    #[inline]
    pub fn end(&mut self) {
        self.ends.push(self.pieces.len());
    }

    /// Number of frames.
    #[inline]
    #[must_use]
    pub fn count(&self) -> usize {
        self.ends.len()
    }

    /// Each frame's pieces.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &[libc::iovec]> {
        let mut from = 0;
        self.ends.iter().map(move |&to| {
            let pieces = self.pieces.get(from..to).unwrap_or_default();
            from = to;
            pieces
        })
    }
}
