#![allow(unsafe_code)] // VolatileSlice is built from a raw pointer
//! The `vm-memory` crate's view of [`Memory`], for crates that speak it (a kernel loader, a reference queue).

use vm_memory::guest_memory::Result;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, GuestMemoryRegionBytes,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};

use super::{Memory, Region};

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.size()
    }

    fn start_addr(&self) -> GuestAddress {
        GuestAddress(self.gpa())
    }

    fn bitmap(&self) {}

    fn get_host_address(&self, addr: MemoryRegionAddress) -> Result<*mut u8> {
        self.check_address(addr)
            .map(|addr| self.host().wrapping_add(addr.0 as usize))
            .ok_or(GuestMemoryError::InvalidBackendAddress)
    }

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Result<VolatileSlice<'_>> {
        match offset.0.checked_add(count as u64) {
            Some(end) if end <= self.size() => {
                // SAFETY: the bytes lie inside the mapping, which lives as long as `self`.
                Ok(unsafe { VolatileSlice::new(self.host().add(offset.0 as usize), count) })
            }
            _ => Err(GuestMemoryError::InvalidBackendAddress),
        }
    }
}

impl GuestMemoryRegionBytes for Region {}

impl GuestMemoryBackend for Memory {
    type R = Region;

    fn iter(&self) -> impl Iterator<Item = &Region> {
        self.regions.iter().map(AsRef::as_ref)
    }
}
