//! Lines that say what is going on, for work that takes more than a second.
//!
//! Owns: their shape. Called by: everything that makes a person wait.

use std::time::Instant;

/// Prints one line: what begins now.
pub fn say(what: &str) {
    println!("   {what}");
}

/// Runs `work` between a line that names it and one that says how long it took.
///
/// # Errors
/// Those of `work`.
pub fn step<T>(what: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    say(&format!("{what} ..."));
    let start = Instant::now();
    let value = work()?;
    say(&format!("{what}: done in {:.1} s", start.elapsed().as_secs_f64()));
    Ok(value)
}
