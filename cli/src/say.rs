//! Standard error, one whole line at a time, whoever writes; and results on standard output.

use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line. Nobody listening is no reason to fail.
pub(crate) fn say(line: impl Display) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes a command's result. A reader that has seen enough (`strata ps | head -1`) is no failure.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}
