//! I/O processes that die, hang and are replaced under a running guest, which sees at worst a pause.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_tests::net::{self, GUEST, HOST, Tap};
use strata_tests::process::{self, Process};
use strata_tests::strata::Running;
use strata_tests::{Case, Context, image};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("faults::kills_under_load", kills_under_load),
        Case::kvm("faults::hangs_are_found_and_stops_are_not_hangs", hangs_are_found_and_stops_are_not_hangs),
        Case::kvm("faults::backends_are_replaced_under_load", backends_are_replaced_under_load),
        Case::kvm("faults::drivers_come_and_go_and_guests_reboot", drivers_come_and_go_and_guests_reboot),
        Case::kvm(
            "faults::a_device_without_backend_asks_for_a_reset",
            a_device_without_backend_asks_for_a_reset,
        ),
        Case::kvm("faults::a_dead_vmm_frees_its_disk", a_dead_vmm_frees_its_disk),
    ]
}

const MIB: u64 = 1 << 20;

/// Writes a file of 4 MiB to one place of the disk after the other, reads each back, compares; until told to stop.
/// Every answer that is an error, and every byte that is another, is said.
const DISK_LOAD: &str = "
head -c 4194304 /dev/urandom > /tmp/f; SUM=$(sha256sum < /tmp/f)
disk() {
  n=0
  while [ ! -e /tmp/stop ]; do
    at=$((n % 8 * 64)); n=$((n+1))
    dd if=/tmp/f of=/dev/vda bs=64k seek=$at oflag=direct 2>/dev/null || say error writing
    [ \"$(dd if=/dev/vda bs=64k skip=$at count=64 iflag=direct 2>/dev/null | sha256sum)\" = \"$SUM\" ] || say error reading
  done
  echo $n > /tmp/rounds
}
";

/// Streams both ways over TCP until told to stop (up) and until the host ends it (down).
fn net_load(down: u16, up: u16) -> String {
    format!(
        "
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
mkfifo /tmp/up
(nc {HOST} {down} </dev/null | sha256sum | cut -d' ' -f1 > /tmp/down) &
(sha256sum < /tmp/up | cut -d' ' -f1 > /tmp/upsum) &
((while [ ! -e /tmp/stop ]; do head -c 65536 /tmp/f; usleep 50000; done) | tee /tmp/up | nc {HOST} {up} >/dev/null) &
"
    )
}

const FINISH: &str = "
disk & D=$!
say loaded
read go
touch /tmp/stop
wait $D
say rounds $(cat /tmp/rounds)
wait
say down $(cat /tmp/down)
say up $(cat /tmp/upsum)
say complaints $(dmesg | grep -c -i -E 'I/O error|blk_update_request|timed out|timeout')
";

/// The host's ends of both streams.
struct Streams {
    down: JoinHandle<anyhow::Result<String>>,
    up: JoinHandle<anyhow::Result<String>>,
    stop: Arc<AtomicBool>,
    ports: (u16, u16),
}

impl Streams {
    fn new() -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (down, up) = (TcpListener::bind("0.0.0.0:0")?, TcpListener::bind("0.0.0.0:0")?);
        let ports = (down.local_addr()?.port(), up.local_addr()?.port());
        let stopped = Arc::clone(&stop);
        let down = std::thread::spawn(move || send(&down, &stopped));
        let up = std::thread::spawn(move || receive(&up));
        Ok(Self { down, up, stop, ports })
    }

    /// The sums of what was sent and of what was received.
    fn finish(self) -> anyhow::Result<(String, String)> {
        Ok((net::finish(self.down)?, net::finish(self.up)?))
    }
}

fn sum(bytes: &[u8], dir: &Path) -> anyhow::Result<String> {
    let file = dir.join(format!("stream-{}", bytes.len()));
    std::fs::write(&file, bytes)?;
    let sum = image::sha256(&file, bytes.len() as u64);
    std::fs::remove_file(file)?;
    sum
}

fn send(listener: &TcpListener, stop: &AtomicBool) -> anyhow::Result<String> {
    let (mut stream, _) = listener.accept()?;
    let mut all = Vec::new();
    let mut next = 1_u64;
    while !stop.load(Ordering::Acquire) {
        let piece: Vec<u8> = (0..8192)
            .flat_map(|_| {
                next = next.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                (next >> 33).to_le_bytes()
            })
            .collect();
        stream.write_all(&piece)?;
        all.extend(piece);
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(stream);
    sum(&all, &std::env::temp_dir())
}

fn receive(listener: &TcpListener) -> anyhow::Result<String> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    sum(&all, &std::env::temp_dir())
}

/// A guest with a verified load on a disk and a card.
struct Loaded<'a> {
    context: &'a Context,
    vm: Running,
    streams: Streams,
    _tap: Tap,
}

impl<'a> Loaded<'a> {
    fn start(context: &'a Context, more: &[&str]) -> anyhow::Result<Self> {
        let disk = context.disk("disk.img", 64)?;
        let tap = Tap::new("tap0", false)?;
        let streams = Streams::new()?;
        let script = format!("{DISK_LOAD}{}{FINISH}", net_load(streams.ports.0, streams.ports.1));
        let mut machine = context.machine(&script)?.disk(&disk, "").net(tap.name(), "");
        for word in more {
            machine = machine.arg(word);
        }
        let vm = machine.start()?;
        vm.guest("loaded")?;
        process::until("the guest's first writes", || Ok(image::allocated(&disk)? > MIB))?;
        Ok(Self { context, vm, streams, _tap: tap })
    }

    /// Ends the load: nothing may be lost, and the guest may have nothing to complain of.
    fn finish(mut self, least: u64) -> anyhow::Result<()> {
        self.vm.type_in("go\n")?;
        let rounds = self.vm.guest_value("rounds").with_context(|| self.look())?;
        let rounds: u64 = rounds.parse()?;
        self.streams.stop.store(true, Ordering::Release);
        let (down, up) = (self.vm.guest_value("down")?, self.vm.guest_value("up")?);
        let complaints = self.vm.guest_value("complaints")?;
        self.vm.expect_exit(0)?;
        let said = self.vm.output.so_far();
        ensure!(!said.contains("guest: error"), "the guest met errors:\n{}", self.vm.tails());
        ensure!(complaints == "0", "the guest's kernel complains:\n{}", self.vm.tails());
        ensure!(rounds >= least, "only {rounds} rounds of load");
        let (sent, received) = self.streams.finish()?;
        ensure!(down == sent, "the guest received something else than was sent");
        ensure!(up == received, "something else was received than the guest sent");
        Ok(())
    }

    /// What the machine says of itself, for a load that does not end: who waits for whom?
    fn look(&self) -> String {
        let asked: [&[&str]; 4] = [
            &["status", "vm"],
            &["disk", "stats", "vm"],
            &["net", "stats", "vm"],
            &["exits", "vm", "--for", "2s"],
        ];
        let answer = |words: &&[&str]| match self.context.run("strata", words) {
            Ok(process) => process.tails(),
            Err(error) => format!("{error:#}"),
        };
        asked.iter().map(answer).collect::<Vec<_>>().join("\n")
    }

    /// The process behind the reaper.
    fn inner(&self, id: &str) -> anyhow::Result<i32> {
        let reaper = self.vm.pid_of(id)?;
        let children = std::fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children"))?;
        children
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok())
            .context("no process behind the reaper")
    }

    /// Waits until another process serves a device.
    fn replaced(&self, id: &str, old: i32) -> anyhow::Result<()> {
        process::until(&format!("another process for {id}"), || {
            Ok(self.inner(id).is_ok_and(|now| now != old))
        })
    }
}

fn kills_under_load(context: &Context) -> anyhow::Result<()> {
    let kills = process::kills(20);
    let loaded = Loaded::start(context, &[])?;
    for round in 0..kills {
        let id = if round % 2 == 0 { "disk0" } else { "net0" };
        let pid = loaded.inner(id).with_context(|| loaded.vm.tails())?;
        // One that dies within its first second is made to wait; these are to come back at once.
        std::thread::sleep(Duration::from_millis(550));
        let kill = || {
            process::kill(if round % 4 < 2 { pid } else { loaded.vm.pid_of(id)? })?;
            loaded.replaced(id, pid)
        };
        kill().with_context(|| format!("round {round}, {id}\n{}", loaded.vm.tails()))?;
    }
    let said = loaded.vm.errors.so_far().matches("starting it again").count();
    ensure!(said >= kills, "only {said} deaths were noticed");
    loaded.finish(2)
}

fn hangs_are_found_and_stops_are_not_hangs(context: &Context) -> anyhow::Result<()> {
    let loaded = Loaded::start(context, &["--backend", "hung_after=4s"])?;
    let signal = |pid: i32, signal| kill(Pid::from_raw(pid), signal).context("a signal");
    for round in 0..20 {
        let pid = loaded.inner(if round % 2 == 0 { "disk0" } else { "net0" })?;
        signal(pid, Signal::SIGSTOP)?;
        std::thread::sleep(Duration::from_millis(400));
        signal(pid, Signal::SIGCONT)?;
        std::thread::sleep(Duration::from_millis(100));
    }
    ensure!(
        !loaded.vm.errors.so_far().contains(" hangs: it "),
        "a short stop was taken for a hang:\n{}",
        loaded.vm.tails()
    );
    for round in 0..4 {
        let id = if round % 2 == 0 { "disk0" } else { "net0" };
        let pid = loaded.inner(id)?;
        signal(pid, Signal::SIGSTOP)?;
        loaded.replaced(id, pid)?;
    }
    ensure!(loaded.vm.errors.so_far().matches("hangs: it is stopped; killing it").count() == 4);
    loaded.finish(2)
}

fn backends_are_replaced_under_load(context: &Context) -> anyhow::Result<()> {
    let loaded = Loaded::start(context, &[])?;
    for _ in 0..5 {
        let before = (loaded.inner("disk0")?, loaded.inner("net0")?);
        let mut upgrade = context.start("strata", &["upgrade", "vm", "--again"])?;
        upgrade.expect_exit(0)?;
        let said = upgrade.output.so_far();
        ensure!(said.matches("replaced").count() == 2, "{}", upgrade.tails());
        let after = (loaded.inner("disk0")?, loaded.inner("net0")?);
        ensure!(before.0 != after.0 && before.1 != after.1, "the same processes still serve");
        std::thread::sleep(Duration::from_millis(500));
    }
    let said = loaded.vm.errors.so_far();
    ensure!(!said.contains("died"), "a replacement was taken for a death:\n{said}");
    loaded.finish(2)
}

/// Unbinds and binds both drivers while their backends are killed, and reboots at moments of nobody's choosing.
fn drivers_come_and_go_and_guests_reboot(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 16)?;
    let tap = Tap::new("tap0", false)?;
    let script = format!(
        "
ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
D=$(basename $(readlink -f /sys/block/vda/..)); D=$(basename $(readlink -f /sys/block/vda/device))
N=$(basename $(readlink -f /sys/class/net/eth0/device))
say bound $D $N
i=0
while [ $i -lt 15 ]; do
  i=$((i+1))
  echo $D > /sys/bus/virtio/drivers/virtio_blk/unbind || say error unbinding
  echo $N > /sys/bus/virtio/drivers/virtio_net/unbind || say error unbinding
  echo $D > /sys/bus/virtio/drivers/virtio_blk/bind || say error binding
  echo $N > /sys/bus/virtio/drivers/virtio_net/bind || say error binding
  head -c 65536 /dev/urandom > /tmp/f
  dd if=/tmp/f of=/dev/vda bs=4k oflag=direct 2>/dev/null || say error writing
  dd if=/dev/vda bs=4k count=16 iflag=direct 2>/dev/null | cmp - /tmp/f || say error comparing
  ip link set eth0 up; ip addr add {GUEST}/24 dev eth0
  ping -c 1 -W 20 {HOST} > /dev/null || say error pinging
done
say rebound
dd if=/dev/zero of=/dev/vda bs=4k oflag=direct 2>/dev/null &
while true; do dd if=/dev/vda of=/dev/null bs=4k iflag=direct 2>/dev/null; done
"
    );
    let mut vm = context.machine(&script)?.disk(&disk, "").net(tap.name(), "").start()?;
    vm.guest("bound")?;
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1100));
        // Whichever moment of the driver's that is.
        for id in ["disk0", "net0"] {
            process::kill(vm.pid_of(id)?)?;
        }
    }
    for reboot in 0..4_u64 {
        vm.guest("rebound")?;
        std::thread::sleep(Duration::from_millis(137 * reboot));
        context.start("strata", &["reboot", "vm"])?.expect_exit(0)?;
        vm.guest("init")?;
    }
    vm.guest("rebound")?;
    let said = vm.output.so_far();
    ensure!(!said.contains("guest: error"), "{}", vm.tails());
    context.start("strata", &["stop", "vm", "--now"])?.expect_exit(0)?;
    vm.wait().map(drop)
}

/// A disk whose backend nobody starts again: with `lost=pause` the vCPUs stand; with `reset_after` the device says that
/// it needs a reset, and serves a driver that comes anew.
fn a_device_without_backend_asks_for_a_reset(context: &Context) -> anyhow::Result<()> {
    let (disk, socket) = (context.disk("disk.img", 8)?, context.file("blk.sock"));
    let serve = || -> anyhow::Result<Process> {
        let mut command = context.command("vhost-blk");
        command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(&disk);
        let server = process::start("vhost-blk", &mut command)?;
        process::until("the backend's socket", || Ok(socket.exists()))?;
        Ok(server)
    };
    let gone = |mut server: Process| -> anyhow::Result<()> {
        server.signal(Signal::SIGKILL)?;
        server.wait()?;
        let _ = std::fs::remove_file(&socket);
        Ok(())
    };
    let state = |key: &str| -> anyhow::Result<serde_json::Value> {
        let mut status = context.start("strata", &["status", "vm", "--output", "json"])?;
        status.expect_exit(0)?;
        let status: serde_json::Value = serde_json::from_str(&status.output.so_far())?;
        Ok(status.get(key).cloned().unwrap_or_default())
    };
    let script = "
D=$(basename $(readlink -f /sys/block/vda/device)); S=/sys/bus/virtio/devices/$D/status
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say ready
while [ $(( $(cat $S) & 0x40 )) = 0 ]; do usleep 100000; done
say needs reset
echo $D > /sys/bus/virtio/drivers/virtio_blk/unbind
say status $(( $(cat $S) & 0x40 ))
read go
echo $D > /sys/bus/virtio/drivers/virtio_blk/bind
dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say again
read go
say paused and back
";
    let socket_flag = format!("socket={}", socket.display());
    let first = serve()?;
    let machine = context.machine(script)?.arg("--disk").arg(&socket_flag);
    let mut vm = machine.arg("--backend").arg("reset_after=2s").start()?;
    vm.guest("ready")?;
    gone(first)?;
    vm.guest("needs reset")?;
    ensure!(vm.guest_value("status")? == "0", "the reset did not take the flag back");
    ensure!(state("degraded")? == true, "a machine without its disk is not called degraded");
    let second = serve()?;
    process::until("the disk's return", || Ok(state("degraded")? == false))?;
    vm.type_in("go\n")?;
    vm.guest("again")?;
    vm.type_in("go\n")?;
    vm.expect_exit(0)?;
    drop(second);

    let first = serve()?;
    let script = "dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/dev/null && say ready; read go; say went on";
    let machine = context.machine(script)?.arg("--disk").arg(&socket_flag);
    let mut vm = machine.arg("--backend").arg("lost=pause").start()?;
    vm.guest("ready")?;
    gone(first)?;
    process::until("the vCPUs to stand", || Ok(state("state")? == "paused"))?;
    let _second = serve()?;
    process::until("the vCPUs to run", || Ok(state("state")? == "running"))?;
    vm.type_in("go\n")?;
    vm.guest("went on")?;
    vm.expect_exit(0)
}

/// When the vmm dies, its backends finish and end: the next machine has the disk, and all the guest was told is on it.
fn a_dead_vmm_frees_its_disk(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let script = "
i=0
while [ $i -lt 100000 ]; do
  i=$((i+1))
  printf '%-4096d' $i | dd of=/dev/vda bs=4k count=1 oflag=direct conv=notrunc 2>/dev/null && say wrote $i
done";
    for _ in 0..2 {
        let mut vm = context.machine(script)?.disk(&disk, "").start()?;
        vm.guest("wrote 20")?;
        process::kill(vm.pid_of("vmm")?)?;
        vm.expect_exit(1)?;
        let said = vm.output.so_far();
        let told: u64 = said
            .lines()
            .filter_map(|line| line.split("guest: wrote ").nth(1)?.trim().parse().ok())
            .max()
            .context("the guest wrote nothing")?;
        let mut block = [0; 4096];
        std::fs::File::open(&disk)?.read_exact(&mut block)?;
        let holds: u64 = String::from_utf8_lossy(&block).trim().parse().context("the block is torn")?;
        ensure!(holds >= told, "the guest was told of {told}, the image holds {holds}");
    }
    Ok(())
}
