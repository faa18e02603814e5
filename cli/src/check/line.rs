//! One line of a check: what was looked at, how it is, what to change and the command that does.

use serde::Serialize;

/// How good it is. The order is that of the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Level {
    /// As it should be.
    Ready,
    /// Worth knowing, nothing to change for.
    Info,
    /// Works, with a loss.
    Warning,
    /// Machines do not run, or do not run like this.
    NotReady,
}

impl Level {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::NotReady => "NOT READY",
        }
    }
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    pub(crate) topic: String,
    pub(crate) level: Level,
    /// What is there.
    pub(crate) found: String,
    /// What to change, in words.
    pub(crate) change: Option<String>,
    /// The command that changes it, to be run as root.
    pub(crate) command: Option<String>,
}

impl Line {
    fn new(level: Level, topic: &str, found: impl Into<String>) -> Self {
        Self { topic: topic.to_owned(), level, found: found.into(), change: None, command: None }
    }

    pub(crate) fn ready(topic: &str, found: impl Into<String>) -> Self {
        Self::new(Level::Ready, topic, found)
    }

    pub(crate) fn info(topic: &str, found: impl Into<String>) -> Self {
        Self::new(Level::Info, topic, found)
    }

    pub(crate) fn warning(topic: &str, found: impl Into<String>) -> Self {
        Self::new(Level::Warning, topic, found)
    }

    pub(crate) fn not_ready(topic: &str, found: impl Into<String>) -> Self {
        Self::new(Level::NotReady, topic, found)
    }

    pub(crate) fn change(self, change: impl Into<String>) -> Self {
        Self { change: Some(change.into()), ..self }
    }

    pub(crate) fn command(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}
