//! Where the other programs are.

use std::path::PathBuf;

/// A program of ours is in none of the places.
#[derive(Debug, thiserror::Error)]
#[error("cannot find the program {name} (looked in {looked}); install Strata whole, or set STRATA_LIBEXEC")]
pub(crate) struct ProgramMissing {
    name: &'static str,
    looked: String,
}

/// The path of `vmm`, `vhost-blk` or `vhost-net`: in STRATA_LIBEXEC if that is set, else beside this executable,
/// else in `../libexec/strata` from there.
pub(crate) fn find(name: &'static str) -> Result<PathBuf, ProgramMissing> {
    let folders = match std::env::var_os("STRATA_LIBEXEC").filter(|path| !path.is_empty()) {
        Some(folder) => vec![PathBuf::from(folder)],
        None => {
            let own = std::env::current_exe().ok().and_then(|path| path.parent().map(PathBuf::from));
            own.into_iter().flat_map(|folder| [folder.clone(), folder.join("../libexec/strata")]).collect()
        }
    };
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
        ProgramMissing { name, looked: looked.join(", ") }
    })
}
