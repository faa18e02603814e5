//! `cargo xtask deb`: the Debian package, from the lists in `systemd/deb`, by `dpkg-deb`.
//!
//! Owns: building the programs for release, making what is made from them (man pages, completions, changelog),
//! putting every file of the list in its place, and the two figures of the control file. Called by `main`, and by the
//! tests with programs that are built already. Refuses a list that names a file there is none of.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use strata_rig::progress::{say, step};

/// What is packaged.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// `cargo xtask deb`
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Package the programs in this folder instead of building them for release
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// Where the package goes [default: target/debian]
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// What a package is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Packing {
    /// To be sent.
    Small,
    /// To be unpacked where time is dear.
    Quick,
}

/// Builds the package; says where it is.
///
/// # Errors
/// A tool is missing or fails, or the list names what is not there.
pub(crate) fn run(top: &Path, arguments: &Arguments) -> anyhow::Result<()> {
    let programs = match &arguments.programs {
        Some(folder) => folder.clone(),
        None => release(top)?,
    };
    let out = arguments.out.clone().unwrap_or_else(|| top.join("target/debian"));
    let package = package(top, &programs, &out, Packing::Small, VERSION)?;
    say(&format!("{}", package.display()));
    Ok(())
}

/// Builds the package of `programs` into `out`, `packed` so, as `version`.
///
/// # Errors
/// As [`run`].
pub(crate) fn package(
    top: &Path,
    programs: &Path,
    out: &Path,
    packed: Packing,
    version: &str,
) -> anyhow::Result<PathBuf> {
    let tree = tempfile::Builder::new().prefix("strata-deb-").tempdir()?;
    let made = tempfile::Builder::new().prefix("strata-made-").tempdir()?;
    make(&programs.join("strata"), top, made.path(), version)?;
    let list = fs::read_to_string(top.join("systemd/deb/install"))?;
    for line in entries(&list)? {
        place(&line, top, programs, made.path(), tree.path())?;
    }
    control(top, tree.path(), version)?;
    fs::create_dir_all(out)?;
    let package = out.join(format!("strata_{version}_amd64.deb"));
    let mut build = Command::new("dpkg-deb");
    build.args(match packed {
        Packing::Small => ["-Zxz", "-z2"].as_slice(),
        Packing::Quick => ["-Znone"].as_slice(),
    });
    build.args(["--root-owner-group", "--build"]).arg(tree.path()).arg(&package);
    output(&mut build)?;
    Ok(package)
}

fn release(top: &Path) -> anyhow::Result<PathBuf> {
    let packages = ["strata-cli", "strata-vmm", "strata-vhost-blk", "strata-vhost-net"];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(top).args(["build", "--release", "--locked", "--bins"]);
    cargo.args(packages.iter().flat_map(|package| ["-p", package]));
    step("cargo build --release", || checked(&mut cargo))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| top.join("target"), PathBuf::from);
    Ok(target.join("release"))
}

/// Man pages and completions, from the command's own description of itself.
fn make(strata: &Path, top: &Path, made: &Path, version: &str) -> anyhow::Result<()> {
    let man = made.join("man");
    fs::create_dir(&man)?;
    checked(Command::new(strata).arg("man").arg(&man))?;
    for page in fs::read_dir(&man)? {
        compress(&page?.path())?;
    }
    for (shell, file) in [("bash", "strata.bash"), ("zsh", "_strata"), ("fish", "strata.fish")] {
        let script = Command::new(strata).args(["completions", shell]).output()?;
        if !script.status.success() {
            bail!("strata completions {shell} failed");
        }
        fs::write(made.join(file), script.stdout)?;
    }
    let date = output(Command::new("git").current_dir(top).args(["log", "-1", "--format=%aD"]))
        .unwrap_or_else(|_| "Thu, 01 Jan 2026 00:00:00 +0000".to_owned());
    let changelog = made.join("changelog.Debian");
    fs::write(
        &changelog,
        format!(
            "strata ({version}) unstable; urgency=medium\n\n  * From the repository as it is.\n\n \
             -- Strata developers <strata@localhost>  {date}\n"
        ),
    )?;
    compress(&changelog)
}

fn compress(file: &Path) -> anyhow::Result<()> {
    // -n: no name and time in it, so the same input gives the same package.
    checked(Command::new("gzip").args(["-9n", "--force"]).arg(file))
}

/// One line of the list.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    from: String,
    to: String,
    mode: u32,
}

fn entries(list: &str) -> anyhow::Result<Vec<Entry>> {
    let lines = list.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines
        .map(|line| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
            [from, to, mode] => Ok(Entry {
                from: (*from).to_owned(),
                to: (*to).to_owned(),
                mode: u32::from_str_radix(mode, 8).with_context(|| format!("no mode: {line}"))?,
            }),
            _ => bail!("not `source place mode`: {line}"),
        })
        .collect()
}

fn place(entry: &Entry, top: &Path, programs: &Path, made: &Path, tree: &Path) -> anyhow::Result<()> {
    let (program, generated) = (entry.from.strip_prefix("BIN/"), entry.from.strip_prefix("MADE/"));
    let from = match (program, generated) {
        (Some(name), _) => programs.join(name),
        (_, Some(name)) => made.join(name),
        _ => top.join(&entry.from),
    };
    let to = tree.join(&entry.to);
    if !entry.from.ends_with('/') {
        return copy(&from, &to, entry.mode, program.is_some());
    }
    let mut files = fs::read_dir(&from)
        .with_context(|| format!("cannot list {}", from.display()))?
        .collect::<Result<Vec<_>, _>>()?;
    files.sort_by_key(fs::DirEntry::file_name);
    if files.is_empty() {
        bail!("{} is empty", from.display());
    }
    files.iter().try_for_each(|file| copy(&file.path(), &to.join(file.file_name()), entry.mode, false))
}

fn copy(from: &Path, to: &Path, mode: u32, program: bool) -> anyhow::Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    if program {
        let mut strip = Command::new("strip");
        checked(strip.args(["--strip-unneeded", "-o"]).arg(to).arg(from))?;
    } else {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    fs::set_permissions(to, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// The control file and the maintainer's scripts.
fn control(top: &Path, tree: &Path, version: &str) -> anyhow::Result<()> {
    let folder = tree.join("DEBIAN");
    let size = output(Command::new("du").args(["-sk", "--apparent-size"]).arg(tree))?;
    let size = size.split_whitespace().next().unwrap_or("0").to_owned();
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    let text = fs::read_to_string(top.join("systemd/deb/control"))?
        .replace("@VERSION@", version)
        .replace("@GLIBC@", &glibc(&tree.join("usr"))?)
        .replace("@SIZE@", &size);
    fs::write(folder.join("control"), text)?;
    for script in ["postinst", "prerm", "postrm"] {
        copy(&top.join("systemd/deb").join(script), &folder.join(script), 0o755, false)?;
    }
    Ok(())
}

/// The newest version of glibc that a program asks for.
fn glibc(usr: &Path) -> anyhow::Result<String> {
    let mut newest = (2, 0);
    for program in
        ["bin/strata", "libexec/strata/vmm", "libexec/strata/vhost-blk", "libexec/strata/vhost-net"]
    {
        let needs = output(Command::new("objdump").arg("-T").arg(usr.join(program)))?;
        let versions = needs
            .split("GLIBC_2.")
            .skip(1)
            .filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok());
        newest = versions.map(|minor| (2, minor)).fold(newest, Ord::max);
    }
    Ok(format!("{}.{}", newest.0, newest.1))
}

fn output(command: &mut Command) -> anyhow::Result<String> {
    let done = command.output().with_context(|| format!("cannot run {command:?}"))?;
    if !done.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&done.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim().to_owned())
}

fn checked(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?} failed: {status}");
    }
    Ok(())
}

#[cfg(test)]
mod deb_test {
    use super::*;

    #[test]
    fn the_list_names_only_what_there_is() {
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let list = entries(&fs::read_to_string(top.join("systemd/deb/install")).unwrap()).unwrap();
        for entry in &list {
            let made = entry.from.starts_with("BIN/") || entry.from.starts_with("MADE/");
            assert!(made || top.join(&entry.from).exists(), "{entry:?}");
            assert!(!entry.to.starts_with('/') && entry.mode & 0o022 == 0, "{entry:?}");
        }
        // Every unit is in a folder that is taken whole; nothing of systemd/ is forgotten but what builds the package.
        for name in fs::read_dir(top.join("systemd")).unwrap() {
            let name = name.unwrap().file_name().into_string().unwrap();
            assert!(
                name == "deb"
                    || list.iter().any(|entry| entry.from.trim_end_matches('/') == format!("systemd/{name}")),
                "systemd/{name} is not in the package"
            );
        }
    }

    #[test]
    fn a_line_has_three_words() {
        assert_eq!(entries("# c\n\na b/c 0755\n").unwrap().len(), 1);
        assert!(entries("a b\n").is_err());
        assert!(entries("a b 9\n").is_err());
    }
}
