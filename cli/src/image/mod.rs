//! `strata image`: the few things a node needs to do with disk images: make one, look at one, lay one over another.
//!
//! What qcow2 is, the imago crate knows, as it does for vhost-blk; qemu-img reads what is made here. Refuses to write
//! over anything, and to guess a format that a guest may have chosen.

mod info;
mod overlay;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use imago::FormatCreateBuilder;
use imago::qcow2::Qcow2;
use strata_config::Size;

use crate::say::print;

/// Bytes of a virtio-blk sector.
const SECTOR: u64 = 512;
const MAGIC: [u8; 4] = *b"QFI\xfb";

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Make an empty image; nothing is ever written over
    Create(CreateArgs),
    /// Show what an image is, and what is behind it
    Info(info::InfoArgs),
    /// Make an empty qcow2 image over another one, which then must not be written to any more
    ///
    /// Many overlays can share one base: each takes up only what its guest has written.
    Overlay(overlay::OverlayArgs),
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// The new image
    image: PathBuf,
    /// The disk's size, such as 20G; without a unit MiB
    size: Size,
    /// raw or qcow2 [default: qcow2 if the name ends in .qcow2, else raw]
    #[arg(long, value_enum)]
    format: Option<Format>,
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Take all the storage now (raw)
    #[arg(long)]
    preallocate: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Unit of allocation of a qcow2 image: a power of two, 4K to 2M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = cluster)]
    cluster_size: u32,
}

fn cluster(text: &str) -> Result<u32, String> {
    let allowed = "must be a power of two from 4K to 2M".to_owned();
    match text.parse::<Size>().map(|Size(bytes)| bytes) {
        Ok(bytes @ 4096..=2_097_152) if bytes.is_power_of_two() => u32::try_from(bytes).map_err(|_| allowed),
        _ => Err(allowed),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// What a file's name says.
    fn of_name(path: &Path) -> Self {
        if path.extension().is_some_and(|end| end == "qcow2") { Self::Qcow2 } else { Self::Raw }
    }

    /// What a file's first bytes say.
    fn of_content(file: &File) -> Self {
        let mut magic = [0; MAGIC.len()];
        match file.read_exact_at(&mut magic, 0) {
            Ok(()) if magic == MAGIC => Self::Qcow2,
            _ => Self::Raw,
        }
    }
}

pub(crate) fn run(command: &ImageCommand) -> anyhow::Result<()> {
    match command {
        ImageCommand::Create(args) => args.run(),
        ImageCommand::Info(args) => args.run(),
        ImageCommand::Overlay(args) => args.run(),
    }
}

impl CreateArgs {
    fn run(&self) -> anyhow::Result<()> {
        let format = self.format.unwrap_or_else(|| Format::of_name(&self.image));
        let Size(size) = self.size;
        if size == 0 {
            bail!("a disk of 0 bytes; give a size such as 20G");
        }
        if self.preallocate && format == Format::Qcow2 {
            bail!("--preallocate is for raw images; a qcow2 image grows as it is written to");
        }
        let made = New::make(&self.image)?;
        match format {
            Format::Raw => made.size_raw(size, self.preallocate),
            Format::Qcow2 => made.format_qcow2(size, self.cluster.cluster_size, None),
        }
        .with_context(|| format!("cannot make {}", self.image.display()))?;
        made.keep()?;
        print(&format!("{}: {}, {}\n", self.image.display(), format.as_str(), self.size)).map_err(Into::into)
    }
}

/// An image being made; gone again unless it is finished.
struct New {
    path: PathBuf,
    file: File,
    finished: bool,
}

impl New {
    /// An empty file for its owner only: it will hold what a guest knows.
    fn make(path: &Path) -> anyhow::Result<Self> {
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                anyhow::anyhow!("{} exists already; images are not written over", path.display())
            }
            _ => anyhow::Error::from(error).context(format!("cannot make {}", path.display())),
        })?;
        Ok(Self { path: path.to_owned(), file, finished: false })
    }

    fn size_raw(&self, size: u64, preallocate: bool) -> std::io::Result<()> {
        self.file.set_len(size)?;
        if preallocate {
            let len = i64::try_from(size).map_err(|_| std::io::ErrorKind::FileTooLarge)?;
            nix::fcntl::fallocate(&self.file, nix::fcntl::FallocateFlags::empty(), 0, len)?;
        }
        Ok(())
    }

    /// `backing`: its file's name as the header is to have it, and its format.
    fn format_qcow2(
        &self,
        size: u64,
        cluster: u32,
        backing: Option<(String, Format)>,
    ) -> std::io::Result<()> {
        let storage = imago::file::File::try_from(self.file.try_clone()?)?;
        let mut builder = Qcow2::<imago::file::File>::create_builder(storage);
        builder = builder.size(size).cluster_size(cluster as usize);
        if let Some((name, format)) = backing {
            builder = builder.backing(name, format.as_str().to_owned());
        }
        builder.create()
    }

    /// Makes sure that it is there after a crash.
    fn keep(mut self) -> anyhow::Result<()> {
        let folder = match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        self.file
            .sync_all()
            .and_then(|()| File::open(folder)?.sync_all())
            .with_context(|| format!("cannot write {}", self.path.display()))?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for New {
    fn drop(&mut self) {
        if !self.finished {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
#[path = "image_test.rs"]
mod image_test;
