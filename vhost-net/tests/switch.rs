//! `vhost-net --switch` itself: command line, sandbox, control, uplink, its end, and being killed under load.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // all of it is a test

mod lab;
mod scene;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::{EVERYONE, PLAIN, crosses, ethernet, mac, number_of};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use scene::{Guest, LONG, SHORT, USUAL, namespace, until};
use strata_vhost_net::tap::Tap;

const PROGRAM: &str = env!("CARGO_BIN_EXE_vhost-net");

/// Leaves a descriptor open for the child.
fn pass(fd: &OwnedFd) -> String {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd.as_raw_fd().to_string()
}

struct Running(Child);

impl Running {
    fn start(arguments: &[String]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    /// The process that serves: the innermost of the sandbox's.
    fn inner(&self) -> u32 {
        let mut pid = self.0.id();
        loop {
            let list =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            match list.split_whitespace().next().and_then(|child| child.parse().ok()) {
                Some(child) => pid = child,
                None => return pid,
            }
        }
    }

    fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let inner = self.inner();
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        let status = self.0.wait().unwrap();
        until("its sandboxed process is gone", || {
            let stat = std::fs::read_to_string(format!("/proc/{inner}/stat")).unwrap_or_default();
            stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim().starts_with('Z'))
        });
        status
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ports `a` and `b` in VLAN 10, `c` in VLAN 20, on sockets that stay.
struct Sockets {
    dir: tempfile::TempDir,
    listeners: Vec<OwnedFd>,
}

impl Sockets {
    fn new(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listen = |name: &&str| UnixListener::bind(dir.path().join(name)).unwrap().into();
        Self { listeners: names.iter().map(listen).collect(), dir }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn fd(&self, at: usize) -> String {
        pass(&self.listeners[at])
    }
}

/// One call over Varlink; the reply's parameters, or the name of its error.
fn call(socket: &Path, method: &str, parameters: serde_json::Value) -> Result<serde_json::Value, String> {
    use std::io::{BufRead, Write};
    let mut stream = UnixStream::connect(socket).unwrap();
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

fn guest(path: &Path) -> Guest {
    let mut guest = Guest::new(path, USUAL, 1, 64);
    guest.post(0, 64);
    guest
}

fn arguments(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn wrong_lines_end_with_two() {
    for line in [
        "--switch",
        "--switch lab",
        "--port name=a,fd=5",
        "--switch lab --port name=a,fd=5 --port name=a,fd=6",
        "--switch lab --port name=a,fd=5 --port name=b,fd=5",
        "--switch lab --port name=a,vlan=9999",
        "--switch lab --port name=a,fd=5 --tap t0",
        "--switch lab --port name=a,fd=5 --ageing 0",
        "--uplink tap=t0 --socket-path /s --tap t",
    ] {
        let output = Command::new(PROGRAM).args(line.split_whitespace()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let output = Command::new(PROGRAM).args(["--switch", "lab", "--port", "name=a"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("port a has no socket"), "{said}");
}

#[test]
fn it_serves_from_inside_a_sandbox_and_is_controlled() {
    let sockets = Sockets::new(&["a", "b", "c", "control"]);
    let path = sockets.path("own");
    let line = format!(
        "--switch lab0 --port name=a,fd={},vlan=10,mac=02:00:00:00:00:00 --port name=b,fd={},vlan=10 \
         --port name=c,fd={},vlan=20,isolated --port name=own,socket-path={},trunk=10+20 --control-fd {}",
        sockets.fd(0),
        sockets.fd(1),
        sockets.fd(2),
        path.display(),
        sockets.fd(3)
    );
    let mut running = Running::start(&arguments(&line));
    let (mut a, mut b, mut c) =
        (guest(&sockets.path("a")), guest(&sockets.path("b")), guest(&sockets.path("c")));
    until("its own socket is there", || UnixStream::connect(&path).is_ok());
    let mut own = guest(&path);
    crosses(&mut a, &mut b, (0, 1), 1);
    crosses(&mut b, &mut a, (1, 0), 2);
    let everyone = ethernet(EVERYONE, mac(2), 3, 60);
    c.send(0, PLAIN, &everyone);
    let (_, first) = own.receive(0).unwrap();
    let (_, second) = own.receive(0).unwrap();
    let tagged = |frame: &[u8], vlan| [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat();
    assert_eq!(first, tagged(&ethernet(mac(1), mac(0), 1, 200), 10), "flooded before b was known");
    assert_eq!(second, tagged(&everyone, 20));
    assert_eq!(a.frontend.config(0, 6).unwrap(), mac(0));
    // Control.
    let control = sockets.path("control");
    let ask = |method: &str, given| call(&control, &format!("io.strata.Switch.{method}"), given);
    let nothing = serde_json::json!({});
    let status = ask("GetStatus", nothing.clone()).unwrap();
    assert_eq!((&status["name"], &status["ageing"]), (&"lab0".into(), &300.into()));
    let port = |at: usize, key: &str| status["ports"][at][key].clone();
    assert_eq!(
        (port(0, "vlan"), port(0, "connected"), port(2, "isolated")),
        (10.into(), true.into(), true.into())
    );
    assert_eq!((port(3, "vlan"), port(3, "trunk")), (serde_json::Value::Null, serde_json::json!([10, 20])));
    let addresses = ask("GetAddresses", nothing.clone()).unwrap();
    let list = addresses["addresses"].as_array().unwrap();
    assert_eq!(list.len(), 3, "{addresses}");
    assert_eq!((&list[0]["port"], &list[0]["vlan"]), (&"a".into(), &10.into()));
    assert_eq!(list[0]["mac"], "02:00:00:00:00:00");
    let statistics = ask("GetStatistics", nothing.clone()).unwrap();
    assert_eq!(statistics["ports"][0]["counters"]["tx_frames"], 1, "{statistics}");
    let metrics = ask("GetMetrics", nothing.clone()).unwrap();
    let text = metrics["text"].as_str().unwrap();
    assert!(text.contains("strata_switch_tx_frames_total{switch=\"lab0\",port=\"c\"} 1\n"), "{text}");
    ask("SetLink", serde_json::json!({ "port": "b", "up": false })).unwrap();
    assert_eq!(b.frontend.config(6, 2).unwrap(), [0, 0]);
    a.send(0, PLAIN, &ethernet(mac(1), mac(0), 9, 60));
    ask("SetLink", serde_json::json!({ "port": "b", "up": true })).unwrap();
    assert_eq!(b.frontend.config(6, 2).unwrap(), [1, 0]);
    crosses(&mut a, &mut b, (0, 1), 10);
    let wrong = ask("SetLink", serde_json::json!({ "port": "nobody", "up": true }));
    assert_eq!(wrong, Err("io.strata.Switch.Refused".to_owned()));
    assert_eq!(ask("Nonsense", nothing), Err("org.varlink.service.MethodNotFound".to_owned()));
    // The sandbox.
    let status = std::fs::read_to_string(format!("/proc/{}/status", running.inner())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    assert_eq!(
        (field("Seccomp"), field("NoNewPrivs"), field("CapEff")),
        ("2".into(), "1".into(), "0".repeat(16))
    );
    let memory: u64 = field("RssAnon").trim_end_matches(" kB").parse().unwrap();
    assert!(memory < 32 * 1024, "{memory} kB of private memory");
    drop((a, b, c, own));
    assert!(running.end(Signal::SIGTERM).success());
    assert!(!path.exists() && sockets.path("a").exists(), "its own socket is removed, others' are not");
}

/// Killed in the middle of traffic and started again, twenty times: the rings go on, no frame comes twice, out of order
/// or in part, and frames cross again each time.
#[test]
fn killed_and_started_again_under_load() {
    let sockets = Sockets::new(&["a", "b"]);
    let line = format!("--switch --port name=a,fd={} --port name=b,fd={}", sockets.fd(0), sockets.fd(1));
    let mut running = Running::start(&arguments(&line));
    let (mut a, mut b) = (guest(&sockets.path("a")), guest(&sockets.path("b")));
    let (mut next, mut last) = (0, None);
    for round in 0..20u64 {
        let deadline = Instant::now() + Duration::from_millis(10 + 7 * round % 20);
        let (mut crossed, mut arrived) = (0, Instant::now());
        while crossed < 20 || Instant::now() < deadline {
            assert!(arrived.elapsed() < LONG, "round {round}: nothing arrives any more");
            while a.tx[0].poll().is_some() {}
            while a.tx[0].free() > 0 {
                a.post_frame(0, PLAIN, &ethernet(mac(1), mac(0), next, 60 + next as usize % 1400));
                next += 1;
            }
            a.flush(0);
            // What `a` had sent before may all have gone while `b` was not back: then it has to send more.
            if let Some((_, frame)) = b.receive_within(0, SHORT) {
                arrived = Instant::now();
                let number = number_of(&frame);
                assert!(last < Some(number), "{last:?} before {number}");
                last = Some(number);
                crossed += 1;
            }
            let free = usize::from(b.rx[0].free());
            b.post(0, free);
        }
        running.end(Signal::SIGKILL);
        // What it had shown before it died is still taken.
        while a.tx[0].poll().is_some() {}
        while let Some((_, frame)) = b.receive_within(0, Duration::ZERO) {
            let number = number_of(&frame);
            assert!(last < Some(number), "{last:?} before {number}");
            last = Some(number);
        }
        running = Running::start(&arguments(&line));
        a.reconnect(&sockets.path("a"));
        b.reconnect(&sockets.path("b"));
    }
    drop((a, b));
    assert!(running.end(Signal::SIGTERM).success());
}

/// A tap as a port: the host is in VLAN 10, what it sends arrives there and nowhere else, large segments too.
#[test]
fn an_uplink_to_the_host() {
    for plain in ["", " --no-io-uring"] {
        let Some(namespace) = namespace() else { return };
        let sockets = Sockets::new(&["a", "b", "c"]);
        let tap = namespace.run(|| Tap::open("up0", 1, true)).unwrap().unwrap();
        namespace.ip("link set up0 up").unwrap();
        let tap_fd = tap.queue(0).unwrap().try_clone_to_owned().unwrap();
        let line = format!(
            "--switch --port name=a,fd={},vlan=10 --port name=b,fd={},vlan=20 --port name=c,fd={},trunk=10 \
             --uplink fd={},vlan=10{plain}",
            sockets.fd(0),
            sockets.fd(1),
            sockets.fd(2),
            pass(&tap_fd)
        );
        let mut running = Running::start(&arguments(&line));
        let (mut a, mut b, mut c) =
            (guest(&sockets.path("a")), guest(&sockets.path("b")), guest(&sockets.path("c")));
        let wire = namespace.wire("up0", true).unwrap();
        let hello = ethernet(EVERYONE, mac(0), 1, 100);
        a.send(0, PLAIN, &hello);
        let received = wire.receive(LONG).unwrap().unwrap();
        assert_eq!(received[10..], hello);
        let host = ethernet(mac(0), mac(9), 2, 300);
        wire.send(&[&[0; 10][..], &host].concat()).unwrap();
        assert_eq!(a.receive(0).unwrap().1, host);
        // A large segment crosses whole, and behind a tag.
        let (header, mut segment) = scene::large_segment(30_000, 1448);
        segment[..6].copy_from_slice(&EVERYONE);
        wire.send(&[&header[..10], &segment].concat()).unwrap();
        let (got, frame) = a.receive(0).unwrap();
        assert_eq!((got[..10].to_vec(), frame), (header[..10].to_vec(), segment.clone()));
        c.receive(0).unwrap();
        let (got, frame) = c.receive(0).unwrap();
        assert_eq!(u16::from_le_bytes([got[6], got[7]]), 38, "the sum's place has moved with the tag");
        assert_eq!(frame.len(), segment.len() + 4);
        let free = usize::from(a.rx[0].free());
        a.post(0, free);
        // And out again.
        a.send(0, header, &segment);
        let out = wire.receive(LONG).unwrap().unwrap();
        assert_eq!(out.len(), 10 + segment.len());
        b.send(0, PLAIN, &ethernet(EVERYONE, mac(1), 5, 60));
        a.send(0, PLAIN, &ethernet(mac(9), mac(0), 6, 80));
        assert_eq!(
            wire.receive(LONG).unwrap().unwrap()[10..],
            ethernet(mac(9), mac(0), 6, 80),
            "nothing of VLAN 20"
        );
        assert!(b.rx[0].poll().is_none());
        drop((a, b, c));
        assert!(running.end(Signal::SIGTERM).success());
    }
}
