//! `cargo test` for everything that needs no guest, with its results counted.
//!
//! Called by: `test`. libtest has no notion of skipping at run time, so by convention a test that cannot run here
//! prints a line `skipped: why` and returns; such a test is counted as skipped, not as passed.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::Context;
use strata_rig::Place;
use strata_rig::progress::say;

use crate::counts::Counts;

/// Runs them; the full output goes to a log, failures are shown.
///
/// # Errors
/// If cargo cannot be run.
pub(crate) fn run(place: &Place, filters: &[String]) -> anyhow::Result<Counts> {
    let log_path = place.cache().join("native-tests.log");
    let mut log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let mut cargo = Command::new("cargo");
    cargo.args(["test", "--workspace", "--no-fail-fast", "--"]).args(filters).arg("--show-output");
    cargo.current_dir(place.root()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = cargo.spawn().context("cannot run cargo")?;
    let errors = child.stderr.take().context("cargo has no standard error")?;
    let (echo, path) = (log.try_clone()?, log_path.display().to_string());
    let stderr = std::thread::spawn(move || copy(errors, echo));
    let mut reader = Reader::default();
    for line in BufReader::new(child.stdout.take().context("cargo has no output")?).lines() {
        let line = line?;
        writeln!(log, "{line}")?;
        reader.line(&line);
    }
    let status = child.wait()?;
    let said = stderr.join().unwrap_or_default();
    let mut counts = reader.counts;
    if !status.success() && counts.failed.is_empty() {
        counts.failed.push(format!("cargo test ended with {status}:\n{said}"));
    }
    say(&format!("native tests: {counts}; all they said is in {path}"));
    Ok(counts)
}

fn copy(from: impl std::io::Read, mut to: File) -> String {
    let mut tail = Vec::new();
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        let _ = writeln!(to, "{line}");
        // "error: test failed, to rerun pass ..." names the binary; compiler errors are long.
        tail.push(line);
        if tail.len() > 60 {
            tail.remove(0);
        }
    }
    tail.join("\n")
}

/// Reads libtest's text.
///
/// ```text
/// test queue::x ... ok                      one line per test
/// successes:
/// ---- queue::x stdout ----                 what passing tests printed
/// skipped: no /dev/net/tun
/// failures:
/// ---- queue::y stdout ----                 what failing tests printed
/// test result: FAILED. 12 passed; 1 failed; 0 ignored; ...
/// ```
#[derive(Default)]
struct Reader {
    counts: Counts,
    section: Section,
    test: String,
    not_really: u64,
}

#[derive(Default, PartialEq, Eq)]
enum Section {
    #[default]
    List,
    Successes,
    Failures,
}

impl Reader {
    fn line(&mut self, line: &str) {
        if let Some(rest) = line.strip_prefix("test result: ") {
            self.section = Section::List;
            let number = |word: &str| -> u64 {
                let mut parts = rest.split([';', '.']);
                let found = parts.find_map(|part| part.trim().strip_suffix(word)?.trim().parse().ok());
                found.unwrap_or(0)
            };
            // What passed by returning early was skipped.
            self.counts.passed += number("passed").saturating_sub(std::mem::take(&mut self.not_really));
            return;
        }
        match line {
            "successes:" => self.section = Section::Successes,
            "failures:" => self.section = Section::Failures,
            _ => {}
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.split_whitespace().next()) {
            name.clone_into(&mut self.test);
        }
        if self.section == Section::List && line.starts_with("test ") && line.ends_with("... FAILED") {
            println!("{line}");
            self.counts.failed.push(line.to_owned());
        } else if self.section == Section::List && line.starts_with("test ") && line.contains(" ... ignored")
        {
            self.counts.skipped.push(line.to_owned());
        } else if self.section == Section::Successes && line.starts_with("skipped: ") {
            println!("test {} ... {line}", self.test);
            self.counts.skipped.push(format!("{}: {line}", self.test));
            self.not_really += 1;
        } else if self.section == Section::Failures && !line.starts_with("    ") {
            println!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtest_text_is_counted() {
        let text = "running 3 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ok\ntest d ... ignored, slow\n\n\
            successes:\n\n---- c stdout ----\nskipped: no tap\n\nsuccesses:\n    a\n    c\n\n\
            failures:\n\n---- b stdout ----\nassertion failed\n\nfailures:\n    b\n\n\
            test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test e ... ok\ntest result: ok. 1 passed; 0 failed; 0 ignored\n";
        let mut reader = Reader::default();
        text.lines().for_each(|line| reader.line(line));
        let counts = reader.counts;
        assert_eq!(counts.passed, 2);
        assert_eq!(counts.failed, ["test b ... FAILED"]);
        assert_eq!(counts.skipped, ["test d ... ignored, slow", "c: skipped: no tap"]);
        assert_eq!(counts.to_string(), "2 passed, 1 failed, 2 skipped");
        assert!(!counts.green(false));
    }
}
