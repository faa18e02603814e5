//! An empty image over another: what a node gets of a golden image.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use strata_config::Size;

use super::info::Layer;
use super::{ClusterArgs, Format, New, SECTOR};
use crate::say::print;

#[derive(Debug, Args)]
pub(crate) struct OverlayArgs {
    /// The image below, which from then on is only read
    base: PathBuf,
    /// The new image
    image: PathBuf,
    /// What the base is [default: what its name and its first bytes agree on]
    #[arg(long, value_enum)]
    base_format: Option<Format>,
    /// The disk's size, at least the base's [default: the base's]
    #[arg(long)]
    size: Option<Size>,
    #[command(flatten)]
    cluster: ClusterArgs,
}

impl OverlayArgs {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let base = self.base.canonicalize().with_context(|| format!("no base {}", self.base.display()))?;
        let format = self.format(&base)?;
        let has = Layer::read(&base, Some(format))?.virtual_bytes;
        // A sector that is not whole is not seen by the guest of the base either.
        let size = self.size.map_or(has / SECTOR * SECTOR, |Size(size)| size);
        if size < has / SECTOR * SECTOR {
            bail!("--size {} is less than the {has} bytes of {}", Size(size), self.base.display());
        }
        if size == 0 {
            bail!("{} holds not one sector", self.base.display());
        }
        let name = self.name_of(&base)?;
        let made = New::make(&self.image)?;
        made.format_qcow2(size, self.cluster.cluster_size, Some((name, format)))
            .with_context(|| format!("cannot make {}", self.image.display()))?;
        made.keep()?;
        let (image, base) = (self.image.display(), base.display());
        print(&format!("{image}: qcow2, {size} bytes, over {base} ({})\n", format.as_str()))
            .map_err(Into::into)
    }

    /// A guest can write a qcow2 header into its raw disk, and with it name any file of this host as what is behind.
    /// So content alone is no reason to take a base for qcow2.
    fn format(&self, base: &Path) -> anyhow::Result<Format> {
        if let Some(format) = self.base_format {
            return Ok(format);
        }
        let file = File::open(base).with_context(|| format!("cannot open {}", base.display()))?;
        match (Format::of_name(base), Format::of_content(&file)) {
            (Format::Raw, Format::Qcow2) => bail!(
                "{} begins like a qcow2 image, and its name does not say so; give --base-format qcow2 or raw",
                base.display()
            ),
            (Format::Qcow2, Format::Raw) => bail!(
                "{} does not begin like a qcow2 image, and its name says it is one; give --base-format raw to take it \
                 as it is",
                base.display()
            ),
            (format, _) => Ok(format),
        }
    }

    /// What the header says: just the name for a base in the same folder, so that both can be moved together.
    fn name_of(&self, base: &Path) -> anyhow::Result<String> {
        let image = std::path::absolute(&self.image)?;
        let folder = image.parent().context("the image has no folder")?;
        let beside = folder.canonicalize().is_ok_and(|folder| base.parent() == Some(&folder));
        let name = match base.file_name() {
            Some(name) if beside => Path::new(name),
            _ => base,
        };
        let name = name.to_str().with_context(|| format!("{} is not UTF-8", base.display()))?;
        if name.len() > 1023 {
            bail!("{name}: a qcow2 header holds names of at most 1023 bytes");
        }
        Ok(name.to_owned())
    }
}
