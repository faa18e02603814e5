//! Replaces one backend after the other; a task beside the supervisor, which does the ending and starting.
//!
//! For each: what the new version says of itself, then the real thing. The vmm compares features, queues and capacity
//! with what the guest was shown, and its verdict decides; until it is there, and after a "no", the guest waits.

use std::path::Path;
use std::time::{Duration, Instant};

use strata_ipc::{Client, DeviceState};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use super::version::{Offer, Version};
use super::{Outcome, Report, Request};
use crate::child::Program;
use crate::run_dir;
use crate::say::say;
use crate::supervise::{Event, Replaced};

/// How long a new backend may take until the vmm has taken it into service.
const TRIAL: Duration = Duration::from_secs(15);
/// Between two looks at the vmm meanwhile. It bounds how exact the stall is.
const LOOK: Duration = Duration::from_millis(2);
/// How long the vmm may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// Does what `request` asks for, and answers it.
pub(crate) async fn run(
    folder: &Path,
    programs: Vec<Program>,
    supervisor: UnboundedSender<Event>,
    request: Request,
) {
    let wanted = |program: &&Program| request.device.as_ref().is_none_or(|device| *device == program.id);
    let chosen: Vec<&Program> = programs.iter().filter(wanted).collect();
    if chosen.is_empty() {
        let ids: Vec<&str> = programs.iter().map(|program| program.id.as_str()).collect();
        let there = if ids.is_empty() { "none".to_owned() } else { ids.join(", ") };
        let device = request.device.as_deref().unwrap_or("any device");
        let why = format!("the launcher runs no backend for {device}; it runs those of: {there}");
        return request.refuse(&why);
    }
    let mut reports = Vec::new();
    for program in chosen {
        let report = upgrade(folder, program, &supervisor, request.again).await;
        let Report { device, from, to, .. } = &report;
        match (report.outcome, &report.reason) {
            (Outcome::Replaced, _) => say(format_args!("strata: {device}: {from} replaced by {to}")),
            (Outcome::Kept, Some(why)) => say(format_args!("strata: {device}: {from} is kept: {why}")),
            _ => {}
        }
        reports.push(report);
    }
    request.answer(Ok(reports));
}

async fn upgrade(folder: &Path, old: &Program, supervisor: &UnboundedSender<Event>, again: bool) -> Report {
    let mut report = Report {
        device: old.id.clone(),
        outcome: Outcome::Kept,
        from: String::new(),
        to: String::new(),
        drain_milliseconds: None,
        stall_milliseconds: None,
        reason: None,
    };
    match attempt(folder, old, supervisor, again, &mut report).await {
        Ok(outcome) => report.outcome = outcome,
        Err(why) => report.reason = Some(why),
    }
    if report.outcome != Outcome::Replaced {
        report.to.clone_from(&report.from);
    }
    report
}

async fn attempt(
    folder: &Path,
    old: &Program,
    supervisor: &UnboundedSender<Event>,
    again: bool,
    report: &mut Report,
) -> Result<Outcome, String> {
    let name = old.name();
    let before =
        Offer::of(&old.executable(), &old.path).await.map_err(|why| format!("the running {name}: {why}"))?;
    report.from.clone_from(&before.version);
    let installed = Version::open(&old.path).map_err(|error| format!("{}: {error}", old.path.display()))?;
    if !again && old.version.as_ref().is_some_and(|version| version.is_at(&old.path)) {
        return Ok(Outcome::Current);
    }
    let after =
        Offer::of(&old.path, &old.path).await.map_err(|why| format!("the installed {name}: {why}"))?;
    report.to.clone_from(&after.version);
    if let Some(lacks) = after.lacks(&before) {
        return Err(format!("the installed {name} ({}) offers less: {lacks}", after.version));
    }
    let seen = look(folder, &old.id).await?;
    let start = Instant::now();
    let new = Program { version: Some(installed), ..old.clone() };
    let mut replaced = replace(supervisor, new).await?;
    report.drain_milliseconds = Some(milliseconds(replaced.drained));
    let verdict = trial(folder, &old.id, &seen, &mut replaced).await;
    report.stall_milliseconds = Some(milliseconds(start.elapsed()));
    if replaced.killed {
        report.reason =
            Some("it did not finish in time and was killed; what it held is done again".to_owned());
    }
    let Err(why) = verdict else { return Ok(Outcome::Replaced) };
    // The old one was good enough before, so nothing more is asked of it than to be there again. What was is looked at
    // first: once it runs, it may be in service before anybody looks.
    let again = look(folder, &old.id).await?;
    let back = replace(supervisor, old.clone()).await;
    let mut back =
        back.map_err(|error| format!("{why}; and the old one cannot be started again: {error}"))?;
    let served = trial(folder, &old.id, &again, &mut back).await;
    report.stall_milliseconds = Some(milliseconds(start.elapsed()));
    served.map_err(|error| format!("{why}; and the old one: {error}"))?;
    Err(format!("the installed {name} ({}): {why}", after.version))
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

async fn replace(supervisor: &UnboundedSender<Event>, program: Program) -> Result<Replaced, String> {
    let gone = || "the machine is ending".to_owned();
    let (done, answer) = oneshot::channel();
    supervisor.send(Event::Replace(program.id.clone(), program, done)).map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// A device as the vmm sees it.
struct Seen {
    connected: bool,
    trouble: Option<String>,
    losses: u64,
}

async fn look(folder: &Path, id: &str) -> Result<Seen, String> {
    let asked = async {
        let mut client = Client::connect(&run_dir::control(folder), ANSWER).await?;
        // In this order: a loss between the two is then seen as one that is yet to come.
        let losses = client.statistics().await?;
        let status = client.status().await?;
        Ok::<_, strata_ipc::ClientError>((status, losses))
    };
    let (status, statistics) = asked.await.map_err(|error| error.to_string())?;
    let device = status.devices.into_iter().find(|device| device.id == id);
    let device = device.ok_or_else(|| format!("the vmm has no device {id}"))?;
    let counters = statistics.devices.into_iter().find(|device| device.id == id);
    let losses = counters.and_then(|device| device.counters.get("backend_losses").copied()).unwrap_or(0);
    Ok(Seen { connected: device.state == DeviceState::Connected, trouble: device.trouble, losses })
}

/// Waits until the vmm has taken the new process into service, or has refused it.
async fn trial(folder: &Path, id: &str, before: &Seen, replaced: &mut Replaced) -> Result<(), String> {
    let start = Instant::now();
    loop {
        if let Ok(death) = replaced.death.try_recv() {
            return Err(format!("it died: {death}"));
        }
        let now = look(folder, id).await?;
        // One that was connected has to be seen lost first: it may not have noticed yet.
        if now.connected && (!before.connected || now.losses > before.losses) {
            return Ok(());
        }
        if let Some(trouble) = now.trouble.filter(|_| before.trouble.is_none()) {
            return Err(format!("refused: {trouble}"));
        }
        if start.elapsed() >= TRIAL {
            return Err(format!("the vmm did not take it into service within {} s", TRIAL.as_secs()));
        }
        tokio::time::sleep(LOOK).await;
    }
}
