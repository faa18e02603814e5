//! The guest's kernel image: opened and understood before anything else is made, loaded at each boot.
//!
//! Two forms: a bzImage, entered in 64-bit mode (Linux x86 boot protocol 2.12 or later), and an ELF vmlinux,
//! entered through its PVH note. Refuses everything else, naming what the file looks like instead. The image
//! belongs to the user, not the guest, but nothing in it is trusted: every size is bounded by the file's.

mod bzimage;
mod elf;
mod sniff;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::bootparam::setup_header;
use strata_virtio::memory::{Memory, MemoryError};

/// Why a kernel or initrd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file cannot be opened.
    #[error("cannot open {what} {}", path.display())]
    Open {
        /// "the kernel" or "the initrd".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file cannot be read.
    #[error("cannot read {what} {}", path.display())]
    Read {
        /// "the kernel" or "the initrd".
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: std::io::Error,
    },
    /// The file is something else.
    #[error(
        "{} is not a kernel: it looks like {looks}; give a bzImage (vmlinuz) or an ELF vmlinux for x86-64",
        path.display()
    )]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What its first bytes say.
        looks: &'static str,
    },
    /// It is a kernel, but not one that can be started here.
    #[error("{} is a {form} that cannot be booted: {why}", path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// bzImage or vmlinux.
        form: &'static str,
        /// What is missing or wrong.
        why: &'static str,
    },
    /// It does not lie inside guest memory.
    #[error("{what} does not fit into guest memory")]
    Memory {
        /// "the kernel" or "the initrd".
        what: &'static str,
        /// Where it does not.
        #[source]
        source: MemoryError,
    },
}

/// How a loaded kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Entry {
    /// 64-bit mode, RSI on the zero page made from this header.
    Linux64 {
        /// Instruction pointer.
        rip: u64,
        /// The image's own setup header, not yet filled in.
        header: setup_header,
    },
    /// 32-bit protected mode, EBX on the start info.
    Pvh {
        /// Instruction pointer.
        rip: u64,
    },
}

#[derive(Debug)]
enum Image {
    Bz(bzimage::BzImage),
    Elf(elf::ElfImage),
}

/// A kernel image. Holds its file open, so that a reboot needs no path.
#[derive(Debug)]
pub struct Kernel {
    source: Source,
    image: Image,
}

impl Kernel {
    /// Opens and parses `path`.
    ///
    /// # Errors
    /// It cannot be read, is not a kernel, or not one that can be booted.
    pub fn open(path: &Path) -> Result<Self, KernelError> {
        let source = Source::open("the kernel", path)?;
        let head = source.head()?;
        let image = if bzimage::is(&head) {
            Image::Bz(bzimage::BzImage::parse(&source, &head)?)
        } else if elf::is(&head) {
            Image::Elf(elf::ElfImage::parse(&source, &head)?)
        } else {
            let looks = sniff::looks_like(&head);
            return Err(KernelError::NotAKernel { path: path.to_owned(), looks });
        };
        Ok(Self { source, image })
    }

    /// The guest-physical range the kernel occupies from entry until it has set itself up.
    #[must_use]
    pub fn span(&self) -> Range<u64> {
        match &self.image {
            Image::Bz(image) => image.span(),
            Image::Elf(image) => image.span(),
        }
    }

    /// The highest address an initrd may end at, exclusive.
    #[must_use]
    pub fn initrd_limit(&self) -> u64 {
        match &self.image {
            Image::Bz(image) => image.initrd_limit(),
            Image::Elf(_) => 1 << 32,
        }
    }

    /// The longest command line it takes, without the NUL.
    #[must_use]
    pub fn cmdline_limit(&self) -> usize {
        match &self.image {
            Image::Bz(image) => image.cmdline_limit(),
            // COMMAND_LINE_SIZE on x86, with the NUL.
            Image::Elf(_) => 2047,
        }
    }

    /// Copies the image into guest memory.
    ///
    /// # Errors
    /// The file has become shorter, or guest memory does not hold the kernel.
    pub fn load(&self, memory: &Memory) -> Result<Entry, KernelError> {
        match &self.image {
            Image::Bz(image) => image.load(&self.source, memory),
            Image::Elf(image) => image.load(&self.source, memory),
        }
    }
}

/// A file that is copied into guest memory at each boot: the kernel or the initrd.
#[derive(Debug)]
pub struct Source {
    what: &'static str,
    path: PathBuf,
    file: File,
    len: u64,
}

impl Source {
    /// Opens `path`; `what` is its name in errors.
    ///
    /// # Errors
    /// It is not there, not readable or not a regular file.
    pub fn open(what: &'static str, path: &Path) -> Result<Self, KernelError> {
        let failed = |source| KernelError::Open { what, path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(std::io::Error::other("it is not a regular file")));
        }
        Ok(Self { what, path: path.to_owned(), file, len: metadata.len() })
    }

    /// Length in bytes when it was opened.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it holds nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies `len` bytes from `offset` on to `gpa`.
    ///
    /// # Errors
    /// The file ends before, or guest memory does.
    pub fn copy(&self, offset: u64, len: u64, memory: &Memory, gpa: u64) -> Result<(), KernelError> {
        let mut buffer = vec![0; 1 << 20];
        let mut done = 0;
        while done < len {
            let part = usize::try_from(len - done).unwrap_or(usize::MAX).min(buffer.len());
            let Some(piece) = buffer.get_mut(..part) else { break };
            self.read(offset + done, piece)?;
            memory
                .write_at(gpa.saturating_add(done), piece)
                .map_err(|source| KernelError::Memory { what: self.what, source })?;
            done += part as u64;
        }
        Ok(())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), KernelError> {
        self.file.read_exact_at(out, offset).map_err(|source| KernelError::Read {
            what: self.what,
            path: self.path.clone(),
            source,
        })
    }

    /// The first 4 KiB, or all of a shorter file.
    fn head(&self) -> Result<Vec<u8>, KernelError> {
        let mut head = vec![0; usize::try_from(self.len.min(4096)).unwrap_or(0)];
        self.read(0, &mut head)?;
        Ok(head)
    }

    fn unusable(&self, form: &'static str, why: &'static str) -> KernelError {
        KernelError::Unusable { path: self.path.clone(), form, why }
    }
}

/// A little-endian value out of bytes that may be too short.
fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_le_bytes(*b))
}

fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|b| u32::from_le_bytes(*b))
}

fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|b| u64::from_le_bytes(*b))
}

#[cfg(test)]
#[path = "kernel_test.rs"]
pub(crate) mod kernel_test;
