//! Any bytes to the control sockets: the backends' and launcher's (blocking), and the vmm's. Whoever comes next is
//! answered.
#![no_main]

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use strata_ipc::blocking::{Failure, Interface, parameters, spawn};
use strata_ipc::{Control, MachineState, NewDevice, Refused, Statistics, Status, Unplug};

struct Adder;

impl Interface for Adder {
    fn name(&self) -> &'static str {
        "io.strata.Test"
    }
    fn description(&self) -> &'static str {
        "interface io.strata.Test\n\nmethod Add(a: int, b: int) -> (sum: int)\n"
    }
    fn product(&self) -> &'static str {
        "fuzz"
    }
    fn call(&self, method: &str, given: Value) -> Result<Value, Failure> {
        match method {
            "Add" => {
                parameters::<[i64; 2]>(given, "a").map(|both| json!({ "sum": both[0].wrapping_add(both[1]) }))
            }
            _ => Err(Failure::unknown(method)),
        }
    }
}

struct Machine;

impl Control for Machine {
    fn status(&self) -> Status {
        Status {
            name: "fuzz".into(),
            state: MachineState::Running,
            cpus: 1,
            memory_bytes: 1,
            memory_backing: String::new(),
            reboots: 0,
            devices: Vec::new(),
        }
    }
    fn pause(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn resume(&self) -> Result<(), Refused> {
        Err(Refused::new("no"))
    }
    fn power_off(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn reboot(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn quit(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn console(&self) -> Result<OwnedFd, Refused> {
        UnixStream::pair().map(|(one, _)| one.into()).map_err(|error| Refused::new(error.to_string()))
    }
    fn unplug(&self, device: &str, how: Unplug) -> Result<(), Refused> {
        Err(Refused::new(format!("{device} {how:?}")))
    }
    fn plug(&self, device: &NewDevice) -> Result<(), Refused> {
        Err(Refused::new(format!("{device:?}")))
    }
    fn statistics(&self) -> Statistics {
        Statistics::default()
    }
}

/// The sockets of both servers, which live as long as the process.
fn servers() -> [PathBuf; 2] {
    let path = |name: &str| std::env::temp_dir().join(format!("strata-fuzz-{name}-{}", std::process::id()));
    let paths = [path("blocking"), path("machine")];
    let [one, other] = paths.clone().map(|path| UnixListener::bind(path).expect("a socket"));
    spawn(one, Adder).expect("a thread");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(strata_ipc::serve(other, Arc::new(Machine))).expect("serving");
    });
    paths
}

/// Sends, hangs up on its own side, reads until the server has done so too.
fn say(path: &PathBuf, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(path).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(20))).ok()?;
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the server hangs"),
        _ => Some(answer),
    }
}

fuzz_target!(|data: &[u8]| {
    static SERVERS: OnceLock<[PathBuf; 2]> = OnceLock::new();
    static RUNS: AtomicU32 = AtomicU32::new(0);
    let servers = SERVERS.get_or_init(servers);
    let Some((&which, bytes)) = data.split_first() else { return };
    let server = &servers[usize::from(which & 1)];
    say(server, bytes);
    if RUNS.fetch_add(1, Ordering::Relaxed).is_multiple_of(64) {
        let answer = say(server, b"{\"method\":\"org.varlink.service.GetInfo\"}\0");
        assert!(
            answer.is_some_and(|answer| answer.starts_with(b"{\"parameters\"")),
            "an honest client is not answered"
        );
    }
});
