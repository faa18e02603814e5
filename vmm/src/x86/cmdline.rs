//! The guest's command line: the user's words, and before them what saves the guest exits or gives it a console.
//!
//! Ours come first: the kernel lets later words win, and everything after `--` belongs to init. A key the user
//! gave in any form is left alone. Nothing is added that the kernel does not document.

/// What the additions depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// There is a virtio console.
    pub console: bool,
    /// There is an 8250 UART.
    pub serial: bool,
}

struct Addition {
    word: &'static str,
    wanted: fn(Facts) -> bool,
}

/// Each with its reason.
const ADDITIONS: [Addition; 6] = [
    // Something has to show the boot messages; nothing does if no console is named and there is no VGA.
    Addition { word: "console=hvc0", wanted: |facts| facts.console && !facts.serial },
    Addition { word: "console=ttyS0", wanted: |facts| facts.serial },
    // The driver otherwise probes four ports that are not there: about 80 port exits.
    Addition { word: "8250.nr_uarts=0", wanted: |facts| !facts.serial },
    // The kernel otherwise looks for chipset quirks on 32 devices through ports that are not there: 64 port exits.
    Addition { word: "pci=noearly", wanted: |_| true },
    // Linux takes hardware-reduced ACPI for a machine with EFI and would not use our reset register.
    Addition { word: "reboot=acpi", wanted: |_| true },
    // The kernel otherwise holds the TSC against another clock twice a second, unless the host's is known never to stop:
    // an idle guest's second costs some seven exits more. Its time is kvm-clock's, which the host keeps right.
    Addition { word: "tsc=nowatchdog", wanted: |_| true },
];

/// A command line that does not fit.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the kernel's command line has {length} bytes, {added} of them added by the vmm; this kernel takes {limit}"
)]
pub struct TooLong {
    /// Bytes in all.
    pub length: usize,
    /// Bytes that are ours.
    pub added: usize,
    /// Bytes the kernel takes.
    pub limit: usize,
}

/// The command line the kernel gets.
///
/// # Errors
/// It is longer than `limit`.
pub fn complete(user: &str, facts: Facts, limit: usize) -> Result<String, TooLong> {
    let mut words: Vec<&str> =
        ADDITIONS.iter().filter(|a| (a.wanted)(facts) && !has_key(user, a.word)).map(|a| a.word).collect();
    let added = words.iter().map(|word| word.len() + 1).sum();
    if !user.is_empty() {
        words.push(user);
    }
    let line = words.join(" ");
    if line.len() > limit {
        return Err(TooLong { length: line.len(), added, limit });
    }
    Ok(line)
}

/// Whether the user set the key of `word`. As in the kernel, `-` and `_` are the same in a key.
fn has_key(user: &str, word: &str) -> bool {
    let key = |word: &str| word.split('=').next().unwrap_or_default().replace('-', "_");
    let ours = key(word);
    words(user).take_while(|word| *word != "--").any(|word| key(word) == ours)
}

/// Seconds the guest waits after a panic before it resets itself (`panic=`); 0: it never does.
#[must_use]
pub fn panic_timeout(user: &str) -> i64 {
    words(user)
        .take_while(|word| *word != "--")
        .filter_map(|word| word.strip_prefix("panic=")?.parse().ok())
        .last()
        .unwrap_or(0)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    // Quotes may hide spaces, but no key of ours.
    line.split_ascii_whitespace()
}

#[cfg(test)]
#[path = "cmdline_test.rs"]
mod cmdline_test;
