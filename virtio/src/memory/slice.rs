#![allow(unsafe_code)] // copies to and from mapped guest memory
//! Stretches of mapped guest memory: [`GuestSlice`] borrows its memory, [`IoSlice`] is the raw form the kernel
//! takes (`struct iovec`). Both come from [`super::Memory`] alone, which has checked their bounds.

use std::marker::PhantomData;
use std::ptr;

/// Bytes of guest memory inside one region. They may change at any moment, so they are only ever copied.
#[derive(Debug, Clone, Copy)]
pub struct GuestSlice<'m> {
    ptr: *mut u8,
    len: usize,
    memory: PhantomData<&'m super::Memory>,
}

impl GuestSlice<'_> {
    /// `ptr` must lead to `len` bytes inside a mapping that lives for the slice's lifetime.
    #[inline]
    pub(super) fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len, memory: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The host address of the first byte.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The form the kernel takes. It outlives the borrow: whoever keeps it keeps the memory's `Arc` too.
    #[inline]
    #[must_use]
    pub fn io(&self) -> IoSlice {
        IoSlice::new(self.ptr, self.len)
    }

    /// Copies from `offset` on into `out`, as far as both reach; says how many bytes.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) -> usize {
        let len = out.len().min(self.len.saturating_sub(offset));
        if len > 0 {
            // SAFETY: offset + len <= self.len, all inside a live mapping; `out` is ours and elsewhere.
            unsafe { ptr::copy_nonoverlapping(self.ptr.add(offset), out.as_mut_ptr(), len) };
        }
        len
    }

    /// Copies `data` to `offset` on, as far as both reach; says how many bytes.
    #[inline]
    pub fn write(&self, offset: usize, data: &[u8]) -> usize {
        let len = data.len().min(self.len.saturating_sub(offset));
        if len > 0 {
            // SAFETY: offset + len <= self.len, all inside a live mapping; `data` is ours and elsewhere.
            unsafe { ptr::copy_nonoverlapping(data.as_ptr(), self.ptr.add(offset), len) };
        }
        len
    }

    /// Copies its first bytes to another stretch of guest memory, as far as both reach.
    #[inline]
    pub fn copy_to(&self, target: &GuestSlice<'_>) {
        let len = self.len.min(target.len);
        // Both may be the same guest's, who may have them overlap.
        // SAFETY: `len` bytes inside a live mapping on either side.
        unsafe { ptr::copy(self.ptr, target.ptr, len) };
    }

    /// Sets every byte to `value`.
    #[inline]
    pub fn fill(&self, value: u8) {
        // SAFETY: self.len bytes inside a live mapping.
        unsafe { ptr::write_bytes(self.ptr, value, self.len) };
    }
}

/// A `struct iovec` that points into guest memory. Plain data, laid out as the kernel wants it: a slice of
/// these is a scatter list. It does not keep its memory mapped; the `Arc<Memory>` beside it does.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct IoSlice(libc::iovec);

// SAFETY: an address and a length; what lies behind is shared memory, and touching it is the holder's duty.
unsafe impl Send for IoSlice {}
// SAFETY: as above.
unsafe impl Sync for IoSlice {}

impl std::fmt::Debug for IoSlice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoSlice({:p}, {:#x})", self.0.iov_base, self.0.iov_len)
    }
}

impl IoSlice {
    #[inline]
    pub(crate) fn new(ptr: *mut u8, len: usize) -> Self {
        Self(libc::iovec { iov_base: ptr.cast(), iov_len: len })
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iov_len
    }

    /// Whether there are no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iov_len == 0
    }

    /// The host address of the first byte.
    #[inline]
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.0.iov_base.cast()
    }

    /// What is left without the first `n` bytes (`n` at most the length).
    #[inline]
    #[must_use]
    pub fn skip(self, n: usize) -> Self {
        let n = n.min(self.len());
        Self::new(self.as_ptr().wrapping_add(n), self.len() - n)
    }

    /// The first `n` bytes (`n` at most the length).
    #[inline]
    #[must_use]
    pub fn take(self, n: usize) -> Self {
        Self::new(self.as_ptr(), n.min(self.len()))
    }

    /// A scatter list as readv, writev and io_uring take it.
    #[inline]
    #[must_use]
    pub fn as_iovecs(list: &[IoSlice]) -> *const libc::iovec {
        list.as_ptr().cast()
    }
}

impl<'m> GuestSlice<'m> {
    /// Back from the raw form; the caller holds the memory the piece came from, for as long as the result.
    #[inline]
    pub(crate) fn from_io(piece: IoSlice) -> Self {
        Self::new(piece.as_ptr(), piece.len())
    }
}
