//! A lab in user space: the topology of docs/networking.md as it stands there, who reaches whom in it, and a switch that
//! is killed under a TCP stream.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use strata_tests::process::{self, Process};
use strata_tests::{Case, Context};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![Case::kvm("switch::the_lab_of_the_documentation", the_lab_of_the_documentation)]
}

/// What every guest of the lab does: finds out who it is, takes an address of its VLAN and one that all share, and ends
/// when its power button is pressed.
const SCRIPT: &str = r#"
for w in $(cat /proc/cmdline); do case $w in host=*) H=${w#host=};; esac; done
button; (pressed; poweroff -f) &
tag() { for m in $(cat /mod/more); do case $m in *kvm*|*tun*) ;; *) insmod /mod/$m 2>/dev/null;; esac; done
  ip link add link eth0 name eth0.$1 type vlan id $1; ip link set eth0.$1 up; }
reach() { until ping -c 1 -W 1 $2 >/dev/null 2>&1; do sleep 0.2; done; say $H reaches $1; }
ip link set eth0 up
case $H in
web1) V=10; N=1;; web2) V=10; N=2;; db1) V=20; N=3;; db2) V=20; N=4;;
gw) tag 10; tag 20; ip addr add 10.0.10.5/24 dev eth0.10; ip addr add 10.0.20.5/24 dev eth0.20;;
esac
[ $H = gw ] || { ip addr add 10.0.$V.$N/24 dev eth0; ip addr add 10.0.0.$N/24 dev eth0; }
case $H in
web1) reach web2 10.0.10.2; reach gw 10.0.10.5; say web1 waits; read go
  ping -c 3 -W 1 10.0.0.3 >/dev/null 2>&1 && say web1 CROSSED
  ip addr del 10.0.0.1/24 dev eth0; tag 20; ip addr add 10.0.0.1/24 dev eth0.20
  ping -c 3 -W 1 10.0.0.3 >/dev/null 2>&1 && say web1 CROSSED by a tag
  arping -c 3 -w 3 -I eth0.20 10.0.0.3 2>&1 | grep -q 'from 10.0.0.3' && say web1 CROSSED by a tag
  ip link del eth0.20; say web1 tried; read go
  head -c 262144 /dev/urandom > /f; mkfifo /t
  (sha256sum < /t | cut -d' ' -f1 > /sum) & S=$!
  (while [ ! -e /stop ]; do cat /f; usleep 50000; done | tee /t | nc 10.0.10.2 9 >/dev/null) & N=$!
  say streaming; read go; touch /stop; wait $S $N; say sum $(cat /sum);;
web2) reach gw 10.0.10.5; mkfifo /p; sleep 100000 > /p &
  say got $(nc -l -p 9 < /p | sha256sum | cut -d' ' -f1);;
db1) reach db2 10.0.20.4; reach gw 10.0.20.5;;
db2) reach gw 10.0.20.5;;
gw) reach web1 10.0.10.1; reach db1 10.0.20.3;;
esac
say $H is done
while true; do sleep 100; done
"#;

/// The first TOML block after this heading, which a person would copy.
fn of_the_documentation(clone: &Path) -> anyhow::Result<String> {
    let path = clone.join("docs/networking.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (_, after) = text.split_once("## A lab in ten lines").context("the heading is gone")?;
    let (_, block) = after.split_once("```toml\n").context("the block is gone")?;
    let (block, _) = block.split_once("```").context("the block has no end")?;
    ensure!(block.lines().count() <= 10, "more than ten lines");
    Ok(block.to_owned())
}

fn said(lab: &Process, what: &str) -> anyhow::Result<()> {
    let waited = process::until(what, || Ok(lab.output.so_far().contains(what)));
    waited.with_context(|| lab.tails())
}

/// What a guest said after `key`.
fn value(lab: &Process, key: &str) -> Option<String> {
    let text = lab.output.so_far();
    text.lines().find_map(|line| line.split_once(key)).map(|(_, value)| value.trim().to_owned())
}

fn show(context: &Context) -> anyhow::Result<Value> {
    let mut show = context.start("strata", &["switch", "show", "lan", "--output", "json"])?;
    show.expect_exit(0)?;
    Ok(serde_json::from_str(&show.output.so_far())?)
}

fn counter(status: &Value, port: &str, name: &str) -> u64 {
    let ports = status["ports"].as_array().map_or(&[][..], Vec::as_slice);
    let port = ports.iter().find(|other| other["name"] == port);
    port.and_then(|port| port.pointer(&format!("/counters/{name}"))?.as_u64()).unwrap_or(0)
}

fn the_lab_of_the_documentation(context: &Context) -> anyhow::Result<()> {
    let file = context.file("lab.toml");
    std::fs::write(&file, of_the_documentation(context.place.root())?)?;
    std::fs::copy(context.place.guest_vmlinuz(), context.file("vmlinuz"))?;
    std::fs::rename(context.initrd(SCRIPT)?, context.file("initrd.img"))?;
    let mut command: Command = context.command("strata");
    let mut lab = process::start("strata lab run", command.args(["lab", "run"]).arg(&file))?;
    // Everyone reaches whom it should.
    for pair in
        ["web1 reaches web2", "web1 reaches gw", "web2 reaches gw", "db1 reaches db2", "db1 reaches gw"]
            .into_iter()
            .chain(["db2 reaches gw", "gw reaches web1", "gw reaches db1", "web1 waits"])
    {
        said(&lab, pair)?;
    }
    // The guest that tries to cross: by address, and by a tag of the other VLAN.
    let before = counter(&show(context)?, "web1", "tx_drop_vlan");
    let mut console = context.start("strata", &["console", "web1"])?;
    console.errors.wait("console of web1")?;
    console.type_in("go\n")?;
    said(&lab, "web1 tried")?;
    ensure!(!lab.output.so_far().contains("CROSSED"), "a guest has crossed\n{}", lab.tails());
    let status = show(context)?;
    ensure!(
        counter(&status, "web1", "tx_drop_vlan") >= before + 3,
        "its tagged frames are not counted: {status}"
    );
    // A stream between two guests while the switch is killed, again and again.
    console.type_in("go\n")?;
    said(&lab, "guest: streaming")?;
    let pid = context.run_dir().join(".switches/lan/vhost-net.pid");
    let mut last = 0;
    for round in 0..3 {
        process::until("a few MiB on their way", || {
            let done = value(&lab, "guest: got ").is_some();
            ensure!(
                !done,
                "the stream was over before the switch was killed (round {round})\n{}",
                lab.tails()
            );
            Ok(counter(&show(context)?, "web2", "rx_bytes") > 1 << 20)
        })?;
        let process: i32 = std::fs::read_to_string(&pid)?.trim().parse()?;
        ensure!(process != last, "the switch was not started again");
        last = process;
        process::kill(process)?;
        process::until("the next switch", || {
            Ok(std::fs::read_to_string(&pid)?.trim() != process.to_string())
        })?;
    }
    console.type_in("go\n")?;
    said(&lab, "guest: web2 is done")?;
    said(&lab, "guest: web1 is done")?;
    let (sent, got) = (value(&lab, "guest: sum "), value(&lab, "guest: got "));
    ensure!(sent.is_some() && sent == got, "sent {sent:?}, received {got:?}");
    // All power buttons.
    drop(console);
    lab.signal(Signal::SIGTERM)?;
    lab.expect_exit(0)
}
