//! The Varlink interface: its methods over [`Control`], its error, and the client's side of both.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use zlink::{introspect, proxy, service};

use crate::types::{
    Control, DeviceState, DeviceStatistics, DeviceStatus, MachineState, Refused, Statistics, Status,
    VcpuStatistics,
};

/// The interface's name.
pub const INTERFACE: &str = "io.strata.Machine";

/// The errors of the interface.
#[derive(Debug, Clone, PartialEq, zlink::ReplyError, introspect::ReplyError)]
#[zlink(interface = "io.strata.Machine")]
pub(crate) enum Error {
    /// The machine does not do that now.
    NotPossible {
        /// Why, for a person to read.
        reason: String,
    },
}

impl From<Refused> for Error {
    fn from(Refused(reason): Refused) -> Self {
        Self::NotPossible { reason }
    }
}

/// Where in the reply's descriptors the console is.
#[derive(Debug, Serialize, Deserialize, introspect::Type)]
pub(crate) struct ConsoleReply {
    /// Index into the descriptors that came with the reply.
    pub(crate) descriptor: u32,
}

/// One connection's view of the machine.
pub(crate) struct Service(pub(crate) Arc<dyn Control>);

#[service(
    interface = "io.strata.Machine",
    types = [MachineState, DeviceStatus, DeviceState, VcpuStatistics, DeviceStatistics],
    vendor = "Strata",
    product = "Strata vmm",
    version = env!("CARGO_PKG_VERSION")
)]
impl Service {
    /// What the machine is and how it does.
    async fn get_status(&self) -> Status {
        self.0.status()
    }

    /// Counters since the start.
    async fn get_statistics(&self) -> Statistics {
        self.0.statistics()
    }

    /// Stops the vCPUs.
    async fn pause(&self) -> Result<(), Error> {
        Ok(self.0.pause()?)
    }

    /// Lets the vCPUs run.
    async fn resume(&self) -> Result<(), Error> {
        Ok(self.0.resume()?)
    }

    /// Presses the ACPI power button.
    async fn power_off(&self) -> Result<(), Error> {
        Ok(self.0.power_off()?)
    }

    /// Resets the machine.
    async fn reboot(&self) -> Result<(), Error> {
        Ok(self.0.reboot()?)
    }

    /// Ends the machine now.
    async fn quit(&self) -> Result<(), Error> {
        Ok(self.0.quit()?)
    }

    /// Attaches to the console: the reply carries a stream socket.
    #[zlink(return_fds)]
    async fn console(&self) -> (Result<ConsoleReply, Error>, Vec<OwnedFd>) {
        match self.0.console() {
            Ok(descriptor) => (Ok(ConsoleReply { descriptor: 0 }), vec![descriptor]),
            Err(refused) => (Err(refused.into()), Vec::new()),
        }
    }
}

/// The same methods, for the client.
#[proxy("io.strata.Machine")]
pub(crate) trait Calls {
    async fn get_status(&mut self) -> zlink::Result<Result<Status, Error>>;
    async fn get_statistics(&mut self) -> zlink::Result<Result<Statistics, Error>>;
    async fn pause(&mut self) -> zlink::Result<Result<(), Error>>;
    async fn resume(&mut self) -> zlink::Result<Result<(), Error>>;
    async fn power_off(&mut self) -> zlink::Result<Result<(), Error>>;
    async fn reboot(&mut self) -> zlink::Result<Result<(), Error>>;
    async fn quit(&mut self) -> zlink::Result<Result<(), Error>>;
    #[zlink(return_fds)]
    async fn console(&mut self) -> zlink::Result<(Result<ConsoleReply, Error>, Vec<OwnedFd>)>;
}
