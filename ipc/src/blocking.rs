//! Varlink for a process that has no asynchronous runtime: a backend answers a handful of methods, and the memory
//! of a runtime is more than that of the whole backend.
//!
//! Owns the framing (JSON objects, each followed by a zero byte), the errors and introspection every service
//! has, and the care with whoever connects. A backend's `main` calls [`spawn`] with its [`Interface`]. Clients are
//! of the host and are served one after another; one that does not speak for a while is dropped.
//!
//! Refuses, with Varlink's own errors, unknown interfaces, methods and wrong parameters; drops clients whose
//! messages are no JSON, or longer than 64 KiB.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// Longest message.
const LONGEST: usize = 64 << 10;
/// How long a client may take for one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Enough for a message and its answer; the default of 8 MiB is only address space, but counts where limits are.
const STACK: usize = 256 << 10;

/// The part of Varlink's own interface that every service has.
const SERVICE: &str = "interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
";

/// What a service answers.
pub trait Interface: Send + 'static {
    /// Its name, `io.strata.Net`.
    fn name(&self) -> &'static str;

    /// Its description in Varlink's language.
    fn description(&self) -> &'static str;

    /// The program it is part of.
    fn product(&self) -> &'static str;

    /// Answers a method, given without the interface's name.
    ///
    /// # Errors
    /// What goes to the client instead; [`Failure::unknown`] for a method there is not.
    fn call(&self, method: &str, parameters: Value) -> Result<Value, Failure>;

    /// Answers a call that takes the connection over for something else (Varlink's `upgrade`): what is returned gets
    /// the connection after the reply, on a thread of its own.
    ///
    /// # Errors
    /// As for [`Interface::call`].
    fn upgrade(&self, method: &str, _parameters: Value) -> Result<Upgraded, Failure> {
        Err(Failure::unknown(method))
    }
}

/// What is done with a connection that is no longer Varlink's.
pub type Upgraded = Box<dyn FnOnce(UnixStream) + Send>;

/// An error reply.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    kind: Kind,
    parameters: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `Refused` of the service's own interface.
    Refused,
    /// One of Varlink's own.
    Service(&'static str),
}

impl Failure {
    /// The interface's `Refused (reason: string)`: it could not be done, and why.
    #[must_use]
    pub fn refused(reason: impl std::fmt::Display) -> Self {
        Self { kind: Kind::Refused, parameters: json!({ "reason": reason.to_string() }) }
    }

    /// There is no such method.
    #[must_use]
    pub fn unknown(method: &str) -> Self {
        Self { kind: Kind::Service("MethodNotFound"), parameters: json!({ "method": method }) }
    }

    fn invalid(parameter: &str) -> Self {
        Self { kind: Kind::Service("InvalidParameter"), parameters: json!({ "parameter": parameter }) }
    }

    fn no_interface(interface: &str) -> Self {
        Self { kind: Kind::Service("InterfaceNotFound"), parameters: json!({ "interface": interface }) }
    }
}

/// A call's parameters as a value; `name` is what an error names.
///
/// # Errors
/// They are not of that shape.
pub fn parameters<T: DeserializeOwned>(value: Value, name: &str) -> Result<T, Failure> {
    let value = if value.is_null() { json!({}) } else { value };
    // A list would do for a structure, too.
    if !value.is_object() {
        return Err(Failure::invalid(name));
    }
    serde_json::from_value(value).map_err(|_| Failure::invalid(name))
}

#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    parameters: Value,
    #[serde(default)]
    oneway: bool,
    #[serde(default)]
    upgrade: bool,
}

/// Answers clients for as long as the process lives.
///
/// # Errors
/// No thread is left.
pub fn spawn(listener: UnixListener, service: impl Interface) -> io::Result<()> {
    let serve = move || {
        loop {
            match listener.accept() {
                Ok((client, _)) => {
                    if let Err(error) = attend(client, &service) {
                        tracing::debug!("a control client is dropped: {error}");
                    }
                }
                // A client that went before it was accepted, or no descriptor left for now.
                Err(error) => {
                    tracing::debug!("no control client: {error}");
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    };
    std::thread::Builder::new().name("varlink".into()).stack_size(STACK).spawn(serve).map(drop)
}

/// One client's calls.
fn attend(client: UnixStream, service: &dyn Interface) -> io::Result<()> {
    client.set_nonblocking(true)?;
    let mut received = Vec::new();
    loop {
        while let Some(end) = received.iter().position(|byte| *byte == 0) {
            let message: Vec<u8> = received.drain(..=end).collect();
            let message = message.split_last().map_or(&[][..], |(_, message)| message);
            let answer = answer(message, service)?;
            if let Some(reply) = answer.reply {
                send(&client, &reply)?;
            }
            if let Some(upgraded) = answer.upgraded {
                let thread = std::thread::Builder::new().name("upgraded".into()).stack_size(STACK);
                return thread.spawn(move || upgraded(client)).map(drop);
            }
        }
        if received.len() > LONGEST {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message longer than 64 KiB"));
        }
        wait(&client, PollFlags::POLLIN)?;
        let mut part = [0; 4096];
        match (&client).read(&mut part) {
            Ok(0) => return Ok(()),
            Ok(length) => received.extend(part.get(..length).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

fn send(mut client: &UnixStream, reply: &[u8]) -> io::Result<()> {
    let mut rest = reply;
    while !rest.is_empty() {
        match client.write(rest) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait(client, PollFlags::POLLOUT)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait(client: &UnixStream, what: PollFlags) -> io::Result<()> {
    let timeout = PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(client.as_fd(), what)], timeout) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) | Err(nix::Error::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What a message leads to.
struct Answer {
    /// `None`: no answer is wanted.
    reply: Option<Vec<u8>>,
    upgraded: Option<Upgraded>,
}

/// Answers one message, without its final zero byte.
fn answer(message: &[u8], service: &dyn Interface) -> io::Result<Answer> {
    let call: Call =
        serde_json::from_slice(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let (oneway, upgrade) = (call.oneway, call.upgrade);
    let (done, upgraded) = if upgrade {
        match take_over(call, service) {
            Ok(upgraded) => (Ok(json!({})), Some(upgraded)),
            Err(failure) => (Err(failure), None),
        }
    } else {
        (handle(call, service), None)
    };
    let reply = match done {
        Ok(parameters) => json!({ "parameters": parameters }),
        Err(Failure { kind, parameters }) => {
            let error = match kind {
                Kind::Refused => format!("{}.Refused", service.name()),
                Kind::Service(name) => format!("org.varlink.service.{name}"),
            };
            json!({ "error": error, "parameters": parameters })
        }
    };
    let mut bytes = serde_json::to_vec(&reply)?;
    bytes.push(0);
    Ok(Answer { reply: (!oneway).then_some(bytes), upgraded })
}

fn take_over(call: Call, service: &dyn Interface) -> Result<Upgraded, Failure> {
    match call.method.rsplit_once('.') {
        Some((interface, method)) if interface == service.name() => {
            service.upgrade(method, call.parameters).map_err(|failure| in_full(failure, &call.method))
        }
        _ => Err(Failure::unknown(&call.method)),
    }
}

/// A client knows a method by its full name.
fn in_full(failure: Failure, method: &str) -> Failure {
    match failure.kind {
        Kind::Service("MethodNotFound") => Failure::unknown(method),
        _ => failure,
    }
}

fn handle(call: Call, service: &dyn Interface) -> Result<Value, Failure> {
    match call.method.rsplit_once('.') {
        Some((interface, method)) if interface == service.name() => {
            service.call(method, call.parameters).map_err(|failure| in_full(failure, &call.method))
        }
        Some(("org.varlink.service", "GetInfo")) => Ok(json!({
            "vendor": "Strata",
            "product": service.product(),
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": ["org.varlink.service", service.name()],
        })),
        Some(("org.varlink.service", "GetInterfaceDescription")) => {
            #[derive(Deserialize)]
            struct Wanted {
                interface: String,
            }
            let wanted: Wanted = parameters(call.parameters, "interface")?;
            match wanted.interface.as_str() {
                "org.varlink.service" => Ok(json!({ "description": SERVICE })),
                name if name == service.name() => Ok(json!({ "description": service.description() })),
                other => Err(Failure::no_interface(other)),
            }
        }
        Some(("org.varlink.service", _)) | None => Err(Failure::unknown(&call.method)),
        Some((interface, _)) => Err(Failure::no_interface(interface)),
    }
}

#[cfg(test)]
#[path = "blocking_test.rs"]
mod blocking_test;
