//! The asking side: one connection to one machine, every wait bounded.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zlink::tokio::unix::{self, Connection};

use crate::interface::{Calls, Error};
use crate::types::{NewDevice, Statistics, Status, Unplug};

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers at the socket.
    #[error("no machine answers at {}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: zlink::Error,
    },
    /// The machine took longer than the client waits.
    #[error("the machine did not answer within {} s", limit.as_secs_f32())]
    Timeout {
        /// The limit.
        limit: Duration,
    },
    /// The machine does not do that now.
    #[error("{0}")]
    NotPossible(String),
    /// The connection broke or the answer could not be understood.
    #[error("the connection to the machine failed")]
    Wire(#[source] zlink::Error),
    /// The console came without its descriptor.
    #[error("the machine's answer carries no descriptor")]
    NoDescriptor,
}

/// A connection to a machine's control socket.
#[derive(Debug)]
pub struct Client {
    connection: Connection,
    limit: Duration,
}

impl Client {
    /// Connects, waiting at most `limit` for this and for every later answer.
    ///
    /// # Errors
    /// [`ClientError::Connect`] or [`ClientError::Timeout`].
    pub async fn connect(path: &Path, limit: Duration) -> Result<Self, ClientError> {
        match tokio::time::timeout(limit, unix::connect(path)).await {
            Ok(Ok(connection)) => Ok(Self { connection, limit }),
            Ok(Err(source)) => Err(ClientError::Connect { path: path.to_owned(), source }),
            Err(_) => Err(ClientError::Timeout { limit }),
        }
    }

    /// What the machine is and how it does.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn status(&mut self) -> Result<Status, ClientError> {
        answer(self.limit, self.connection.get_status()).await
    }

    /// Counters since the start.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn statistics(&mut self) -> Result<Statistics, ClientError> {
        answer(self.limit, self.connection.get_statistics()).await
    }

    /// Stops the vCPUs.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn pause(&mut self) -> Result<(), ClientError> {
        answer(self.limit, self.connection.pause()).await.map(drop)
    }

    /// Lets the vCPUs run.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn resume(&mut self) -> Result<(), ClientError> {
        answer(self.limit, self.connection.resume()).await.map(drop)
    }

    /// Presses the ACPI power button.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn power_off(&mut self) -> Result<(), ClientError> {
        answer(self.limit, self.connection.power_off()).await.map(drop)
    }

    /// Resets the machine.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn reboot(&mut self) -> Result<(), ClientError> {
        answer(self.limit, self.connection.reboot()).await.map(drop)
    }

    /// Ends the machine now.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn quit(&mut self) -> Result<(), ClientError> {
        answer(self.limit, self.connection.quit()).await.map(drop)
    }

    /// Takes a device away, as far as `how` says.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn unplug(&mut self, device: &str, how: Unplug) -> Result<(), ClientError> {
        answer(self.limit, self.connection.unplug(device, how)).await.map(drop)
    }

    /// Takes a device into service.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn plug(&mut self, new: &NewDevice) -> Result<(), ClientError> {
        let NewDevice { device, kind, queues, mac } = new;
        answer(self.limit, self.connection.plug(device, kind, *queues, mac.as_deref())).await.map(drop)
    }

    /// A stream socket attached to the machine's console.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn console(&mut self) -> Result<OwnedFd, ClientError> {
        let call = async {
            let (reply, descriptors) = self.connection.console().await?;
            Ok(reply.map(|reply| {
                let index = usize::try_from(reply.descriptor).unwrap_or(usize::MAX);
                descriptors.into_iter().nth(index)
            }))
        };
        answer(self.limit, call).await?.ok_or(ClientError::NoDescriptor)
    }
}

async fn answer<T>(
    limit: Duration,
    call: impl Future<Output = zlink::Result<Result<T, Error>>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(limit, call).await {
        Err(_) => Err(ClientError::Timeout { limit }),
        Ok(Err(error)) => Err(ClientError::Wire(error)),
        Ok(Ok(Err(Error::NotPossible { reason }))) => Err(ClientError::NotPossible(reason)),
        Ok(Ok(Ok(value))) => Ok(value),
    }
}
