//! A disk made of layers: a qcow2 image and the chain of images behind it.
//!
//! The imago crate knows the format; this module decides which files it may have, and when what it says about
//! them may be remembered. Called by `main` (open), by each queue ([`Mapper`]) and its [`lane`].
//!
//! Most requests never meet imago: where a piece of the disk lies as it is in one of the files, the queue
//! remembers that and goes to the file itself, as with a raw image. What takes more (allocating, decompressing,
//! reading the tables) goes to a thread of its own.
//!
//! ```text
//!   queue --remembered?--yes--> file (engine)
//!     |no                          ^
//!     v                            | where it lies
//!   lane --imago--> tables, data --+--> or: done
//! ```
//!
//! Refuses images whose header asks for what a guest or a stranger could abuse: a backing file without a stated
//! format, an external data file, a chain of more than [`MAX_LAYERS`].

mod deferred;
mod gate;
pub mod lane;
mod mapper;
mod node;

#[cfg(test)]
#[path = "layers_test.rs"]
mod layers_test;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, Mapping};

use crate::image::{Files, Format, Image, ImageError, ImageOptions};
use deferred::Deferred;
pub use gate::Gate;
pub use mapper::{Mapper, Place};
use node::Node;

/// Most images in a chain.
pub const MAX_LAYERS: usize = 16;
/// Pieces of the disk are remembered in this size, or the cluster size if that is smaller.
const GRANULE: u64 = 64 << 10;
/// Version counters; a piece of the disk shares one with others.
const VERSIONS: usize = 1024;

/// Why layers cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LayersError {
    /// One of the files cannot be opened.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The chain is too long, or goes in a circle.
    #[error("{}: more than {MAX_LAYERS} images behind one another", .0.display())]
    TooDeep(PathBuf),
    /// The header does not say what the backing file is.
    #[error("{}: its header does not state the format of its backing file; `qemu-img rebase -u -F FORMAT -b FILE` writes it", .0.display())]
    NoBackingFormat(PathBuf),
    /// A format nobody can read here.
    #[error("{}: a backing file of format {format:?}; raw and qcow2 are known", path.display())]
    BackingFormat {
        /// The image whose header says so.
        path: PathBuf,
        /// What it says.
        format: String,
    },
    /// The data is in another file.
    #[error("{}: images with an external data file are not served", .0.display())]
    ExternalData(PathBuf),
    /// Not a qcow2 image, or one that is broken.
    #[error("{}: cannot be read as qcow2", path.display())]
    Format {
        /// The image.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
}

/// An open chain.
#[derive(Debug)]
pub struct Layers {
    access: FormatAccess<Node>,
    /// Writes to the outer image's first table.
    deferred: Option<Arc<Deferred>>,
    /// Size of the pieces that are remembered, and its logarithm.
    granule: u64,
    granule_bits: u32,
    /// Moved on whenever what was remembered of a piece is no longer so.
    versions: Box<[AtomicU32]>,
    gate: Gate,
}

impl Layers {
    /// Opens the image and everything behind it. The files come back too, the image's own first.
    ///
    /// # Errors
    /// [`LayersError`], naming the file.
    pub fn open(options: &ImageOptions, queues: usize) -> Result<(Files, Self), LayersError> {
        let mut files = Vec::new();
        let outer = ImageOptions { format: Format::Qcow2, ..options.clone() };
        let Opened { access, cluster, deferred } = open_qcow2(&outer, &mut files)?;
        let layers = Self {
            access,
            deferred,
            granule: cluster.min(GRANULE),
            granule_bits: cluster.min(GRANULE).trailing_zeros(),
            versions: (0..VERSIONS).map(|_| AtomicU32::new(0)).collect(),
            gate: Gate::new(queues),
        };
        Ok((Files::new(files), layers))
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.access.size()
    }

    /// Makes the disk larger.
    ///
    /// # Errors
    /// imago's.
    pub fn grow(&self, bytes: u64) -> std::io::Result<u64> {
        // A table that moves is written at once, with all that leads to: the counts of that first.
        self.hand_over()?;
        self.access.resize_grow(bytes, imago::format::PreallocateMode::None)?;
        self.hand_over()?;
        Ok(self.access.size())
    }

    /// Gives the kernel all that only this process knows of the image.
    fn hand_over(&self) -> std::io::Result<()> {
        match &self.deferred {
            Some(deferred) => deferred.behind(|| self.access.flush()),
            None => self.access.flush(),
        }
    }

    /// Where requests that go to the files directly are counted.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    fn version(&self, granule: u64) -> &AtomicU32 {
        static NONE: AtomicU32 = AtomicU32::new(0);
        self.versions.get(granule as usize % VERSIONS).unwrap_or(&NONE)
    }

    /// What was remembered of these bytes is no longer so.
    fn forget(&self, offset: u64, len: u64) {
        let (first, last) = (offset / self.granule, offset.saturating_add(len).div_ceil(self.granule));
        // Each counter once is enough, however long the range.
        for granule in first..last.min(first + VERSIONS as u64) {
            self.version(granule).fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// One qcow2 image of a chain.
struct Opened {
    access: FormatAccess<Node>,
    /// Size of a cluster in bytes.
    cluster: u64,
    deferred: Option<Arc<Deferred>>,
}

/// Opens one qcow2 image and, recursively, what is behind it.
fn open_qcow2(options: &ImageOptions, files: &mut Vec<Arc<Image>>) -> Result<Opened, LayersError> {
    let image = open_file(options, files)?;
    let path = image.path();
    let broken = |source| LayersError::Format { path: path.to_owned(), source };
    let cluster = cluster_size(&image).map_err(broken)?;
    let deferred = match options.read_only {
        true => None,
        false => Some(Arc::new(Deferred::new(Arc::clone(&image)).map_err(broken)?)),
    };
    let node = Node::new(files.len() - 1, Arc::clone(&image), deferred.clone());
    let mut qcow2 =
        Qcow2::<Node, Arc<FormatAccess<Node>>>::open_image(node, !options.read_only).map_err(broken)?;
    if qcow2.requires_external_data_file() {
        return Err(LayersError::ExternalData(path.to_owned()));
    }
    let backing = match (qcow2.implicit_backing_file(), qcow2.implicit_backing_format()) {
        (None, _) => None,
        (Some(_), None) => return Err(LayersError::NoBackingFormat(path.to_owned())),
        (Some(file), Some(format)) => {
            let options = ImageOptions {
                path: beside(path, Path::new(file)),
                read_only: true,
                format: if format == "qcow2" { Format::Qcow2 } else { Format::Raw },
                cache: options.cache,
            };
            Some(match format.as_str() {
                "qcow2" => open_qcow2(&options, files)?.access,
                "raw" | "file" => {
                    let image = open_file(&options, files)?;
                    let node = Node::new(files.len() - 1, Arc::clone(&image), None);
                    let broken = |source| LayersError::Format { path: image.path().to_owned(), source };
                    FormatAccess::new(Raw::open_image(node, false).map_err(broken)?)
                }
                other => {
                    return Err(LayersError::BackingFormat {
                        path: path.to_owned(),
                        format: other.to_owned(),
                    });
                }
            })
        }
    };
    qcow2.set_backing(backing.map(Arc::new));
    Ok(Opened { access: FormatAccess::new(qcow2), cluster, deferred })
}

fn open_file(options: &ImageOptions, files: &mut Vec<Arc<Image>>) -> Result<Arc<Image>, LayersError> {
    if files.len() >= MAX_LAYERS {
        return Err(LayersError::TooDeep(options.path.clone()));
    }
    let image = Arc::new(Image::open(options)?);
    files.push(Arc::clone(&image));
    Ok(image)
}

/// A name in a header is relative to the image it is in.
fn beside(image: &Path, name: &Path) -> PathBuf {
    match image.parent() {
        Some(folder) if name.is_relative() => folder.join(name),
        _ => name.to_owned(),
    }
}

/// Bytes 20 to 23 of the header: the logarithm of the cluster size, big-endian.
fn cluster_size(image: &Image) -> std::io::Result<u64> {
    let mut header = [0; 24];
    image.read_at(&mut header, 0)?;
    let [.., b3, b2, b1, b0] = header;
    match u32::from_be_bytes([b3, b2, b1, b0]) {
        bits @ 9..=21 => Ok(1 << bits),
        _ => Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "its header is not that of a qcow2 image",
        )),
    }
}

/// Where imago says a piece lies, in our terms.
fn place(mapping: &Mapping<'_, Node>) -> Option<Place> {
    match mapping {
        Mapping::Raw { storage, offset, writable, .. } => {
            Some(Place::File { node: storage.index(), offset: *offset, writable: *writable })
        }
        Mapping::Zero { .. } => Some(Place::Zero),
        _ => None,
    }
}
