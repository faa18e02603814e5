//! The process that is locked in: `jail inmate ROLE STAGE ACT [ARGUMENT]`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use strata_sandbox::{Isolated, Namespaces, Role, SandboxError, Spec, isolate};

use crate::probes;

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let [role, stage, act @ ..] = arguments else { panic!("{arguments:?}") };
    let role = match role.as_str() {
        "vmm" => Role::Vmm,
        "vhost-blk" => Role::Blk,
        "vhost-net" => Role::Net,
        other => panic!("{other}"),
    };
    let act: Vec<&str> = act.iter().map(String::as_str).collect();
    match enter(role, stage, &act) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}: {:?}", std::error::Error::source(&error).map(ToString::to_string));
            ExitCode::from(99)
        }
    }
}

fn enter(role: Role, stage: &str, act: &[&str]) -> Result<u8, SandboxError> {
    let mut spec = Spec::new(role);
    match *act {
        ["threads-first"] => {
            let (_hold, wait) = std::sync::mpsc::channel::<()>();
            std::thread::spawn(move || wait.recv());
            return isolate(spec).map(|_| 0);
        }
        ["given" | "given-open"] => spec.namespaces = Namespaces::Given,
        ["die-with-parent"] => spec.die_with_parent = true,
        ["nurse"] => return Ok(nurse(role)),
        ["descriptors"] => strata_sandbox::close_inherited(&[]),
        ["descriptors-kept", kept] => strata_sandbox::close_inherited(&[0, kept.parse().unwrap()]),
        ["socket", path] => {
            // Left open: it is this process's from now on.
            std::mem::forget(std::os::unix::net::UnixListener::bind(path).unwrap());
            strata_sandbox::remove_at_end(std::path::Path::new(path), role)?;
        }
        ["connect", bind, ..] => spec.binds = vec![PathBuf::from(bind)],
        _ => {}
    }
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
    signals.thread_block().unwrap();
    let signals = SignalFd::new(&signals).unwrap();
    let devices = probes::Devices::open(role);
    match stage {
        "Open" => {}
        "Isolated" => return before_lock(isolate(spec)?, act),
        "Locked" => isolate(spec)?.lock()?,
        other => panic!("{other}"),
    }
    Ok(locked(act, &signals, &devices))
}

#[allow(clippy::zombie_processes)] // it does not come to waiting
/// Starts an inmate that is to die with this process, and waits to be killed.
fn nurse(role: Role) -> u8 {
    let child = std::process::Command::new("/proc/self/exe")
        .args(["inmate", role.program(), "Locked", "die-with-parent"])
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut child = child.unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
    say(&format!("ready\n{}\n", child.id()));
    loop {
        nix::unistd::pause();
    }
}

fn before_lock(isolated: Isolated, act: &[&str]) -> Result<u8, SandboxError> {
    if let ["tmpfs"] = *act {
        say(&probes::tmpfs(&isolated));
        return Ok(0);
    }
    say("ready\n");
    until_closed();
    isolated.lock()?;
    Ok(0)
}

fn locked(act: &[&str], signals: &SignalFd, devices: &probes::Devices) -> u8 {
    match *act {
        ["given-open"] => say(&format!("{}\n", probes::probe("open", devices))),
        ["wait" | "given" | "die-with-parent" | "descriptors" | "descriptors-kept", ..] => {
            say("ready\n");
            until_closed();
        }
        ["exit", code] => return code.parse().unwrap(),
        ["abort"] => std::process::abort(),
        ["panic"] => panic!("in the sandbox"),
        ["overflow"] => return overflow(0),
        ["signal"] | ["socket", _] => {
            say("ready\n");
            let got = signals.read_signal().unwrap().unwrap();
            say(&format!("{}\n", got.ssi_signo));
            return 3;
        }
        ["probe", name] => say(&format!("{}\n", probes::probe(name, devices))),
        ["ordinary"] => say(&probes::ordinary(devices)),
        ["connect", _, path] => {
            // Twice: the socket may be a new one by then, of a backend that came back.
            for _ in 0..2 {
                let answer = UnixStream::connect(path).map(|mut peer| peer.write_all(b"x"));
                say(&format!("{answer:?}\n"));
                let _ = std::io::stdin().read_exact(&mut [0]);
            }
        }
        _ => panic!("{act:?}"),
    }
    0
}

#[expect(unconditional_recursion, reason = "to see what becomes of a stack overflow")]
fn overflow(depth: u8) -> u8 {
    let array = std::hint::black_box([depth; 4096]);
    overflow(array[17]).wrapping_add(1)
}

fn until_closed() {
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Standard output, without a buffer that dies with the process.
fn say(text: &str) {
    let _ = nix::unistd::write(std::io::stdout(), text.as_bytes());
}
