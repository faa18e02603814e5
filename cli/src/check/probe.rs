#![allow(unsafe_code)] // one system call without a wrapper: asking Landlock for its version
//! What can only be known by trying: the sandbox, io_uring, Landlock.
//!
//! The sandbox is tried by a process of its own (`strata check --probe`), because it takes everything away for good
//! and ends whoever breaks its rules.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use strata_sandbox::{Role, Spec};

use super::facts::Sandbox;

/// The probe's words, each on a line of its own.
const ISOLATED: &str = "isolated";
const HUGE: &str = "huge";
const SMALL: &str = "small ";
const LOCKED: &str = "locked";
const FAILED: &str = "failed ";

/// Starts the probe and reads what it says.
pub(super) fn sandbox() -> Sandbox {
    let probe = std::env::current_exe().and_then(|program| {
        let mut command = Command::new(program);
        command.args(["check", "--probe"]).stdin(Stdio::null()).stderr(Stdio::null()).output()
    });
    match probe {
        Ok(output) => {
            let signal = output.status.signal().or(output
                .status
                .code()
                .filter(|code| *code > 128)
                .map(|code| code - 128));
            read(&String::from_utf8_lossy(&output.stdout), signal)
        }
        Err(error) => Sandbox::Untried(error.to_string()),
    }
}

/// Makes sense of the probe's words.
pub(super) fn read(text: &str, signal: Option<i32>) -> Sandbox {
    let says = |word: &str| text.lines().any(|line| line == word);
    let rest = |word: &str| text.lines().find_map(|line| line.strip_prefix(word)).map(str::to_owned);
    if let Some(why) = rest(FAILED) {
        return Sandbox::Refused(why);
    }
    if says(LOCKED) {
        let huge = if says(HUGE) { Ok(()) } else { Err(rest(SMALL).unwrap_or_default()) };
        return Sandbox::Works { huge };
    }
    let signal = signal.map(|signal| format!(" with signal {signal}")).unwrap_or_default();
    let at = if says(ISOLATED) { "its system call filter" } else { "its namespaces" };
    Sandbox::Refused(format!("a process ended{signal} on entering {at}"))
}

/// The probe itself: enters the sandbox as the vmm does and says how far it came.
pub(super) fn probe() -> std::io::Result<()> {
    use std::io::Write;
    let say = |line: &str| std::io::stdout().write_all(format!("{line}\n").as_bytes());
    let isolated = match strata_sandbox::isolate(Spec::new(Role::Vmm)) {
        Ok(isolated) => isolated,
        Err(error) => return say(&format!("{FAILED}{}", chain(&error))),
    };
    say(ISOLATED)?;
    match isolated.private_tmpfs_huge(2 << 20) {
        Ok(_) => say(HUGE)?,
        Err(error) => say(&format!("{SMALL}{error}"))?,
    }
    match isolated.lock() {
        Ok(()) => say(LOCKED),
        Err(error) => say(&format!("{FAILED}{}", chain(&error))),
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text.replace('\n', " ")
}

/// Why no ring can be made; `None` if one can.
pub(super) fn io_uring() -> Option<String> {
    io_uring::IoUring::new(1).err().map(|error| error.to_string())
}

/// landlock_create_ruleset(2): no attributes and LANDLOCK_CREATE_RULESET_VERSION ask for the ABI's version.
pub(super) fn landlock() -> Option<u32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the kernel takes no pointer and makes no descriptor.
    let abi =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION) };
    u32::try_from(abi).ok().filter(|abi| *abi > 0)
}
