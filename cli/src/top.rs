//! `strata top`: every machine, live on a terminal; one snapshot as text or JSON elsewhere.
//!
//! Asks the machines and /proc once per interval and shows what came of it since the last time. No root is needed; what
//! only root may see is shown as `-`.

mod sample;
mod screen;
mod snapshot;
#[cfg(test)]
mod snapshot_test;
mod view;
mod winsize;

use std::io::{IsTerminal, Read, stdin, stdout};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use self::sample::Sample;
use self::screen::Screen;
use crate::args::{Output, TopArgs};
use crate::say::print;

pub(crate) async fn run(args: &TopArgs) -> anyhow::Result<()> {
    let live = !args.once && args.output.output == Output::Text && stdout().is_terminal();
    if live && let Some(screen) = Screen::enter()? {
        return watch(screen, args.interval).await;
    }
    let before = Sample::take().await?;
    tokio::time::sleep(args.interval).await;
    let snapshot = snapshot::compare(&before, &Sample::take().await?);
    let text = match args.output.output {
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&snapshot)?),
        Output::Text => view::lines(&snapshot).into_iter().map(|(line, _)| line + "\n").collect(),
    };
    Ok(print(&text)?)
}

async fn watch(mut screen: Screen, interval: Duration) -> anyhow::Result<()> {
    let mut keys = keys();
    let [mut resized, mut terminate, mut hangup, mut interrupt] = [
        signal(SignalKind::window_change())?,
        signal(SignalKind::terminate())?,
        signal(SignalKind::hangup())?,
        signal(SignalKind::interrupt())?,
    ];
    let title = " strata top    q quits, j and k move";
    let mut before = Sample::take().await?;
    let mut lines = vec![("looking ...".to_owned(), false)];
    let mut from = 0;
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        from = from.min(lines.len().saturating_sub(screen.height()));
        screen.draw(title, &lines, from)?;
        tokio::select! {
            _ = tick.tick() => {
                let after = Sample::take().await?;
                lines = view::lines(&snapshot::compare(&before, &after));
                before = after;
            }
            key = keys.recv() => match key {
                // In raw mode Ctrl-C is a byte, and the end of the input ends it too.
                Some(b'q' | 3) | None => return Ok(()),
                Some(b'j') => from += 1,
                Some(b'k') => from = from.saturating_sub(1),
                Some(_) => {}
            },
            _ = resized.recv() => {}
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
}

/// The keys, read by a thread that ends with the process.
fn keys() -> mpsc::UnboundedReceiver<u8> {
    let (sender, keys) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        let mut byte = [0];
        while stdin().read_exact(&mut byte).is_ok() {
            let [key] = byte;
            if sender.send(key).is_err() {
                return;
            }
        }
    });
    keys
}
