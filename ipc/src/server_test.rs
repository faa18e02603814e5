//! The interface over real sockets: our client, raw frames as any other client sends them, and clients that
//! mean no good.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    Client, ClientError, Control, DeviceState, DeviceStatus, Limits, MachineState, NewDevice, Refused,
    Statistics, Status, Unplug, VcpuStatistics, serve_with,
};

const LONG: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Fake {
    paused: AtomicBool,
    quits: AtomicU32,
}

impl Control for Fake {
    fn status(&self) -> Status {
        let paused = self.paused.load(Ordering::SeqCst);
        Status {
            name: "fake".into(),
            state: if paused { MachineState::Paused } else { MachineState::Running },
            cpus: 2,
            memory_bytes: 512 << 20,
            memory_backing: "memfd".into(),
            reboots: 0,
            devices: vec![DeviceStatus::new("disk0", "block", DeviceState::Connected, 2)],
        }
    }
    fn pause(&self) -> Result<(), Refused> {
        self.paused.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> Result<(), Refused> {
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }
    fn power_off(&self) -> Result<(), Refused> {
        Err(Refused::new("the guest has not booted"))
    }
    fn reboot(&self) -> Result<(), Refused> {
        Ok(())
    }
    fn quit(&self) -> Result<(), Refused> {
        self.quits.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
    fn console(&self) -> Result<OwnedFd, Refused> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (&ours).write_all(b"login: ").unwrap();
        drop(ours);
        Ok(theirs.into())
    }
    fn unplug(&self, device: &str, how: Unplug) -> Result<(), Refused> {
        match (device, how) {
            ("disk0", Unplug::Ask) => Ok(()),
            _ => Err(Refused::new(format!("{device} {how:?}"))),
        }
    }
    fn plug(&self, device: &NewDevice) -> Result<(), Refused> {
        Err(Refused::new(format!("{device:?}")))
    }
    fn statistics(&self) -> Statistics {
        let counters = [("exits".to_owned(), 17)].into();
        Statistics { vcpus: vec![VcpuStatistics { index: 0, counters }], ..Statistics::default() }
    }
}

struct Served {
    path: PathBuf,
    control: Arc<Fake>,
    _folder: tempfile::TempDir,
}

/// Serves a fake machine from a thread of its own for as long as the test process lives.
fn served(limits: Limits) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let control = Arc::new(Fake::default());
    let answering = Arc::clone(&control);
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(serve_with(listener, answering, limits)).unwrap();
    });
    Served { path, control, _folder: folder }
}

fn connected(served: &Served) -> UnixStream {
    let stream = UnixStream::connect(&served.path).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.set_write_timeout(Some(LONG)).unwrap();
    stream
}

fn send(stream: &mut UnixStream, call: &Value) {
    let mut frame = call.to_string().into_bytes();
    frame.push(0);
    stream.write_all(&frame).unwrap();
}

fn receive(stream: &mut UnixStream) -> Value {
    let mut frame = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).unwrap();
        if byte == [0] {
            return serde_json::from_slice(&frame).unwrap();
        }
        frame.extend(byte);
    }
}

fn call(stream: &mut UnixStream, method: &str, parameters: Value) -> Value {
    send(stream, &json!({"method": method, "parameters": parameters}));
    receive(stream)
}

/// The peer closed: end of file, or a reset when it left bytes of ours unread.
fn closed(stream: &mut UnixStream) -> bool {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn the_client_gets_what_the_machine_says() {
    let served = served(Limits::default());
    block_on(async {
        let mut client = Client::connect(&served.path, LONG).await.unwrap();
        let status = client.status().await.unwrap();
        assert_eq!(status, served.control.status());
        client.pause().await.unwrap();
        assert_eq!(client.status().await.unwrap().state, MachineState::Paused);
        client.resume().await.unwrap();
        client.reboot().await.unwrap();
        assert_eq!(client.statistics().await.unwrap(), served.control.statistics());
        let refused = client.power_off().await.unwrap_err();
        assert!(matches!(&refused, ClientError::NotPossible(reason) if reason == "the guest has not booted"));
        client.unplug("disk0", Unplug::Ask).await.unwrap();
        let refused = client.unplug("disk0", Unplug::Take).await.unwrap_err();
        assert!(matches!(&refused, ClientError::NotPossible(reason) if reason == "disk0 Take"));
        let new =
            NewDevice { device: "net0".into(), kind: "net".into(), queues: None, mac: Some("x".into()) };
        let refused = client.plug(&new).await.unwrap_err();
        assert!(matches!(refused, ClientError::NotPossible(reason) if reason == format!("{new:?}")));
        client.quit().await.unwrap();
        assert_eq!(served.control.quits.load(Ordering::SeqCst), 1);
    });
}

#[test]
fn the_console_comes_as_a_descriptor() {
    let served = served(Limits::default());
    let descriptor = block_on(async {
        let mut client = Client::connect(&served.path, LONG).await.unwrap();
        client.console().await.unwrap()
    });
    let mut text = String::new();
    UnixStream::from(descriptor).read_to_string(&mut text).unwrap();
    assert_eq!(text, "login: ");
}

#[test]
fn machinectl_speaks_to_the_machine_in_its_own_words() {
    let served = served(Limits::default());
    let mut stream = connected(&served);
    let mut ask =
        |method: &str| call(&mut stream, &format!("io.systemd.MachineInstance.{method}"), json!({}));
    assert_eq!(ask("QueryStatus")["parameters"], json!({"running": true, "status": "running"}));
    assert_eq!(ask("Pause")["parameters"], json!({}));
    assert_eq!(ask("QueryStatus")["parameters"]["running"], false);
    ask("Resume");
    let refused = json!("io.systemd.MachineInstance.NotSupported");
    assert_eq!(ask("PowerOff")["error"], refused);
    assert_eq!(ask("SubscribeEvents")["error"], refused);
    assert_eq!(ask("Nonsense")["error"], "org.varlink.service.MethodNotFound");
    ask("Terminate");
    assert_eq!(served.control.quits.load(Ordering::SeqCst), 1);
}

#[test]
fn any_varlink_client_finds_the_interface() {
    let served = served(Limits::default());
    let mut stream = connected(&served);
    let info = call(&mut stream, "org.varlink.service.GetInfo", json!({}));
    let parameters = &info["parameters"];
    assert_eq!(parameters["vendor"], "Strata");
    assert_eq!(
        parameters["interfaces"],
        json!(["io.strata.Machine", "io.systemd.MachineInstance", "org.varlink.service"])
    );

    let name = json!({"interface": "io.strata.Machine"});
    let reply = call(&mut stream, "org.varlink.service.GetInterfaceDescription", name);
    let description = reply["parameters"]["description"].as_str().unwrap();
    assert_eq!(description, crate::DESCRIPTION);
    let name = json!({"interface": "org.varlink.service"});
    let own = call(&mut stream, "org.varlink.service.GetInterfaceDescription", name);
    assert!(own["parameters"]["description"].as_str().unwrap().contains("method GetInfo()"));
    let status = call(&mut stream, "io.strata.Machine.GetStatus", json!({}));
    assert_eq!(status["parameters"]["state"], "running");
    assert_eq!(status["parameters"]["devices"][0]["state"], "connected");
    let refused = call(&mut stream, "io.strata.Machine.PowerOff", json!({}));
    assert_eq!(refused["error"], "io.strata.Machine.NotPossible");
    for (method, parameters) in [
        ("Unplug", json!({})),
        ("Unplug", json!({ "device": 1, "how": "ask" })),
        ("Unplug", json!({ "device": "disk0", "how": "at once" })),
        ("Unplug", json!({ "device": "disk0", "how": "ask", "more": 1 })),
        ("Plug", json!({ "device": "disk0" })),
        ("Plug", json!({ "device": "disk0", "kind": "blk", "queues": 70_000 })),
    ] {
        send(
            &mut stream,
            &json!({ "method": format!("io.strata.Machine.{method}"), "parameters": parameters }),
        );
        let refused = receive(&mut stream);
        assert_eq!(refused["error"], "org.varlink.service.InvalidParameter", "{method} {parameters}");
    }
    assert_eq!(refused["parameters"]["reason"], "the guest has not booted");
}

#[test]
fn unknown_methods_get_an_error_and_the_connection_lives_on() {
    let served = served(Limits::default());
    let mut stream = connected(&served);
    for method in ["io.strata.Machine.Explode", "org.example.Other.Method", "nonsense", ""] {
        for parameters in [json!({}), json!({"deep": [1, {"x": null}]}), Value::Null] {
            let reply = call(&mut stream, method, parameters);
            assert_eq!(reply["error"], "org.varlink.service.MethodNotFound", "{method}: {reply}");
            assert_eq!(reply["parameters"]["method"], method);
        }
    }
    let reply = call(&mut stream, "org.varlink.service.GetInterfaceDescription", json!({"interface": 7}));
    assert_eq!(reply["error"], "org.varlink.service.InvalidParameter", "{reply}");
    let unknown = json!({"interface": "org.example.Other"});
    let reply = call(&mut stream, "org.varlink.service.GetInterfaceDescription", unknown);
    assert_eq!(reply["error"], "org.varlink.service.InterfaceNotFound", "{reply}");
    let status = call(&mut stream, "io.strata.Machine.GetStatus", json!({}));
    assert_eq!(status["parameters"]["name"], "fake");
}

#[test]
fn malformed_bytes_cost_only_their_own_connection() {
    let served = served(Limits::default());
    let mut bystander = connected(&served);
    let deep = "[".repeat(50_000);
    for bytes in [
        &b"\0"[..],
        b"not json\0",
        b"{\"method\":\0",
        b"\xff\xfe\xfd\0",
        b"{}\0",
        b"[]\0",
        b"{\"method\": 7}\0",
        b"{\"method\":\"io.strata.Machine.Pause\"} trailing\0",
        deep.as_bytes(),
    ] {
        let mut stream = connected(&served);
        // The server may be done with us before we are: a failed write is no failure of the test.
        let _ = stream.write_all(bytes);
        let _ = stream.write_all(b"\0");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        assert!(closed(&mut stream), "{bytes:?}");
        let status = call(&mut bystander, "io.strata.Machine.GetStatus", json!({}));
        assert_eq!(status["parameters"]["name"], "fake");
    }
}

#[test]
fn a_message_without_an_end_is_cut_off() {
    let served = served(Limits { message: 4096, ..Limits::default() });
    let mut stream = connected(&served);
    // Far more than the limit and the socket's buffer: the write fails once the server has closed.
    let cut = (0..10_000).any(|_| stream.write_all(&[b'x'; 4096]).is_err());
    assert!(cut, "40 MB of an endless message were taken");
    let mut next = connected(&served);
    let status = call(&mut next, "io.strata.Machine.GetStatus", json!({}));
    assert_eq!(status["parameters"]["name"], "fake");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody_and_is_dropped() {
    let served = served(Limits { write: Duration::from_millis(200), ..Limits::default() });
    let mut greedy = connected(&served);
    let mut frame = json!({"method": "io.strata.Machine.GetStatus"}).to_string().into_bytes();
    frame.push(0);
    let dropped = (0..1_000_000).any(|_| greedy.write_all(&frame).is_err());
    assert!(dropped);
    let mut other = connected(&served);
    let status = call(&mut other, "io.strata.Machine.GetStatus", json!({}));
    assert_eq!(status["parameters"]["name"], "fake");
}

#[test]
fn connections_are_bounded_and_idle_ones_make_room() {
    let served = served(Limits { connections: 2, idle: Duration::from_millis(300), ..Limits::default() });
    let _idle: Vec<UnixStream> = (0..5).map(|_| connected(&served)).collect();
    // The five before it are served and dropped two by two; then it is this one's turn.
    let mut last = connected(&served);
    let status = call(&mut last, "io.strata.Machine.GetStatus", json!({}));
    assert_eq!(status["parameters"]["name"], "fake");
}

#[test]
fn nobody_at_the_socket_is_said_so() {
    let folder = tempfile::tempdir().unwrap();
    let error = block_on(Client::connect(&folder.path().join("none.sock"), LONG)).unwrap_err();
    assert!(error.to_string().starts_with("no machine answers at "), "{error}");
}

#[test]
fn a_machine_that_does_not_answer_is_given_up_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deaf.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    let error = block_on(async {
        let mut client = Client::connect(&path, Duration::from_millis(100)).await.unwrap();
        client.status().await.unwrap_err()
    });
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
}

/// The fields in the description of `head`, e.g. of `method GetStatus() -> ` or `type Device `.
fn described(head: &str) -> BTreeSet<String> {
    let (_, rest) = crate::DESCRIPTION.split_once(&format!("\n{head}(")).unwrap();
    let (fields, _) = rest.split_once(')').unwrap();
    fields.split(',').map(|field| field.split(':').next().unwrap().trim().to_owned()).collect()
}

fn fields(value: &Value) -> BTreeSet<String> {
    value.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn the_description_tells_what_is_sent() {
    let fake = Fake::default();
    let status = serde_json::to_value(fake.status()).unwrap();
    assert_eq!(fields(&status), described("method GetStatus() -> "));
    assert_eq!(fields(&status["devices"][0]), described("type Device "));
    let statistics = serde_json::to_value(fake.statistics()).unwrap();
    assert_eq!(fields(&statistics), described("method GetStatistics() -> "));
    assert_eq!(fields(&statistics["vcpus"][0]), described("type VcpuStatistics "));
    assert_eq!(fields(&json!(crate::DeviceStatistics::default())), described("type DeviceStatistics "));
    let states = [MachineState::Booting, MachineState::Running, MachineState::Paused, MachineState::Stopping];
    assert_eq!(
        BTreeSet::from(states.map(|state| state.as_str().to_owned())),
        described("type MachineState ")
    );
    assert!(states.iter().all(|state| json!(state) == state.as_str()));
    let states = [DeviceState::Connected, DeviceState::Lost, DeviceState::Waiting, DeviceState::Internal];
    assert_eq!(BTreeSet::from(states.map(|state| state.as_str().to_owned())), described("type DeviceState "));
    assert!(states.iter().all(|state| json!(state) == state.as_str()));
}

#[test]
fn descriptors_from_clients_are_closed() {
    let served = served(Limits::default());
    let mut stream = connected(&served);
    let (probe, passed) = UnixStream::pair().unwrap();
    let ancillary = [passed.as_raw_fd()];
    let control = [nix::sys::socket::ControlMessage::ScmRights(&ancillary)];
    let frame = b"{\"method\":\"io.strata.Machine.GetStatus\"}\0";
    let bytes = [std::io::IoSlice::new(frame)];
    let flags = nix::sys::socket::MsgFlags::empty();
    nix::sys::socket::sendmsg::<()>(stream.as_raw_fd(), &bytes, &control, flags, None).unwrap();
    drop(passed);
    assert_eq!(receive(&mut stream)["parameters"]["name"], "fake");
    // The connection is still there, the descriptor is not: its peer sees the end of file.
    probe.set_read_timeout(Some(LONG)).unwrap();
    assert_eq!((&probe).read(&mut [0]).unwrap(), 0);
}
