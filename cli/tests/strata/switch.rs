//! `strata switch` and `strata lab` as processes: what they start, what they leave, how they end.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::launcher::{Place, alive, no_kvm, stderr, wait_for};

const SWITCH: &str = "[[port]]\nname = \"web\"\nvlan = 10\nmac = \"02:00:00:00:00:01\"\n[[port]]\nname = \"gw\"\n\
                      trunk = [10, 20]\nisolated = true\n";

struct Started(Child);

impl Started {
    fn new(place: &Place, args: &[&str]) -> Self {
        let mut command = place.strata(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit status and what it said.
    fn end(mut self) -> (Option<i32>, String, String) {
        let status = wait_for("its end", || self.0.try_wait().unwrap());
        let (mut out, mut err) = (String::new(), String::new());
        std::io::Read::read_to_string(&mut self.0.stdout.take().unwrap(), &mut out).unwrap();
        std::io::Read::read_to_string(&mut self.0.stderr.take().unwrap(), &mut err).unwrap();
        (status.code(), out, err)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn pid_of(place: &Place, file: &str) -> i32 {
    wait_for(file, || fs::read_to_string(place.path(file)).ok()?.trim().parse().ok())
}

#[test]
fn a_switch_has_its_sockets_and_comes_back_when_it_dies() {
    let place = Place::new();
    fs::write(place.path("lan.toml"), SWITCH).unwrap();
    let switch = Started::new(&place, &["switch", "run", "lan.toml"]);
    let first = pid_of(&place, "run/.switches/lan/vhost-net.pid");
    let folder = place.path("run/.switches/lan");
    wait_for("the switch", || folder.join("switch.json").exists().then_some(()));
    let mode = |path: &str| fs::metadata(folder.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        (mode(""), mode("ports/web"), mode("ports/web/sock"), mode("control.sock")),
        (0o700, 0o700, 0o600, 0o600)
    );
    assert!(fs::metadata(folder.join("ports/gw/sock")).unwrap().file_type().is_socket());
    let args = wait_for("vhost-net", || place.args_of("vhost-net").pop().filter(|args| !args.is_empty()));
    assert!(args.starts_with("--switch\nlan\n--ageing\n300\n--port\nname=web,fd="), "{args}");
    assert!(args.contains(",mac=02:00:00:00:00:01,vlan=10\n"), "{args}");
    assert!(args.contains(",trunk=10+20,isolated\n--control-fd\n"), "{args}");
    let second = place.output(&["switch", "run", "lan.toml"]);
    assert_eq!(second.status.code(), Some(1));
    assert!(stderr(&second).contains("a switch named lan runs already"), "{}", stderr(&second));
    kill(Pid::from_raw(first), Signal::SIGKILL).unwrap();
    let next = wait_for("the next one", || {
        Some(pid_of(&place, "run/.switches/lan/vhost-net.pid")).filter(|pid| *pid != first)
    });
    wait_for("its arguments", || (place.args_of("vhost-net").len() == 2).then_some(()));
    assert!(place.output(&["ps"]).status.success(), "it is no machine");
    let listed = place.output(&["switch", "ls", "--output", "json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&listed[0]["name"], &listed[0]["state"]), (&"lan".into(), &"unresponsive".into()));
    switch.signal(Signal::SIGTERM);
    let (code, _, said) = switch.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("lan: vhost-net died (killed by SIGKILL); starting it again"), "{said}");
    assert!(place.is_empty() && !alive(next));
}

#[test]
fn wrong_files_end_with_two_and_what_fails_with_one() {
    let place = Place::new();
    for (text, expected) in
        [("", "port is missing"), ("[[port]]\nname = \"a\"\nvlan = 0", "must be 1 to 4094")]
    {
        fs::write(place.path("bad.toml"), text).unwrap();
        let output = place.output(&["switch", "run", "bad.toml"]);
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let missing = place.output(&["switch", "run", "nowhere"]);
    assert_eq!(missing.status.code(), Some(2));
    assert!(stderr(&missing).contains("/etc/strata/switches/nowhere.toml"), "{}", stderr(&missing));
    let shown = place.output(&["switch", "show", "nobody"]);
    assert_eq!(shown.status.code(), Some(1));
    assert!(stderr(&shown).contains("no switch named nobody runs"), "{}", stderr(&shown));
    fs::write(place.path("lan.toml"), SWITCH).unwrap();
    let mut command = place.strata(&["switch", "run", "lan.toml"]);
    let output = command.env("FAKE_BACKEND", "fail:no such tap").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("strata: the switch failed: vhost-net: exit status 1: no such tap"),
        "{}",
        stderr(&output)
    );
    assert!(place.is_empty());
}

#[test]
fn a_machine_is_told_which_port_is_missing() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let output = place.output(&["run", "--kernel", "vmlinuz", "--name", "web", "--net", "switch=lan"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("net0: switch lan has no port web"), "{}", stderr(&output));
    let output = place.output(&["run", "--kernel", "vmlinuz", "--net", "switch=lan,port=a/b"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("net[0].port = \"a/b\""), "{}", stderr(&output));
}

#[test]
fn a_lab_starts_all_of_it_and_leaves_nothing() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let lab = "defaults = { kernel = \"vmlinuz\", memory = 64 }\nmachine = [\n\
               { name = \"a\", net = [{ switch = \"lan\", vlan = 10 }] },\n\
               { name = \"b\", net = [{ switch = \"lan\", vlan = 20 }] },\n]";
    fs::write(place.path("lab.toml"), lab).unwrap();
    let lab = Started::new(&place, &["lab", "run", "lab.toml"]);
    let pids = ["run/a/vmm.pid", "run/b/vmm.pid", "run/.switches/lan/vhost-net.pid"]
        .map(|file| pid_of(&place, file));
    let states = || {
        let output = place.output(&["ps", "--output", "json"]);
        let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        list.as_array().unwrap().iter().filter(|machine| machine["state"] == "running").count()
    };
    wait_for("both machines", || (states() == 2).then_some(()));
    lab.signal(Signal::SIGINT);
    let (code, out, said) = lab.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(out.contains("[a] fake console\n") && out.contains("[b] fake console\n"), "{out}");
    assert!(place.is_empty(), "{said}");
    assert!(pids.iter().all(|pid| !alive(*pid)), "{said}");
}

#[test]
fn a_labs_failures_are_named() {
    if no_kvm() {
        return;
    }
    let place = Place::new();
    let file =
        "defaults = { kernel = \"vmlinuz\" }\nmachine = [{ name = \"a\", net = [{ switch = \"lan\" }] }]";
    fs::write(place.path("lab.toml"), file).unwrap();
    let mut command = place.strata(&["lab", "run", "lab.toml"]);
    let output = command.env("FAKE_VMM", "fail:out of luck").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("machine a: exit status 1"), "{}", stderr(&output));
    assert!(stderr(&output).contains("out of luck"), "{}", stderr(&output));
    let mut command = place.strata(&["lab", "run", "lab.toml"]);
    let output = command.env("FAKE_BACKEND", "fail:no such tap").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("switch lan: exit status 1"), "{}", stderr(&output));
    assert!(place.is_empty());
    fs::write(place.path("lab.toml"), "machine = []").unwrap();
    assert_eq!(place.output(&["lab", "run", "lab.toml"]).status.code(), Some(2));
}
