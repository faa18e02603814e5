//! Programs of the host, run with errors that name the program and show what it said.
//!
//! Owns: nothing. Called by: all set-up steps.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail};

/// A command with nothing on its standard input.
pub fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// Runs to the end and gives what it printed.
///
/// # Errors
/// If it cannot be started or fails; the text holds the end of its standard error.
pub fn output(command: &mut Command) -> anyhow::Result<Output> {
    let words = describe(command);
    let output = command.output().with_context(|| format!("cannot run `{words}`"))?;
    if !output.status.success() {
        let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        let lines: Vec<&str> = said.lines().collect();
        let tail = lines.iter().skip(lines.len().saturating_sub(15)).copied().collect::<Vec<_>>().join("\n");
        bail!("`{words}` failed ({}):\n{tail}", output.status);
    }
    Ok(output)
}

/// Runs to the end and gives its standard output as text.
///
/// # Errors
/// As [`output`].
pub fn text(command: &mut Command) -> anyhow::Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?.stdout).into_owned())
}

/// Runs to the end with its output going to ours, for programs that take a while and say so.
///
/// # Errors
/// If it cannot be started or fails.
pub fn visible(command: &mut Command) -> anyhow::Result<()> {
    let words = describe(command);
    let status = command.status().with_context(|| format!("cannot run `{words}`"))?;
    if !status.success() {
        bail!("`{words}` failed ({status})");
    }
    Ok(())
}

/// Where `name` is on the PATH (also looks into the sbin folders, which a user's PATH lacks).
pub fn find(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Path::new).map(Path::to_path_buf);
    std::env::split_paths(&path).chain(sbin).map(|dir| dir.join(name)).find(|file| file.is_file())
}
