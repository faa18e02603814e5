//! A backend's control socket from outside: one Varlink call, for backends that a case starts itself.
//!
//! Called by: cases whose backend has no launcher. Machines are asked through `strata`.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::{Value, json};

use crate::lines::limit;

/// A listening socket that children inherit.
pub struct Control {
    listener: UnixListener,
    path: PathBuf,
}

impl Control {
    /// Listens at `path`.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub fn listen(path: &Path) -> anyhow::Result<Self> {
        let listener = UnixListener::bind(path).with_context(|| format!("cannot make {}", path.display()))?;
        fcntl(&listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// For the child's command line.
    pub fn fd(&self) -> String {
        self.listener.as_raw_fd().to_string()
    }

    /// Calls a method of the child's and gives the answer's parameters.
    ///
    /// # Errors
    /// If there is no answer, or it is an error.
    pub fn call(&self, method: &str, parameters: Value) -> anyhow::Result<Value> {
        let mut stream = UnixStream::connect(&self.path)?;
        stream.set_read_timeout(Some(limit()))?;
        stream
            .write_all(format!("{}\0", json!({ "method": method, "parameters": parameters })).as_bytes())?;
        let mut answer = Vec::new();
        let mut byte = [0];
        loop {
            stream.read_exact(&mut byte).with_context(|| format!("no answer to {method}"))?;
            match byte {
                [0] => break,
                [byte] => answer.push(byte),
            }
        }
        let mut answer: Value = serde_json::from_slice(&answer)?;
        if let Some(error) = answer.get("error") {
            bail!("{method}: {error} {answer}");
        }
        Ok(answer.get_mut("parameters").map(Value::take).unwrap_or_default())
    }
}
