//! Serving the interface: one task per connection, each with its own zlink server over a guarded socket.
//!
//! zlink's own `Server` over a listener would serve all connections from one task, so that a client which does
//! not read its reply holds up all others, and would end at the first failed `accept`.

use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;
use zlink::{ReadyListener, Server};

use crate::guard::{Bounds, Guarded};
use crate::interface::Service;
use crate::types::Control;

/// What clients may take, all together and each.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once; more wait in the listener's backlog.
    pub connections: usize,
    /// Bytes of one message.
    pub message: usize,
    /// How long a client may leave a reply unread.
    pub write: Duration,
    /// How long a client may keep its connection without a word.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 32,
            message: 64 << 10,
            write: Duration::from_secs(10),
            idle: Duration::from_secs(600),
        }
    }
}

/// Serves `control` to everyone who connects, until dropped. Runs on tokio's current-thread runtime with time and
/// I/O enabled.
///
/// # Errors
/// Only when the listener cannot be made non-blocking or registered.
pub async fn serve(listener: StdListener, control: Arc<dyn Control>) -> io::Result<()> {
    serve_with(listener, control, Limits::default()).await
}

/// As [`serve`], with limits of one's own.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(listener: StdListener, control: Arc<dyn Control>, limits: Limits) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(limits.connections));
    let tasks = LocalSet::new();
    tasks
        .run_until(async {
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let stream = accept(&listener).await;
                let control = Arc::clone(&control);
                tokio::task::spawn_local(async move {
                    connection(stream, control, limits).await;
                    drop(place);
                });
            }
        })
        .await;
    Ok(())
}

/// The next connection, whatever it takes: out of descriptors is a reason to wait, not to end.
async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!("control socket: accept failed: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn connection(stream: UnixStream, control: Arc<dyn Control>, limits: Limits) {
    let bounds = Bounds { message: limits.message, write: limits.write, idle: limits.idle };
    let served = match Guarded::new(stream, bounds) {
        Ok(socket) => Server::new(ReadyListener::new(socket), Service(control)).run().await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::debug!("control socket: a connection ended: {error}");
    }
}
