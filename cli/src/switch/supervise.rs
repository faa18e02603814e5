//! A switch's process from its start to its end. One that dies is started again on the same sockets, where the guests'
//! vmms reconnect, and for ever ([`crate::restarts`]); one that fails at its first start ends the launcher.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::sync::{mpsc, oneshot};

use crate::child::{self, Death, Program, StartError};
use crate::orphans;
use crate::restarts::Restarts;
use crate::run_dir::RunDir;
use crate::say::say;
use crate::signals::{self, WatchError};

/// How long it may take to end when told to.
const GRACE: Duration = Duration::from_secs(3);
/// A process that ends within this after its first start was never good.
const STARTED: Duration = Duration::from_secs(2);

/// Why a switch did not end well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Signals(#[from] WatchError),
    #[error("the switch failed: vhost-net: {0}")]
    Died(String),
}

/// Starts the process and stays until it is told to end.
pub(super) async fn run(folder: &RunDir, program: Program) -> Result<(), Failure> {
    orphans::adopt();
    let (told, mut end) = mpsc::unbounded_channel();
    signals::watch(move || told.send(()).is_ok())?;
    let ended = attend(folder, &program, &mut end).await;
    orphans::end_all().await;
    ended
}

async fn attend(
    folder: &RunDir,
    program: &Program,
    end: &mut mpsc::UnboundedReceiver<()>,
) -> Result<(), Failure> {
    let mut restarts = Restarts::default();
    loop {
        let (sender, mut died) = oneshot::channel();
        let since = Instant::now();
        let running = child::spawn(program, move |death| drop(sender.send(death)))?;
        if let Err(error) = folder.write_pid("vhost-net", running.pid) {
            say(format_args!("strata: cannot write the pid file: {error}"));
        }
        let death: Option<Death> = tokio::select! {
            death = &mut died => death.ok(),
            _ = end.recv() => {
                running.signal(Signal::SIGTERM);
                if tokio::time::timeout(GRACE, &mut died).await.is_err() {
                    running.signal(Signal::SIGKILL);
                    let _ = died.await;
                }
                return Ok(());
            }
        };
        let how = death.map_or_else(|| "it is gone".to_owned(), |death| death.describe());
        let lived = since.elapsed();
        if restarts.total() == 0 && lived < STARTED && how.starts_with("exit status") {
            return Err(Failure::Died(how));
        }
        let delay = restarts.died(lived);
        say(format_args!("strata: {}: vhost-net died ({how}); starting it again", program.id));
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            _ = end.recv() => return Ok(()),
        }
    }
}
