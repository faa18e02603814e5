//! What an image is. Read only; the only parts of it that are believed are those that are shown.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use imago::FormatAccess;
use imago::qcow2::Qcow2;
use serde::Serialize;
use strata_config::Size;

use super::Format;
use crate::args::{Output, OutputArgs};
use crate::disk::bytes;
use crate::say::print;

/// As many as vhost-blk serves.
const MOST_LAYERS: usize = 16;

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// The image: a file or a block device
    image: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

/// One file of an image's chain.
#[derive(Debug, Serialize)]
pub(super) struct Layer {
    path: PathBuf,
    /// `qcow2` if it begins like one. vhost-blk does not take that for a reason: it wants to be told.
    format: &'static str,
    /// Size of the disk.
    pub(super) virtual_bytes: u64,
    /// Length of the file.
    file_bytes: u64,
    /// Storage it takes up; of a block device 0.
    allocated_bytes: u64,
    /// The rest is null for raw images.
    qcow2: Option<Header>,
}

#[derive(Debug, Serialize)]
struct Header {
    cluster_bytes: u64,
    backing_file: Option<String>,
    backing_format: Option<String>,
    snapshots: u32,
    /// It was not closed properly by a program that says so; `qemu-img check -r all` puts it right.
    dirty: bool,
    corrupt: bool,
    external_data_file: bool,
}

impl InfoArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let layers = chain(&self.image)?;
        match self.output.output {
            Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&layers)?))?,
            Output::Text => print(&text(&layers))?,
        }
        Ok(())
    }
}

/// The image and all that is behind it, as far as the headers say what that is.
fn chain(image: &Path) -> anyhow::Result<Vec<Layer>> {
    let mut layers = vec![Layer::read(image, None)?];
    while let Some((path, format)) = layers.last().and_then(Layer::behind) {
        if layers.len() >= MOST_LAYERS {
            bail!("more than {MOST_LAYERS} images behind one another, or in a circle");
        }
        layers.push(Layer::read(&path, Some(format))?);
    }
    Ok(layers)
}

impl Layer {
    /// Reads a file as what it begins like, unless its format is known.
    pub(super) fn read(path: &Path, format: Option<Format>) -> anyhow::Result<Self> {
        let file = open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let metadata = file.metadata()?;
        let file_bytes = (&mut &file).seek(SeekFrom::End(0))?;
        let mut layer = Self {
            path: path.to_owned(),
            format: Format::Raw.as_str(),
            virtual_bytes: file_bytes,
            file_bytes,
            allocated_bytes: metadata.blocks() * 512,
            qcow2: None,
        };
        if format.unwrap_or_else(|| Format::of_content(&file)) == Format::Qcow2 {
            let broken = || format!("{} cannot be read as qcow2", path.display());
            layer.format = Format::Qcow2.as_str();
            let (header, size) = Header::read(&file).with_context(broken)?;
            layer.virtual_bytes = size;
            layer.qcow2 = Some(header);
        }
        Ok(layer)
    }

    /// What is behind it, if its header says where and what that is.
    fn behind(&self) -> Option<(PathBuf, Format)> {
        let header = self.qcow2.as_ref()?;
        let name = Path::new(header.backing_file.as_deref()?);
        let format = match header.backing_format.as_deref()? {
            "qcow2" => Format::Qcow2,
            "raw" | "file" => Format::Raw,
            _ => return None,
        };
        Some((self.path.parent().map_or_else(|| name.to_owned(), |folder| folder.join(name)), format))
    }
}

/// A file or block device; nothing whose opening does something, or waits.
fn open(path: &Path) -> std::io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    let what = file.metadata()?.file_type();
    if what.is_file() || what.is_block_device() {
        return Ok(file);
    }
    Err(std::io::Error::other("it is neither a file nor a block device"))
}

impl Header {
    /// The header's own fields, and the size of the disk.
    fn read(file: &File) -> std::io::Result<(Self, u64)> {
        // docs/interop/qcow2.txt of QEMU: version at 4, cluster_bits at 20, nb_snapshots at 60, and from version 3 on
        // incompatible_features at 72 (bit 0 dirty, bit 1 corrupt).
        let word = |at| -> std::io::Result<u32> {
            let mut bytes = [0; 4];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u32::from_be_bytes(bytes))
        };
        let (version, cluster_bits, snapshots) = (word(4)?, word(20)?, word(60)?);
        let features = if version >= 3 { word(76)? } else { 0 };
        let storage = imago::file::File::try_from(file.try_clone()?)?;
        let qcow2 = Qcow2::<imago::file::File>::open_image(storage, false)?;
        let header = Self {
            cluster_bytes: 1u64.checked_shl(cluster_bits).unwrap_or(0),
            backing_file: qcow2.implicit_backing_file().cloned(),
            backing_format: qcow2.implicit_backing_format().cloned(),
            snapshots,
            dirty: features & 1 != 0,
            corrupt: features & 2 != 0,
            external_data_file: qcow2.requires_external_data_file(),
        };
        Ok((header, FormatAccess::new(qcow2).size()))
    }
}

fn text(layers: &[Layer]) -> String {
    let mut text = String::new();
    for (depth, layer) in layers.iter().enumerate() {
        let indent = "  ".repeat(depth);
        let mut line = |words: String| text.push_str(&format!("{indent}{words}\n"));
        line(format!(
            "{}: {}, disk of {} ({} bytes), takes up {}",
            layer.path.display(),
            layer.format,
            exact(layer.virtual_bytes),
            layer.virtual_bytes,
            bytes(layer.allocated_bytes),
        ));
        let Some(header) = &layer.qcow2 else { continue };
        line(format!("  clusters of {}", Size(header.cluster_bytes)));
        if header.snapshots > 0 {
            line(format!("  {} internal snapshots", header.snapshots));
        }
        if header.external_data_file {
            line("  its data is in another file; vhost-blk does not serve such images".to_owned());
        }
        if header.corrupt || header.dirty {
            let what = if header.corrupt { "marked as corrupt" } else { "was not closed properly" };
            line(format!("  {what}; `qemu-img check -r all` looks after it"));
        }
        if let Some(file) = &header.backing_file {
            line(match &header.backing_format {
                Some(format) => format!("  over {file} ({format}):"),
                None => format!("  over {file}, of a format that is not stated; vhost-blk refuses that"),
            });
        }
    }
    text
}

/// The exact size where it has a short form.
fn exact(size: u64) -> String {
    if size.is_multiple_of(1 << 20) { Size(size).to_string() } else { bytes(size) }
}

/// Formats and sizes of a chain.
#[cfg(test)]
pub(super) fn chain_of(image: &Path) -> Vec<(&'static str, u64)> {
    chain(image).unwrap().iter().map(|layer| (layer.format, layer.virtual_bytes)).collect()
}

/// The backing file a header names, and its format.
#[cfg(test)]
pub(super) fn header_of(image: &Path) -> (Option<String>, Option<String>) {
    let header = Layer::read(image, None).unwrap().qcow2.unwrap();
    (header.backing_file, header.backing_format)
}
