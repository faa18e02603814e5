//! The table `backend`: what becomes of the guest while the process behind one of its devices is gone.
//!
//! As written ([`BackendEntry`]), checked ([`Backend`]), and the way between the two.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::ConfigError;
use crate::size::{DURATION_FORM, NumberOrText, read_duration, write_duration};

const LONGEST: Duration = Duration::from_secs(24 * 3600);
const SHORTEST: Duration = Duration::from_secs(1);
const HUNG_AFTER: Duration = Duration::from_secs(20);

/// What becomes of the guest while the process behind one of its devices is gone.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BackendEntry {
    /// `wait` (the default): the vCPUs run, requests to the device wait. `pause`: the vCPUs stand until it is back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["wait", "pause"]))]
    pub lost: Option<String>,
    /// After how long without its process a device asks the guest's driver for a reset: a time from 1s to 24h, or
    /// `off` (the default): requests wait for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_after: Option<NumberOrText>,
    /// How long a process that runs but does nothing is put up with before it is killed and started again: a time
    /// from 1s to 24h, default 20, or `off`. A slow disk, or a host without time for it, is not a process that hangs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hung_after: Option<NumberOrText>,
}

/// The checked table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// What the vCPUs do meanwhile.
    pub lost: WhenLost,
    /// When the device asks for a reset; `None`: never.
    pub reset_after: Option<Duration>,
    /// When a process that does nothing is killed; `None`: never.
    pub hung_after: Option<Duration>,
}

/// What the vCPUs do while a device has no process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenLost {
    /// They run.
    Wait,
    /// They stand.
    Pause,
}

impl Default for Backend {
    fn default() -> Self {
        Self { lost: WhenLost::Wait, reset_after: None, hung_after: Some(HUNG_AFTER) }
    }
}

impl BackendEntry {
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// `over` wins where it says something.
    pub(crate) fn overlay(&mut self, over: Self) {
        self.lost = over.lost.or(self.lost.take());
        self.reset_after = over.reset_after.or(self.reset_after.take());
        self.hung_after = over.hung_after.or(self.hung_after.take());
    }

    pub(crate) fn check(&self) -> Result<Backend, ConfigError> {
        let default = Backend::default();
        let lost = match self.lost.as_deref() {
            None => default.lost,
            Some("wait") => WhenLost::Wait,
            Some("pause") => WhenLost::Pause,
            Some(other) => return Err(ConfigError::text("lost", other, "must be wait or pause")),
        };
        Ok(Backend {
            lost,
            reset_after: time("reset_after", self.reset_after.as_ref(), default.reset_after)?,
            hung_after: time("hung_after", self.hung_after.as_ref(), default.hung_after)?,
        })
    }
}

fn time(
    key: &str,
    raw: Option<&NumberOrText>,
    default: Option<Duration>,
) -> Result<Option<Duration>, ConfigError> {
    let Some(raw) = raw else { return Ok(default) };
    if raw.plain() == "off" {
        return Ok(None);
    }
    match read_duration(raw) {
        Ok(time) if (SHORTEST..=LONGEST).contains(&time) => Ok(Some(time)),
        _ => Err(ConfigError::value(key, raw, format!("must be off, or 1s to 24h: {DURATION_FORM}"))),
    }
}

impl From<Backend> for BackendEntry {
    fn from(backend: Backend) -> Self {
        let write =
            |time: Option<Duration>| Some(time.map_or(NumberOrText::Text("off".to_owned()), write_duration));
        let lost = match backend.lost {
            WhenLost::Wait => "wait",
            WhenLost::Pause => "pause",
        };
        Self {
            lost: Some(lost.to_owned()),
            reset_after: write(backend.reset_after),
            hung_after: write(backend.hung_after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Backend, String> {
        BackendEntry::from_flag(text).and_then(|entry| entry.check()).map_err(|error| error.to_string())
    }

    #[test]
    fn values_and_their_way_back() {
        let backend = checked("lost=pause,reset_after=90,hung_after=1500ms").unwrap();
        let expected = Backend {
            lost: WhenLost::Pause,
            reset_after: Some(Duration::from_secs(90)),
            hung_after: Some(Duration::from_millis(1500)),
        };
        assert_eq!(backend, expected);
        let off = checked("hung_after=off").unwrap();
        assert_eq!(off, Backend { hung_after: None, ..Backend::default() });
        for backend in [backend, off, Backend::default()] {
            assert_eq!(BackendEntry::from(backend).check().unwrap(), backend);
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_what_is_allowed() {
        for (text, said) in [
            ("lost=die", "lost = \"die\": must be wait or pause"),
            ("reset_after=500ms", "must be off, or 1s to 24h"),
            ("hung_after=25h", "must be off, or 1s to 24h"),
            ("hung_after=2000m", "must be off, or 1s to 24h"),
            ("hanged_after=2", "did you mean `hung_after`?"),
        ] {
            let error = checked(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
