//! Debian packages the tests need, installed when they are missing.
//!
//! Owns: nothing but one line in apt's sources (backports, on Debian 12, when QEMU would be too old). Called by:
//! `setup`. Refuses: any system without apt, and to guess a root password: without root or `sudo` it says what is
//! missing and stops.

use std::fs;
use std::process::Command;

use anyhow::{Context, bail};

use crate::progress::{say, step};
use crate::tool;

/// What the rig and the guests need. QEMU comes on top, because its version matters.
const NEEDED: &[&str] = &[
    "acpica-tools",
    "busybox-static",
    "kmod",
    "xz-utils",
    "zstd",
    "lz4",
    "e2fsprogs",
    "iproute2",
    "tshark",
    "util-linux",
];
const QEMU: &[&str] = &["qemu-system-x86", "qemu-utils"];
/// QEMU 7.2's multi-threaded TCG breaks the kernel's patching of its own text.
const QEMU_MAJOR: u32 = 10;

/// Installs what is missing of the packages all tests need, and of `extra`.
///
/// # Errors
/// If something is missing and cannot be installed, with the command that would.
pub fn ensure(extra: &[&str]) -> anyhow::Result<()> {
    let missing: Vec<&str> = NEEDED.iter().chain(extra).copied().filter(|name| !installed(name)).collect();
    let qemu_missing = qemu_major().unwrap_or(0) < QEMU_MAJOR || !installed("qemu-utils");
    if missing.is_empty() && !qemu_missing {
        return Ok(());
    }
    let apt = Apt::new(&missing, qemu_missing)?;
    step("apt-get update", || apt.run(&["update", "-qq"]))?;
    if !missing.is_empty() {
        step(&format!("apt-get install {}", missing.join(" ")), || apt.install(&[], &missing))?;
    }
    if qemu_missing {
        install_qemu(&apt)?;
    }
    Ok(())
}

/// Installs `name` alone, for a command that needs nothing of the rig.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_one(name: &str) -> anyhow::Result<()> {
    if installed(name) {
        return Ok(());
    }
    let apt = Apt::new(&[name], false)?;
    step("apt-get update", || apt.run(&["update", "-qq"]))?;
    step(&format!("apt-get install {name}"), || apt.install(&[], &[name]))
}

fn install_qemu(apt: &Apt) -> anyhow::Result<()> {
    let codename = codename();
    let backports = format!("{codename}-backports");
    if madison("qemu-system-x86")?.iter().all(|(version, _)| major(version) < QEMU_MAJOR) {
        step(&format!("{codename}'s QEMU is too old for the rig; adding {backports}"), || {
            let (uri, signed_by) = source_of(&codename)?;
            apt.add_source(&format!("deb {signed_by}{uri} {backports} main\n"))?;
            apt.run(&["update", "-qq"])
        })?;
    }
    let versions = madison("qemu-system-x86")?;
    let Some((_, suite)) = versions.iter().find(|(version, _)| major(version) >= QEMU_MAJOR) else {
        bail!("no QEMU {QEMU_MAJOR} or newer in apt's sources, and the rig needs one: add {backports}");
    };
    let target = if suite.contains("backports") { vec!["-t", backports.as_str()] } else { Vec::new() };
    step("apt-get install QEMU", || apt.install(&target, QEMU))
}

/// Makes sure package lists are there to download from.
///
/// # Errors
/// If they are not and cannot be fetched.
pub fn ensure_lists() -> anyhow::Result<()> {
    if tool::text(tool::command("apt-cache").args(["pkgnames", "linux-image-"]))?.trim().is_empty() {
        let apt = Apt::new(&[], false)?;
        step("apt-get update", || apt.run(&["update", "-qq"]))?;
    }
    Ok(())
}

/// True if dpkg has `name` installed.
pub fn installed(name: &str) -> bool {
    tool::text(tool::command("dpkg-query").args(["-W", "-f=${db:Status-Status}", name]))
        .is_ok_and(|status| status == "installed")
}

fn qemu_major() -> Option<u32> {
    let text = tool::text(tool::command("qemu-system-x86_64").arg("--version")).ok()?;
    let version = text.split("version ").nth(1)?;
    Some(major(version))
}

/// The major number of a Debian version: `1:10.0.2+ds-2` is 10.
fn major(version: &str) -> u32 {
    let upstream = version.split_once(':').map_or(version, |(_, rest)| rest);
    upstream.split(|c: char| !c.is_ascii_digit()).next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// (version, suite) of each version apt could install.
fn madison(name: &str) -> anyhow::Result<Vec<(String, String)>> {
    let listing = tool::text(tool::command("apt-cache").args(["madison", name]))?;
    let row = |line: &str| {
        let mut columns = line.split('|').map(str::trim);
        let (_, version, source) = (columns.next()?, columns.next()?, columns.next()?);
        Some((version.to_owned(), source.split_whitespace().nth(1).unwrap_or_default().to_owned()))
    };
    Ok(listing.lines().filter_map(row).collect())
}

/// This Debian's name: `bookworm`, `trixie`.
pub fn codename() -> String {
    os_release("VERSION_CODENAME").unwrap_or_default()
}

fn os_release(key: &str) -> Option<String> {
    let text = fs::read_to_string("/etc/os-release").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(line.trim_matches('"').to_owned())
}

/// The mirror this system uses for `codename`, and the `[signed-by=...] ` part of its source line.
///
/// # Errors
/// If apt's sources do not mention it.
pub fn source_of(codename: &str) -> anyhow::Result<(String, String)> {
    let mut texts = vec![fs::read_to_string("/etc/apt/sources.list").unwrap_or_default()];
    for entry in fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten() {
        texts.push(fs::read_to_string(entry.path()).unwrap_or_default());
    }
    texts.iter().find_map(|text| one_line(text, codename).or_else(|| stanza(text, codename))).with_context(|| {
        format!("no source of {codename} in /etc/apt; add {codename}-backports by hand (QEMU {QEMU_MAJOR} is needed)")
    })
}

fn one_line(text: &str, codename: &str) -> Option<(String, String)> {
    text.lines().find_map(|line| {
        let mut words = line.strip_prefix("deb ")?.split_whitespace();
        let mut uri = words.next()?;
        let mut options = String::new();
        if uri.starts_with('[') {
            options = format!("{uri} ");
            while !options.trim_end().ends_with(']') {
                options.push_str(&format!("{} ", words.next()?));
            }
            uri = words.next()?;
        }
        (words.next()? == codename).then(|| (uri.to_owned(), options))
    })
}

fn stanza(text: &str, codename: &str) -> Option<(String, String)> {
    text.split("\n\n").find_map(|stanza| {
        let field = |name: &str| {
            stanza.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let suites = field("Suites")?;
        suites.split_whitespace().find(|suite| *suite == codename)?;
        let uri = field("URIs")?.split_whitespace().next()?;
        let signed = field("Signed-By").map(|key| format!("[signed-by={key}] ")).unwrap_or_default();
        Some((uri.to_owned(), signed))
    })
}

/// apt-get as root, directly or through sudo.
struct Apt {
    sudo: bool,
}

impl Apt {
    fn new(missing: &[&str], qemu: bool) -> anyhow::Result<Self> {
        if tool::find("apt-get").is_none() {
            bail!(
                "this set-up knows Debian only (no apt-get here); needed are: {NEEDED:?}, QEMU {QEMU_MAJOR} or newer"
            );
        }
        if is_root() {
            return Ok(Self { sudo: false });
        }
        if tool::output(tool::command("sudo").args(["-n", "true"])).is_ok() {
            say("not root: using sudo for apt-get");
            return Ok(Self { sudo: true });
        }
        let qemu = if qemu {
            " qemu-system-x86 qemu-utils (version 10 or newer; Debian 12: from backports)"
        } else {
            ""
        };
        bail!(
            "packages are missing and neither root nor sudo is to be had; as root: apt-get install {}{qemu}",
            missing.join(" ")
        );
    }

    fn command(&self, program: &str) -> Command {
        if self.sudo {
            let mut command = tool::command("sudo");
            command.args(["-n", program]);
            return command;
        }
        tool::command(program)
    }

    fn run(&self, args: &[&str]) -> anyhow::Result<()> {
        let mut command = self.command("env");
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]).args(args);
        tool::output(&mut command).map(drop)
    }

    fn install(&self, options: &[&str], names: &[&str]) -> anyhow::Result<()> {
        self.run(&[&["install", "-qq", "--no-install-recommends"], options, names].concat())
    }

    fn add_source(&self, line: &str) -> anyhow::Result<()> {
        let script = "printf %s \"$0\" > /etc/apt/sources.list.d/strata-backports.list";
        tool::output(self.command("sh").args(["-c", script, line])).map(drop)
    }
}

/// True if this process is root.
pub fn is_root() -> bool {
    tool::text(tool::command("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

#[cfg(test)]
#[path = "packages_test.rs"]
mod packages_test;
