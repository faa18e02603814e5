//! `strata exits`: what a machine's exits are for, over a window of time.
//!
//! KVM's own counters need no privilege; the reasons come from a tracepoint, for root. Ends early, with what there is,
//! on Ctrl-C.

mod reason;
pub(crate) mod trace;
pub(crate) mod window;

#[cfg(test)]
pub(crate) mod window_test;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use self::trace::Histogram;
use crate::args::{ExitsArgs, Output};
use crate::control;
use crate::meter::Reading;
use crate::say::print;
use crate::threads;

/// How long a machine may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

pub(crate) async fn run(args: &ExitsArgs) -> anyhow::Result<()> {
    let running = control::find(&args.name)?;
    let vmm = running.pid_of("vmm").map(threads::worker).context("the machine has no vmm")?;
    let vcpus: BTreeMap<u32, u32> =
        threads::vcpus(vmm).into_iter().map(|(vcpu, thread)| (thread, vcpu)).collect();
    let ids: Vec<u32> = vcpus.keys().copied().collect();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let before = Reading::take(&running, ANSWER).await?;
    let histogram = Histogram::start(&ids);
    let started = Instant::now();
    tokio::select! {
        () = tokio::time::sleep(args.time) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    let seconds = started.elapsed().as_secs_f64();
    let reasons = histogram.and_then(|histogram| histogram.counts());
    let reasons = reasons.map(|counts| (counts, seconds)).map_err(|error| error.to_string());
    let after = Reading::take(&running, ANSWER).await?;
    let window = window::compare(&before, &after, reasons, &vcpus);
    match args.output.output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&window)?))?,
        Output::Text => print(&window::text(&window))?,
    }
    Ok(())
}
