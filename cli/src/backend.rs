//! A call to a backend's control socket: Varlink (<https://varlink.org>), one question and one answer.
//!
//! Called by the commands that read counters ([`crate::meter`]) and by those that change a disk or a NIC ([`crate::disk`], [`crate::net`]).
//! Refuses answers longer than `LONGEST` and such that are no Varlink.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr};
use serde_json::{Value, json};

/// Longest answer of a backend that is read.
const LONGEST: usize = 1 << 20;

/// Why there is no answer, or one that says no.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("cannot reach the backend at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the backend does not answer within {} s", patience.as_secs_f32())]
    Silent { patience: Duration },
    #[error("the conversation with the backend broke off")]
    Broken(#[source] io::Error),
    #[error("the backend's answer is no Varlink")]
    NotVarlink(#[source] Option<serde_json::Error>),
    /// Its own words.
    #[error("{0}")]
    Refused(String),
    #[error("the backend answers {error} {parameters}")]
    Failed { error: String, parameters: Value },
}

/// Where the launcher has a backend listen for control.
pub(crate) fn control_socket(folder: &Path, id: &str) -> PathBuf {
    folder.join(format!("{id}.control"))
}

/// Calls `method` and gives the answer's parameters. Waits at most `patience` for each step.
pub(crate) fn call(
    socket: &Path,
    method: &str,
    parameters: Value,
    patience: Duration,
) -> Result<Value, CallError> {
    ask(socket, &question(method, parameters), patience).map(|(parameters, _)| parameters)
}

/// Calls a `method` that takes the connection over, and gives that.
pub(crate) fn take_over(
    socket: &Path,
    method: &str,
    parameters: Value,
    patience: Duration,
) -> Result<UnixStream, CallError> {
    let mut question = question(method, parameters);
    if let Some(fields) = question.as_object_mut() {
        fields.insert("upgrade".to_owned(), Value::Bool(true));
    }
    ask(socket, &question, patience).map(|(_, stream)| stream)
}

fn question(method: &str, parameters: Value) -> Value {
    match parameters {
        Value::Null => json!({ "method": method }),
        parameters => json!({ "method": method, "parameters": parameters }),
    }
}

/// One question and its answer's parameters, and the connection, of which nothing else has been read.
fn ask(socket: &Path, question: &Value, patience: Duration) -> Result<(Value, UnixStream), CallError> {
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => CallError::Silent { patience },
        _ => CallError::Broken(error),
    };
    let mut stream =
        connect(socket).map_err(|source| CallError::Connect { path: socket.to_owned(), source })?;
    stream.set_read_timeout(Some(patience)).map_err(broken)?;
    stream.set_write_timeout(Some(patience)).map_err(broken)?;
    stream.write_all(format!("{question}\0").as_bytes()).map_err(broken)?;
    let mut answer = Vec::new();
    // The connection stays open after the answer, whose end is a NUL; what follows one is not ours to read.
    while answer.last() != Some(&0) {
        let mut part = [0; 4096];
        let seen = peek(&stream, &mut part).map_err(broken)?;
        let seen = part.get(..seen).unwrap_or_default();
        let wanted = seen.iter().position(|byte| *byte == 0).map_or(seen.len(), |end| end + 1);
        if wanted == 0 || answer.len() + wanted > LONGEST {
            return Err(broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let bytes = stream.read(part.get_mut(..wanted).unwrap_or_default()).map_err(broken)?;
        answer.extend_from_slice(part.get(..bytes).unwrap_or_default());
    }
    answer.pop();
    Ok((read(&answer)?, stream))
}

/// Waits for bytes and shows them without taking them.
fn peek(stream: &UnixStream, out: &mut [u8]) -> io::Result<usize> {
    Ok(socket::recv(stream.as_raw_fd(), out, MsgFlags::MSG_PEEK)?)
}

/// Connects, and does not wait where nobody accepts any more: a socket's backlog may be full.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn read(answer: &[u8]) -> Result<Value, CallError> {
    let mut answer: Value =
        serde_json::from_slice(answer).map_err(|error| CallError::NotVarlink(Some(error)))?;
    let fields = answer.as_object_mut().ok_or(CallError::NotVarlink(None))?;
    let parameters = fields.remove("parameters").unwrap_or_else(|| json!({}));
    let Some(error) = fields.remove("error") else { return Ok(parameters) };
    let error = error.as_str().ok_or(CallError::NotVarlink(None))?.to_owned();
    Err(match parameters.get("reason").and_then(Value::as_str) {
        Some(reason) if error.ends_with(".Refused") => CallError::Refused(reason.to_owned()),
        _ => CallError::Failed { error, parameters },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend that answers once, in two parts as a socket may have it. What it was asked.
    fn answering(answer: &'static [u8]) -> (tempfile::TempDir, PathBuf, std::thread::JoinHandle<Vec<u8>>) {
        let folder = tempfile::tempdir().unwrap();
        let path = control_socket(folder.path(), "disk0");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut call = Vec::new();
            let mut byte = [1];
            while byte != [0] {
                client.read_exact(&mut byte).unwrap();
                call.extend(byte);
            }
            let (first, second) = answer.split_at(answer.len() / 2);
            client.write_all(first).unwrap();
            client.write_all(second).unwrap();
            let _ = client.read(&mut [0]);
            call
        });
        (folder, path, server)
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_backend_is_asked_and_answers() {
        let (_folder, path, server) = answering(b"{\"parameters\":{\"bytes\":7}}\0");
        let answer = call(&path, "io.strata.Disk.GetStatus", Value::Null, PATIENCE).unwrap();
        assert_eq!(answer, json!({ "bytes": 7 }));
        assert_eq!(server.join().unwrap(), b"{\"method\":\"io.strata.Disk.GetStatus\"}\0");
    }

    #[test]
    fn a_refusal_is_told_in_the_backends_words() {
        let (_folder, path, server) =
            answering(b"{\"error\":\"io.strata.Disk.Refused\",\"parameters\":{\"reason\":\"too small\"}}\0");
        let error = call(&path, "io.strata.Disk.Resize", json!({ "bytes": 1 }), PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), "too small");
        let asked = b"{\"method\":\"io.strata.Disk.Resize\",\"parameters\":{\"bytes\":1}}\0";
        assert_eq!(server.join().unwrap(), asked);
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        for answer in [&b"nonsense\0"[..], b"[]\0", b"{\"error\":1}\0"] {
            assert!(matches!(read(answer.strip_suffix(&[0]).unwrap()), Err(CallError::NotVarlink(_))));
        }
        let unknown = read(b"{\"error\":\"org.varlink.service.MethodNotFound\"}").unwrap_err();
        assert_eq!(unknown.to_string(), "the backend answers org.varlink.service.MethodNotFound {}");
        let (_folder, path, server) = answering(b"no end");
        let error = call(&path, "x.Y", Value::Null, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CallError::Silent { .. }), "{error}");
        server.join().unwrap();
        assert!(matches!(call(&path, "x.Y", Value::Null, PATIENCE), Err(CallError::Connect { .. })));
    }
}
