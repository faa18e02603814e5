//! `strata upgrade`: other versions of a running machine's backends, one after the other, under load.
//!
//! The command asks the machine's launcher ([`crate::launcher`], Varlink); there a [`task`] replaces one backend after the
//! other through the supervisor. A version that says it can do less, does not start, or that the vmm refuses, is not
//! kept: the old one, whose file the launcher has held open ([`version`]), runs again.

mod command;
pub(crate) mod task;
pub(crate) mod version;

use std::sync::mpsc::SyncSender;

use serde::{Deserialize, Serialize};

pub(crate) use command::{UpgradeArgs, run};

/// What is asked of the launcher.
#[derive(Debug)]
pub(crate) struct Request {
    /// One device; all without.
    pub(crate) device: Option<String>,
    /// Also where the installed version runs already.
    pub(crate) again: bool,
    pub(crate) answer: SyncSender<Result<Vec<Report>, String>>,
}

impl Request {
    pub(crate) fn answer(self, answer: Result<Vec<Report>, String>) {
        // Whoever asked may have gone.
        let _ = self.answer.send(answer);
    }

    pub(crate) fn refuse(self, why: &str) {
        self.answer(Err(why.to_owned()));
    }
}

/// What became of one backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) device: String,
    pub(crate) outcome: Outcome,
    /// What ran before and what runs now, as the programs say.
    pub(crate) from: String,
    pub(crate) to: String,
    /// From being told to end until it had finished what it held and was gone.
    pub(crate) drain_milliseconds: Option<f64>,
    /// From being told to end until the guest's requests were served again: the longest the guest can have waited.
    pub(crate) stall_milliseconds: Option<f64>,
    /// Why it is so, where that is not plain.
    pub(crate) reason: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Outcome {
    /// The installed version runs.
    Replaced,
    /// It ran already.
    Current,
    /// The old one runs on, or again.
    Kept,
}
