//! The Varlink interface: its methods over [`Control`], its error, its description, and the client's side.
//!
//! The dispatch is ours rather than zlink's `#[service]`: that macro (0.8.0) lets a method name of the peer's
//! choosing reach an `unreachable!`, and closes the connection where an unknown method comes with parameters.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use zlink::connection::socket::Socket;
use zlink::futures_util::stream::Empty;
use zlink::service::{HandleResult, Infallible, MethodReply, ReplyStreamItem};
use zlink::{Call, Connection, proxy};

use crate::instance;
use crate::types::{Control, NewDevice, Refused, Statistics, Status, Unplug};

/// The interface's name.
pub const INTERFACE: &str = "io.strata.Machine";

/// The interface's description in Varlink's language.
pub const DESCRIPTION: &str = include_str!("io.strata.Machine.varlink");

const SERVICE: &str = "org.varlink.service";

// The description of org.varlink.service as https://varlink.org/Service gives it.
const SERVICE_DESCRIPTION: &str = "\
# The Varlink Service Interface is provided by every varlink service.
interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)
error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// A method call of any name: what is not known is answered, not refused by the parser.
#[derive(Debug, Deserialize)]
pub(crate) struct AnyCall<'a> {
    #[serde(borrow)]
    method: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<Map<String, Value>>,
}

/// An error as it goes over the wire.
#[derive(Debug, Serialize)]
pub(crate) struct WireError {
    error: String,
    parameters: Value,
}

impl WireError {
    fn service(name: &str, parameters: Value) -> Self {
        Self { error: format!("{SERVICE}.{name}"), parameters }
    }
}

impl From<Refused> for WireError {
    fn from(Refused(reason): Refused) -> Self {
        Self { error: format!("{INTERFACE}.NotPossible"), parameters: json!({ "reason": reason }) }
    }
}

type Answer = Result<(Value, Vec<OwnedFd>), WireError>;

/// One connection's view of the machine.
pub(crate) struct Service(pub(crate) Arc<dyn Control>);

impl Service {
    fn answer(&self, call: &AnyCall<'_>) -> Answer {
        let none = Map::new();
        let parameters = call.parameters.as_ref().unwrap_or(&none);
        match call.method.as_ref() {
            "io.strata.Machine.GetStatus" => value(&self.0.status()),
            "io.strata.Machine.GetStatistics" => value(&self.0.statistics()),
            "io.strata.Machine.Pause" => done(self.0.pause()),
            "io.strata.Machine.Resume" => done(self.0.resume()),
            "io.strata.Machine.PowerOff" => done(self.0.power_off()),
            "io.strata.Machine.Reboot" => done(self.0.reboot()),
            "io.strata.Machine.Quit" => done(self.0.quit()),
            "io.strata.Machine.Unplug" => {
                let Leaving { device, how } = shaped(parameters, "device")?;
                done(self.0.unplug(&device, how))
            }
            "io.strata.Machine.Plug" => done(self.0.plug(&shaped::<NewDevice>(parameters, "device")?)),
            "io.strata.Machine.Console" => Ok((json!({ "descriptor": 0 }), vec![self.0.console()?])),
            "org.varlink.service.GetInfo" => Ok((
                json!({
                    "vendor": "Strata",
                    "product": "Strata vmm",
                    "version": env!("CARGO_PKG_VERSION"),
                    "url": "",
                    "interfaces": [INTERFACE, instance::INTERFACE, SERVICE],
                }),
                Vec::new(),
            )),
            "org.varlink.service.GetInterfaceDescription" => describe(parameters),
            method => {
                let of_systemd =
                    method.strip_prefix(instance::INTERFACE).and_then(|rest| rest.strip_prefix('.'));
                match of_systemd.and_then(|name| instance::answer(&*self.0, name)) {
                    Some(Ok(value)) => Ok((value, Vec::new())),
                    Some(Err(_)) => {
                        Err(WireError { error: instance::NOT_SUPPORTED.to_owned(), parameters: json!({}) })
                    }
                    None => Err(WireError::service("MethodNotFound", json!({ "method": method }))),
                }
            }
        }
    }
}

fn value(answer: &impl Serialize) -> Answer {
    // Strings, integers and maps with string keys: serialising them cannot fail, but the type says it could.
    let value = serde_json::to_value(answer).map_err(|error| Refused::new(error.to_string()))?;
    Ok((value, Vec::new()))
}

fn done(result: Result<(), Refused>) -> Answer {
    result?;
    Ok((json!({}), Vec::new()))
}

/// What `Unplug` is given.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Leaving {
    device: String,
    how: Unplug,
}

/// The parameters as a value; `name` is what an error names.
fn shaped<T: serde::de::DeserializeOwned>(
    parameters: &Map<String, Value>,
    name: &str,
) -> Result<T, WireError> {
    serde_json::from_value(Value::Object(parameters.clone()))
        .map_err(|_| WireError::service("InvalidParameter", json!({ "parameter": name })))
}

fn describe(parameters: &Map<String, Value>) -> Answer {
    let Some(name) = parameters.get("interface").and_then(Value::as_str) else {
        return Err(WireError::service("InvalidParameter", json!({ "parameter": "interface" })));
    };
    let description = match name {
        INTERFACE => DESCRIPTION,
        instance::INTERFACE => instance::DESCRIPTION,
        SERVICE => SERVICE_DESCRIPTION,
        _ => return Err(WireError::service("InterfaceNotFound", json!({ "interface": name }))),
    };
    Ok((json!({ "description": description }), Vec::new()))
}

impl<Sock: Socket> zlink::Service<Sock> for Service {
    type MethodCall<'de> = AnyCall<'de>;
    type ReplyParams<'ser>
        = Value
    where
        Self: 'ser;
    type ReplyStreamParams = ();
    type ReplyStreamError = Infallible;
    type ReplyStream = Empty<ReplyStreamItem<(), Infallible>>;
    type ReplyError<'ser>
        = WireError
    where
        Self: 'ser;
    type Upgrade = ();

    async fn handle<'ser>(
        &'ser mut self,
        call: &'ser Call<Self::MethodCall<'_>>,
        _connection: &mut Connection<Sock>,
        _descriptors: Vec<OwnedFd>,
    ) -> HandleResult<Self::ReplyParams<'ser>, Self::ReplyStream, Self::ReplyError<'ser>> {
        if call.upgrade() {
            let error = WireError::service("InvalidParameter", json!({ "parameter": "upgrade" }));
            return (MethodReply::Error(error), Vec::new());
        }
        match self.answer(call.method()) {
            Ok((value, descriptors)) => (MethodReply::Single(Some(value)), descriptors),
            Err(error) => (MethodReply::Error(error), Vec::new()),
        }
    }
}

/// The error of the interface as the client receives it.
#[derive(Debug, Clone, PartialEq, zlink::ReplyError)]
#[zlink(interface = "io.strata.Machine")]
pub(crate) enum Error {
    /// The machine does not do that now.
    NotPossible {
        /// Why, for a person to read.
        reason: String,
    },
}

/// Where in the reply's descriptors the console is.
#[derive(Debug, Deserialize)]
pub(crate) struct ConsoleReply {
    pub(crate) descriptor: u32,
}

/// The empty object of a method that returns nothing.
#[derive(Debug, Deserialize)]
pub(crate) struct Nothing {}

/// The methods as the client calls them.
#[proxy("io.strata.Machine")]
pub(crate) trait Calls {
    async fn get_status(&mut self) -> zlink::Result<Result<Status, Error>>;
    async fn get_statistics(&mut self) -> zlink::Result<Result<Statistics, Error>>;
    async fn pause(&mut self) -> zlink::Result<Result<Nothing, Error>>;
    async fn resume(&mut self) -> zlink::Result<Result<Nothing, Error>>;
    async fn power_off(&mut self) -> zlink::Result<Result<Nothing, Error>>;
    async fn reboot(&mut self) -> zlink::Result<Result<Nothing, Error>>;
    async fn quit(&mut self) -> zlink::Result<Result<Nothing, Error>>;
    async fn unplug(&mut self, device: &str, how: Unplug) -> zlink::Result<Result<Nothing, Error>>;
    async fn plug(
        &mut self,
        device: &str,
        kind: &str,
        queues: Option<u16>,
        mac: Option<&str>,
    ) -> zlink::Result<Result<Nothing, Error>>;
    #[zlink(return_fds)]
    async fn console(&mut self) -> zlink::Result<(Result<ConsoleReply, Error>, Vec<OwnedFd>)>;
}
