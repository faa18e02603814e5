//! Kernel modules out of an unpacked kernel package, unpacked and in the order in which they load.
//!
//! Called by: initramfs builders. Leaves dependencies to `modprobe --show-depends`, which reads the package's own
//! `modules.dep` and knows soft dependencies and built-ins.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::tool;

/// One module file, ready for `insmod`.
pub struct Module {
    /// The file's name, `virtio_blk.ko`.
    pub file: String,
    /// Its content, unpacked.
    pub content: Vec<u8>,
}

/// The one release below `tree/lib/modules`.
///
/// # Errors
/// If there is none or more than one.
pub fn release(tree: &Path) -> anyhow::Result<String> {
    let dir = tree.join("lib/modules");
    let mut names = fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<Vec<_>>>()?;
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        _ => bail!("{} should hold exactly one kernel release", dir.display()),
    }
}

/// The modules `wanted` and all they depend on, in loading order, each once.
///
/// # Errors
/// If the kernel has no module of such a name, neither as a file nor built in.
pub fn ordered(tree: &Path, wanted: &[&str]) -> anyhow::Result<Vec<Module>> {
    let release = release(tree)?;
    let (mut seen, mut modules) = (BTreeSet::new(), Vec::new());
    for name in wanted {
        let mut modprobe = tool::command("modprobe");
        modprobe.arg("--dirname").arg(tree).args(["--set-version", &release, "--show-depends", name]);
        let listing =
            tool::text(&mut modprobe).with_context(|| format!("kernel {release} has no module {name}"))?;
        for path in listing.lines().filter_map(insmod_line) {
            if seen.insert(path.clone()) {
                modules.push(read(&path)?);
            }
        }
    }
    Ok(modules)
}

/// `insmod /a/b.ko [options]` gives the path; `builtin name` gives none.
fn insmod_line(line: &str) -> Option<PathBuf> {
    let rest = line.strip_prefix("insmod ")?;
    rest.split_whitespace().next().map(PathBuf::from)
}

fn read(path: &Path) -> anyhow::Result<Module> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let unpacker = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Some("xz"),
        Some("zst") => Some("zstd"),
        Some("gz") => Some("gzip"),
        _ => None,
    };
    let content = match unpacker {
        Some(program) => tool::output(tool::command(program).arg("-dc").arg(path))?.stdout,
        None => fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
    };
    let content = unsigned(content);
    let file = match name.find(".ko") {
        Some(at) => name.get(..at + 3).unwrap_or(&name).to_owned(),
        None => name,
    };
    Ok(Module { file, content })
}

/// A module's content without the signature at its end (kernel, `scripts/sign-file.c`). Checking one takes a kernel
/// twenty million instructions, in software as everything else in the rig.
fn unsigned(mut content: Vec<u8>) -> Vec<u8> {
    const MAGIC: &[u8] = b"~Module signature appended~\n";
    /// `struct module_signature`, whose last word is the signature's length, big-endian.
    const DESCRIPTION: usize = 12;
    let Some(rest) = content.strip_suffix(MAGIC) else { return content };
    let length = rest.last_chunk().map_or(0, |word| u32::from_be_bytes(*word) as usize);
    if let Some(end) = rest.len().checked_sub(DESCRIPTION + length) {
        content.truncate(end);
    }
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_cut_off_and_nothing_else() {
        let signed = [
            b"\x7fELF module".as_slice(),
            &[7; 300],
            &[0; 8],
            &300_u32.to_be_bytes(),
            b"~Module signature appended~\n",
        ];
        assert_eq!(unsigned(signed.concat()), b"\x7fELF module");
        assert_eq!(unsigned(b"plain".to_vec()), b"plain");
        let short = [&u32::MAX.to_be_bytes(), b"~Module signature appended~\n".as_slice()].concat();
        assert_eq!(unsigned(short.clone()), short);
    }

    #[test]
    fn only_insmod_lines_name_files() {
        assert_eq!(insmod_line("insmod /lib/a.ko.xz opt=1"), Some(PathBuf::from("/lib/a.ko.xz")));
        assert_eq!(insmod_line("builtin ext4"), None);
    }

    #[test]
    fn a_tree_without_modules_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(release(dir.path()).is_err());
        fs::create_dir_all(dir.path().join("lib/modules/6.1")).unwrap();
        assert_eq!(release(dir.path()).unwrap(), "6.1");
        fs::create_dir_all(dir.path().join("lib/modules/6.2")).unwrap();
        assert!(release(dir.path()).is_err());
    }
}
