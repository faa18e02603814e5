//! Machine files in a folder: `NAME.toml`, with what lies over it in `NAME.toml.d/*.toml`, in order of their names.

use std::io;
use std::path::{Path, PathBuf};

use strata_config::{ConfigError, Machine, MachineFile, Name};

/// The machines there are files for; a file whose name is no machine's is passed over.
pub(super) fn names(folder: &Path) -> io::Result<Vec<Name>> {
    let mut names: Vec<Name> =
        toml_files(folder)?.iter().filter_map(|path| path.file_stem()?.to_str()?.parse().ok()).collect();
    names.sort();
    Ok(names)
}

/// The machine of this name. The name is the file's, whatever is in it: it is the unit's instance.
pub(super) fn read(folder: &Path, name: &Name) -> Result<Machine, ConfigError> {
    let path = folder.join(format!("{name}.toml"));
    let mut file = MachineFile::from_file(&path)?;
    let over = folder.join(format!("{name}.toml.d"));
    for path in toml_files(&over).map_err(|source| ConfigError::Read { path: over, source })? {
        let mut over = MachineFile::from_file(&path)?;
        over.name = None;
        file.overlay(over);
    }
    file.name = Some(name.to_string());
    file.try_into()
}

fn toml_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|suffix| suffix == "toml") && !path.is_dir() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}
