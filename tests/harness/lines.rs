//! The lines of a stream, collected by a thread, waited for by the test.
//!
//! Owns: the reader thread and the text so far. Called by: everything that starts a process. A wait ends when the line
//! comes, when the stream ends (then it cannot come any more) or at a limit that only a hang reaches.

use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::bail;

/// How long a wait may take. Only a hang reaches it: the slowest guest in the rig says something every few seconds.
/// `STRATA_TEST_SECONDS` sets another for a host that is busy with other things.
pub fn limit() -> Duration {
    let seconds = std::env::var("STRATA_TEST_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(120))
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    partial: String,
    ended: bool,
    /// Each further line is also printed, behind this.
    echo: Option<String>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A stream being read.
#[derive(Clone)]
pub struct Lines {
    name: String,
    shared: Arc<Shared>,
    /// Lines before this one have been waited for already.
    cursor: Arc<Mutex<usize>>,
}

impl Lines {
    /// Reads `stream` to its end on a thread of its own. `name` is for messages: "console", "standard error".
    pub fn of(name: &str, mut stream: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = shared.clone();
        std::thread::spawn(move || {
            let mut buffer = [0u8; 4096];
            loop {
                let got = stream.read(&mut buffer).unwrap_or(0);
                let mut state = writer.lock();
                for &byte in buffer.get(..got).unwrap_or_default() {
                    state.push(byte);
                }
                state.ended = got == 0;
                drop(state);
                writer.changed.notify_all();
                if got == 0 {
                    return;
                }
            }
        });
        Self { name: name.to_owned(), shared, cursor: Arc::default() }
    }

    /// Prints each line from now on, behind `prefix`.
    pub fn echo(&self, prefix: &str) {
        self.shared.lock().echo = Some(prefix.to_owned());
    }

    /// Ends [`Lines::echo`].
    pub fn hush(&self) {
        self.shared.lock().echo = None;
    }

    /// Waits for a line that is exactly `wanted`.
    ///
    /// # Errors
    /// As [`Lines::wait`].
    pub fn wait_line(&self, wanted: &str) -> anyhow::Result<()> {
        // Whole: a line found before its end would be found again by the next who waits for such a line.
        while self.wait_whole(wanted)?.trim() != wanted {}
        Ok(())
    }

    /// Waits for a line that contains `wanted`, after the one found last, and gives it.
    ///
    /// # Errors
    /// If the stream ends first or [`limit`] passes; the text holds the stream's end.
    pub fn wait(&self, wanted: &str) -> anyhow::Result<String> {
        self.wait_within(wanted, limit())
    }

    /// As [`Lines::wait`], with a limit of its own.
    ///
    /// # Errors
    /// As [`Lines::wait`].
    pub fn wait_within(&self, wanted: &str, limit: Duration) -> anyhow::Result<String> {
        self.look_for(wanted, limit, true)
    }

    /// As [`Lines::wait`], and to the end of that line: no half of it is taken for the whole, nor twice.
    ///
    /// # Errors
    /// As [`Lines::wait`].
    pub fn wait_whole(&self, wanted: &str) -> anyhow::Result<String> {
        self.look_for(wanted, limit(), false)
    }

    fn look_for(&self, wanted: &str, limit: Duration, prompts: bool) -> anyhow::Result<String> {
        let until = Instant::now() + limit;
        let mut cursor = self.cursor.lock().unwrap_or_else(|poison| poison.into_inner());
        let mut state = self.shared.lock();
        loop {
            let fresh = state.lines.iter().enumerate().skip(*cursor);
            if let Some((at, line)) = fresh.into_iter().find(|(_, line)| line.contains(wanted)) {
                *cursor = at + 1;
                return Ok(line.clone());
            }
            // A prompt ends without a newline.
            if prompts && state.partial.contains(wanted) {
                return Ok(state.partial.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let why = if state.ended { "ended" } else { "was silent about it" };
                let seconds = limit.as_secs();
                drop(state);
                bail!(
                    "waited for {wanted:?} on the {}, which {why} (limit {seconds} s)\n{}",
                    self.name,
                    self.tail(30)
                );
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
    }

    /// Waits for the value after `key` and a space: `guest: size 42` gives `42` for `guest: size`.
    ///
    /// # Errors
    /// As [`Lines::wait`].
    pub fn value(&self, key: &str) -> anyhow::Result<String> {
        let line = self.wait_whole(&format!("{key} "))?;
        let value = line.split_once(&format!("{key} ")).map(|(_, value)| value.trim().to_owned());
        Ok(value.unwrap_or_default())
    }

    /// Waits until the stream has ended and gives all of it.
    ///
    /// # Errors
    /// If it does not end within [`limit`].
    pub fn finish(&self) -> anyhow::Result<String> {
        let until = Instant::now() + limit();
        let mut state = self.shared.lock();
        while !state.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                bail!("the {} did not end\n{}", self.name, self.tail(30));
            }
            let waited = self.shared.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(|poison| poison.into_inner()).0;
        }
        Ok(state.text())
    }

    /// What has been read so far.
    pub fn so_far(&self) -> String {
        self.shared.lock().text()
    }

    /// The last `count` lines under a heading, for failures.
    pub fn tail(&self, count: usize) -> String {
        let text = self.so_far();
        let lines: Vec<&str> = text.lines().collect();
        let shown = lines.iter().skip(lines.len().saturating_sub(count));
        let shown = shown.map(|line| format!("    | {line}")).collect::<Vec<_>>().join("\n");
        format!("  the {}'s last lines:\n{shown}", self.name)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poison| poison.into_inner())
    }
}

impl State {
    fn push(&mut self, byte: u8) {
        match byte {
            b'\n' => {
                let line = std::mem::take(&mut self.partial);
                if let Some(prefix) = &self.echo {
                    println!("{prefix}{line}");
                }
                self.lines.push(line);
            }
            b'\r' => {}
            _ => self.partial.push(char::from(byte)),
        }
    }

    fn text(&self) -> String {
        let mut text = self.lines.join("\n");
        if !self.partial.is_empty() {
            text.push('\n');
            text.push_str(&self.partial);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_wait_goes_on_where_the_last_one_ended() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let lines = Lines::of("pipe", reader);
        writer.write_all(b"one\r\ntwo 2\none\nlogin: ").unwrap();
        assert_eq!(lines.wait("one").unwrap(), "one");
        assert_eq!(lines.value("two").unwrap(), "2");
        assert_eq!(lines.wait("one").unwrap(), "one");
        assert_eq!(lines.wait("login:").unwrap(), "login: ");
        drop(writer);
        let error = lines.wait("one").unwrap_err().to_string();
        assert!(error.contains("ended") && error.contains("| two 2"), "{error}");
        assert_eq!(lines.finish().unwrap(), "one\ntwo 2\none\nlogin: ");
    }

    #[test]
    fn silence_reaches_the_limit() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let lines = Lines::of("pipe", reader);
        let error = lines.wait_within("x", Duration::from_millis(20)).unwrap_err().to_string();
        assert!(error.contains("silent"), "{error}");
    }
}
