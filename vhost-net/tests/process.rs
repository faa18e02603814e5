//! The program itself: command line, what it refuses, its sandbox, its end, and being killed under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod scene;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scene::{Guest, LONG, MAC, USUAL, frame, namespace, until};
use strata_vhost_net::host::Namespace;
use strata_vhost_net::tap::{Tap, TapError};

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-net");
const PLAIN: [u8; 12] = [0; 12];

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(PROGRAM);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn output(namespace: &Namespace, arguments: &[&str]) -> Output {
    namespace.run(|| command(arguments).output()).unwrap().unwrap()
}

/// The one line on standard error of a run that has to fail.
fn complaint(namespace: &Namespace, arguments: &[&str]) -> String {
    let output = output(namespace, arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("vhost-net: ")).collect();
    assert_eq!(lines.len(), 1, "{text}");
    lines[0].to_owned()
}

/// Leaves a descriptor open for the child.
fn pass(fd: &OwnedFd) -> String {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd.as_raw_fd().to_string()
}

struct Running {
    child: Child,
}

impl Running {
    fn start(namespace: &Namespace, arguments: &[&str]) -> Self {
        let mut command = command(arguments);
        command.stdout(Stdio::null()).stderr(Stdio::inherit());
        Self { child: namespace.run(|| command.spawn()).unwrap().unwrap() }
    }

    /// The process that serves: the innermost of the sandbox's.
    fn inner(&self) -> u32 {
        let mut pid = self.child.id();
        loop {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            match children.split_whitespace().next().and_then(|child| child.parse().ok()) {
                Some(child) => pid = child,
                None => return pid,
            }
        }
    }

    /// Ends it, and waits until nothing of it runs any more.
    fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let inner = self.inner();
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
        let status = self.child.wait().unwrap();
        // Whoever inherits it may leave it unreaped for a while; a dead process touches nothing.
        let alive = |stat: String| stat.rsplit(')').next().is_some_and(|rest| !rest.trim().starts_with('Z'));
        until("its sandboxed process is gone", || {
            !std::fs::read_to_string(format!("/proc/{inner}/stat")).is_ok_and(alive)
        });
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn status(pid: u32, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn dir() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("net.sock");
    (dir, socket)
}

fn connected(socket: &Path) -> UnixStream {
    let deadline = Instant::now() + LONG;
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn capabilities() {
    let output = command(&["--print-capabilities"]).output().unwrap();
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["type"], "net");
}

#[test]
fn wrong_lines_end_with_two() {
    for line in [
        "",
        "--nonsense",
        "--socket-path /nowhere/s",
        "--tap t",
        "--socket-path /nowhere/s --tap t --mac 01:00:00:00:00:00",
        "--fd 5 --tap-fd 5",
    ] {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let output = command(&arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn what_cannot_be_opened_is_named() {
    let Some(namespace) = namespace() else { return };
    let (_dir, socket) = dir();
    let socket = socket.to_str().unwrap();
    let missing = complaint(&namespace, &["--tap", "nosuch0", "--socket-path", socket]);
    assert!(missing.contains("nosuch0 does not exist"), "{missing}");
    let bad = complaint(&namespace, &["--tap", "a/b", "--socket-path", socket]);
    assert!(bad.contains("no interface name"), "{bad}");
    let held = namespace.run(|| Tap::open("held0", 1, true)).unwrap().unwrap();
    let busy = complaint(&namespace, &["--tap", "held0", "--socket-path", socket]);
    assert!(busy.contains("held0 is in use"), "{busy}");
    drop(held);
    namespace.ip("tuntap add dev single0 mode tap").unwrap();
    let single = complaint(&namespace, &["--tap", "single0", "--num-queues", "2", "--socket-path", socket]);
    assert!(single.contains("without multi_queue"), "{single}");
    let other = complaint(&namespace, &["--tap", "lo", "--socket-path", socket]);
    assert!(other.contains("lo cannot be opened as a tap"), "{other}");
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    let number = pass(&file);
    let none = complaint(&namespace, &["--tap-fd", &number, "--socket-path", socket]);
    assert!(none.contains("is none"), "{none}");
    let closed = complaint(&namespace, &["--tap-fd", "999", "--socket-path", socket]);
    assert!(closed.contains("999"), "{closed}");
    let listener = UnixListener::bind(socket).unwrap();
    let used = complaint(&namespace, &["--tap", "t0", "--create-tap", "--socket-path", socket]);
    assert!(used.contains("is in use: another process listens on it"), "{used}");
    drop(listener);
    assert!(!namespace.run(|| Path::new("/sys/class/net/t0").exists()).unwrap());
}

#[test]
fn a_tap_made_for_several_queues_serves_one() {
    let Some(namespace) = namespace() else { return };
    namespace.ip("tuntap add dev many0 mode tap multi_queue").unwrap();
    let open = |pairs| namespace.run(move || Tap::open("many0", pairs, false)).unwrap();
    assert_eq!(open(1).unwrap().pairs(), 1);
    assert_eq!(open(3).unwrap().pairs(), 3);
    assert!(matches!(open(0), Err(TapError::Pairs(0))));
    assert!(matches!(open(257), Err(TapError::Pairs(257))));
}

#[test]
fn it_serves_from_inside_a_sandbox_and_ends_cleanly() {
    let Some(namespace) = namespace() else { return };
    let (_dir, socket) = dir();
    let mut running = Running::start(
        &namespace,
        &["--tap", "tap0", "--create-tap", "--socket-path", socket.to_str().unwrap(), "--num-queues", "2"],
    );
    drop(connected(&socket));
    namespace.ip("link set tap0 up").unwrap();
    let wire = namespace.wire("tap0", false).unwrap();
    // One client after another.
    for number in 0..3 {
        let mut guest = Guest::new(&socket, USUAL, 2, 64);
        guest.start_control(2);
        assert_eq!(guest.command(&[4, 0, 2, 0]), 0);
        assert_eq!(guest.command(&[0, 0, 1]), 0);
        assert_eq!(guest.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), 0);
        guest.send(1, PLAIN, &frame(number, 100));
        assert_eq!(wire.receive(LONG).unwrap(), Some(frame(number, 100)));
        (0..2).for_each(|pair| guest.post(pair, 50));
        wire.send(&frame(number, 300)).unwrap();
        let mut received = false;
        until("it is received on one of the pairs", || {
            received |= guest.rx.iter_mut().any(|queue| queue.poll().is_some());
            received
        });
    }
    let inner = running.inner();
    assert_eq!(status(inner, "Seccomp"), "2");
    assert_eq!(status(inner, "CapEff"), "0000000000000000");
    assert_eq!(status(inner, "NoNewPrivs"), "1");
    let memory: u64 = status(inner, "RssAnon").trim_end_matches(" kB").parse().unwrap();
    assert!(memory < 32 * 1024, "{memory} kB of private memory");
    assert!(running.end(Signal::SIGTERM).success());
    assert!(!socket.exists(), "the socket it made is removed");
}

/// One call over Varlink; the reply's parameters, or the name of its error.
fn call(socket: &Path, method: &str, parameters: serde_json::Value) -> Result<serde_json::Value, String> {
    use std::io::{BufRead, Write};
    let mut stream = connected(socket);
    let message = serde_json::json!({ "method": method, "parameters": parameters });
    stream.write_all(&[message.to_string().as_bytes(), &[0]].concat()).unwrap();
    let mut reply = Vec::new();
    std::io::BufReader::new(stream).read_until(0, &mut reply).unwrap();
    assert_eq!(reply.pop(), Some(0));
    let reply: serde_json::Value = serde_json::from_slice(&reply).unwrap();
    match reply["error"].as_str() {
        Some(error) => Err(error.to_owned()),
        None => Ok(reply["parameters"].clone()),
    }
}

#[test]
fn it_is_controlled_while_it_runs() {
    let Some(namespace) = namespace() else { return };
    let (dir, socket) = dir();
    let control = dir.path().join("control.sock");
    let listener: OwnedFd = UnixListener::bind(&control).unwrap().into();
    let mut running = Running::start(
        &namespace,
        &["--tap", "tap0", "--create-tap", "--num-queues", "2", "--socket-path", socket.to_str().unwrap()]
            .into_iter()
            .chain(["--control-fd", &pass(&listener)])
            .collect::<Vec<_>>(),
    );
    let nothing = || serde_json::json!({});
    let status = || call(&control, "io.strata.Net.GetStatus", nothing()).unwrap();
    assert_eq!(status()["features"], "0x0");
    namespace.ip("link set tap0 up").unwrap();
    let wire = namespace.wire("tap0", false).unwrap();
    drop(connected(&socket));
    let mut guest = Guest::new(&socket, USUAL, 1, 64);
    let _channel = guest.frontend.channel().unwrap();
    guest.send(0, PLAIN, &frame(1, 100));
    assert_eq!(wire.receive(LONG).unwrap(), Some(frame(1, 100)));
    let now = status();
    assert_eq!((&now["link"], &now["pairs"], &now["active_pairs"]), (&true.into(), &2.into(), &1.into()));
    assert_eq!(now["tap_present"], true);
    call(&control, "io.strata.Net.SetLink", serde_json::json!({ "up": false })).unwrap();
    assert_eq!(guest.frontend.config(6, 2).unwrap(), [0, 0]);
    guest.send(0, PLAIN, &frame(2, 100));
    assert_eq!(call(&control, "io.strata.Net.Announce", nothing()), Err("io.strata.Net.Refused".to_owned()));
    call(&control, "io.strata.Net.SetLink", serde_json::json!({ "up": true })).unwrap();
    call(&control, "io.strata.Net.Announce", nothing()).unwrap();
    assert_eq!(guest.frontend.config(6, 2).unwrap(), [3, 0]);
    let statistics = call(&control, "io.strata.Net.GetStatistics", nothing()).unwrap();
    let pair = &statistics["pairs"][0];
    assert_eq!((&pair["tx_frames"], &pair["tx_drop_link"]), (&1.into(), &1.into()));
    let metrics = call(&control, "io.strata.Net.GetMetrics", nothing()).unwrap();
    let text = metrics["text"].as_str().unwrap();
    assert!(text.contains("strata_net_tx_frames_total{nic=\"tap0\",pair=\"0\"} 1\n"), "{text}");
    let unknown = call(&control, "io.strata.Net.Nonsense", nothing());
    assert_eq!(unknown, Err("org.varlink.service.MethodNotFound".to_owned()));
    let wrong = call(&control, "io.strata.Net.SetLink", serde_json::json!({ "up": 7 }));
    assert_eq!(wrong, Err("org.varlink.service.InvalidParameter".to_owned()));
    drop(guest);
    assert!(running.end(Signal::SIGTERM).success());
}

#[test]
fn descriptors_from_a_launcher() {
    let Some(namespace) = namespace() else { return };
    let (_dir, socket) = dir();
    let listener: OwnedFd = UnixListener::bind(&socket).unwrap().into();
    let tap = namespace.run(|| Tap::open("tap0", 2, true)).unwrap().unwrap();
    namespace.ip("link set tap0 up").unwrap();
    let fds: Vec<OwnedFd> =
        (0..2).map(|pair| tap.queue(pair).unwrap().try_clone_to_owned().unwrap()).collect();
    let list = fds.iter().map(pass).collect::<Vec<_>>().join(",");
    // In another namespace than the tap: its descriptors are all it has.
    let elsewhere = Namespace::new().unwrap();
    let mut running = Running::start(&elsewhere, &["--tap-fd", &list, "--fd", &pass(&listener)]);
    let wire = namespace.wire("tap0", false).unwrap();
    let mut guest = Guest::new(&socket, USUAL, 2, 64);
    guest.send(1, PLAIN, &frame(1, 100));
    assert_eq!(wire.receive(LONG).unwrap(), Some(frame(1, 100)));
    drop(guest);
    assert!(running.end(Signal::SIGTERM).success());
    assert!(socket.exists(), "a socket it was given stays");
}

/// Killed in the middle of traffic and started again on the same descriptors: the rings go on, and no buffer is
/// lost or used twice.
#[test]
fn killed_and_started_again_under_load() {
    let Some(namespace) = namespace() else { return };
    let (_dir, socket) = dir();
    let listener: OwnedFd = UnixListener::bind(&socket).unwrap().into();
    let tap = namespace.run(|| Tap::open("tap0", 1, true)).unwrap().unwrap();
    namespace.ip("link set tap0 up").unwrap();
    let tap_fd = tap.queue(0).unwrap().try_clone_to_owned().unwrap();
    let (tap_number, listener_number) = (pass(&tap_fd), pass(&listener));
    let arguments = ["--tap-fd", tap_number.as_str(), "--fd", listener_number.as_str()];
    let wire = namespace.wire("tap0", false).unwrap();
    let mut running = Running::start(&namespace, &arguments);
    let mut guest = Guest::new(&socket, USUAL, 1, 64);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = wire.send(&frame(number, 60 + number as usize % 1400));
                number += 1;
            }
        });
        for round in 0..20 {
            let deadline = Instant::now() + Duration::from_millis(20 + 7 * round % 30);
            let mut last = None;
            let mut busy = true;
            while busy || Instant::now() < deadline {
                let free = usize::from(guest.rx[0].free());
                guest.post(0, free);
                while guest.tx[0].free() > 0 {
                    guest.post_frame(0, PLAIN, &frame(round as u32, 100));
                }
                guest.flush(0);
                if let Some((_, received)) = guest.receive_within(0, Duration::from_secs(10)) {
                    // A frame is whole, and no frame comes twice or out of order.
                    let number = u32::from_be_bytes([received[14], received[15], received[16], received[17]]);
                    assert_eq!(received, frame(number, received.len()));
                    assert!(last < Some(number), "{last:?} before {number}");
                    last = Some(number);
                    busy = false;
                }
                while guest.tx[0].poll().is_some() {}
            }
            running.end(Signal::SIGKILL);
            // What it had shown before it died is still taken.
            while guest.tx[0].poll().is_some() {}
            while guest.rx[0].poll().is_some() {}
            running = Running::start(&namespace, &arguments);
            guest.reconnect(&socket);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    drop(guest);
    assert!(running.end(Signal::SIGTERM).success());
}

#[test]
fn a_dead_tap_costs_nothing() {
    let Some(namespace) = namespace() else { return };
    let (_dir, socket) = dir();
    let mut running = Running::start(
        &namespace,
        &["--tap", "tap0", "--create-tap", "--socket-path", socket.to_str().unwrap()],
    );
    let mut guest = Guest::new(
        &{
            drop(connected(&socket));
            socket
        },
        USUAL,
        1,
        64,
    );
    guest.post(0, 50);
    namespace.ip("link set tap0 up").unwrap();
    guest.send(0, PLAIN, &frame(1, 100));
    namespace.ip("link del tap0").unwrap();
    guest.send(0, PLAIN, &frame(2, 100));
    let clock = nix::time::clock_getcpuclockid(Pid::from_raw(running.inner() as i32)).unwrap();
    let used = || Duration::from(nix::time::clock_gettime(clock).unwrap());
    let before = used();
    std::thread::sleep(Duration::from_millis(500));
    let spent = used() - before;
    assert!(spent < Duration::from_millis(100), "{spent:?} in half a second of nothing");
    drop(guest);
    assert!(running.end(Signal::SIGTERM).success());
}

#[test]
fn the_card_it_was_asked_for() {
    let Some(namespace) = namespace() else { return };
    let (_dir, socket) = dir();
    let mac = MAC.to_string();
    let mut running = Running::start(
        &namespace,
        &["--tap", "t0", "--create-tap", "--socket-path", socket.to_str().unwrap(), "--mac", &mac],
    );
    drop(connected(&socket));
    let mut guest = Guest::new(&socket, USUAL, 1, 64);
    assert_eq!(guest.frontend.config(0, 6).unwrap(), MAC.bytes());
    drop(guest);
    assert!(running.end(Signal::SIGINT).success());
}
