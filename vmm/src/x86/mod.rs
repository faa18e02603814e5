//! What makes the machine a PC as far as a kernel can tell: where things are, how it is booted, what its
//! firmware tables say.

pub mod acpi;
pub mod boot;
pub mod cmdline;
pub mod kernel;
pub mod layout;
pub mod paging;
pub mod smbios;
