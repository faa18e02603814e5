//! The commands that talk to one running machine: stop, pause, resume, reboot, console.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_config::Name;
use strata_ipc::{Client, ClientError};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::args::StopArgs;
use crate::escape::{Key, Mode};
use crate::run_dir::{Running, base};
use crate::say::say;
use crate::shuttle::Shuttle;

/// How long a machine may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// How long after it was told to end now it may still be there.
const GRACE: Duration = Duration::from_secs(10);

/// The machine of this name, if it runs.
pub(crate) fn find(name: &Name) -> anyhow::Result<Running> {
    let base = base();
    Running::find(&base.join(name.as_str())).with_context(|| {
        let all = Running::all(&base).unwrap_or_default();
        let names: Vec<String> = all.iter().map(Running::name).collect();
        match names.as_slice() {
            [] => format!("no machine named {name} runs; none runs under {}", base.display()),
            names => format!("no machine named {name} runs; running: {}", names.join(", ")),
        }
    })
}

pub(crate) async fn connect(running: &Running) -> Result<Client, ClientError> {
    Client::connect(&running.control(), ANSWER).await
}

pub(crate) async fn pause(name: &Name) -> anyhow::Result<()> {
    Ok(connect(&find(name)?).await?.pause().await?)
}

pub(crate) async fn resume(name: &Name) -> anyhow::Result<()> {
    Ok(connect(&find(name)?).await?.resume().await?)
}

pub(crate) async fn reboot(name: &Name) -> anyhow::Result<()> {
    Ok(connect(&find(name)?).await?.reboot().await?)
}

pub(crate) async fn stop(args: &StopArgs) -> anyhow::Result<()> {
    let running = find(&args.name)?;
    if !args.now {
        let timeout = args.timeout.map_or_else(|| stop_timeout(&running), |s| Duration::from_secs(s.into()));
        match connect(&running).await {
            Ok(mut client) => {
                client.power_off().await.context("cannot press the power button; --now ends it")?
            }
            Err(error) => return Err(error).context("cannot press the power button; --now ends it"),
        }
        if gone(&running.path, timeout).await {
            return Ok(());
        }
        say(format_args!(
            "strata: {} did not power off within {} s; ending it",
            args.name,
            timeout.as_secs_f32()
        ));
    }
    // The vmm first: it ends at once and its launcher cleans up. The launcher itself if the vmm is past answering.
    let quit = async { connect(&running).await?.quit().await };
    if quit.await.is_err() || !gone(&running.path, GRACE).await {
        // Once presses the power button, twice kills.
        for _ in 0..2 {
            signal_launcher(&running)?;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        if !gone(&running.path, GRACE).await {
            bail!("{} cannot be ended; its launcher is process {}", args.name, running.pid);
        }
    }
    Ok(())
}

fn signal_launcher(running: &Running) -> anyhow::Result<()> {
    // Only while its lock is held is the pid in the lock file surely the launcher's.
    match Running::find(&running.path) {
        Some(still) if still.pid == running.pid => {
            kill(Pid::from_raw(i32::try_from(running.pid)?), Signal::SIGTERM)
                .with_context(|| format!("cannot signal its launcher, process {}", running.pid))
        }
        _ => Ok(()),
    }
}

/// The machine's own stop_timeout, which its launcher left in its folder.
fn stop_timeout(running: &Running) -> Duration {
    running.machine().map_or(Duration::from_secs(30), |machine| machine.stop_timeout)
}

/// Waits until the machine's folder is nobody's any more.
async fn gone(folder: &Path, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    while Running::find(folder).is_some() {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

pub(crate) async fn console(name: &Name) -> anyhow::Result<()> {
    let running = find(name)?;
    let socket = connect(&running).await?.console().await?;
    let (sender, mut ended) = mpsc::unbounded_channel();
    let closed = sender.clone();
    say(format_args!("strata: console of {name}; Ctrl-] detaches"));
    let key = move |key| {
        if key == Key::Detach {
            let _ = sender.send("detached");
        }
    };
    let closed = move || {
        let _ = closed.send("the machine's console ended");
    };
    let shuttle =
        Shuttle::start(socket.into(), Mode::Attach, key, closed).context("cannot connect the console")?;
    let mut signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [terminate, interrupt, hangup] = &mut signals;
    let why = tokio::select! {
        why = ended.recv() => why.unwrap_or_default(),
        () = received(terminate) => "detached",
        () = received(interrupt) => "detached",
        () = received(hangup) => "detached",
    };
    drop(shuttle);
    say(format_args!("\nstrata: {why}"));
    Ok(())
}

async fn received(stream: &mut std::io::Result<tokio::signal::unix::Signal>) {
    match stream {
        Ok(stream) => drop(stream.recv().await),
        Err(_) => std::future::pending().await,
    }
}
