//! A machine under `strata run`, with its proxies and its stream.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use strata_faults::Report;

use crate::place::{MAC, Place};
use crate::proxy::Proxy;
use crate::stream::Stream;
use crate::tally::Tally;

/// How long anything may take. Generous: what has a limit of its own says more when that one is reached.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// A process younger than this that dies is one that dies young, and is made to wait.
const GROWN: Duration = Duration::from_millis(1100);

/// A running machine.
pub(crate) struct Machine {
    pub(crate) name: String,
    launcher: Child,
    run_dir: PathBuf,
    dir: PathBuf,
    strata: Box<dyn Fn() -> Command>,
    pub(crate) proxies: BTreeMap<String, Proxy>,
    stream: Option<Stream>,
}

/// Waits until `condition` gives something.
pub(crate) fn until<T>(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < PATIENCE, "waited {} s in vain: {what}", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Machine {
    /// Starts machine `index`, on whatever its images and ledgers hold.
    pub(crate) fn start(place: &Place, index: usize) -> anyhow::Result<Self> {
        let name = place.name(index);
        let (dir, run_dir) = (place.path(&name), place.path("run").join(&name));
        let mut proxies = BTreeMap::new();
        let mut arguments: Vec<String> = Vec::new();
        for (id, disk) in place.disks(index) {
            arguments.extend(["--disk".to_owned(), disk]);
            proxies.insert(
                id.to_owned(),
                Proxy::start(dir.join(format!("{id}.proxy")), run_dir.join(format!("{id}.sock")))?,
            );
        }
        arguments.extend(["--net".to_owned(), format!("tap=tap0,mac={MAC},id=net")]);
        proxies.insert("net".to_owned(), Proxy::start(dir.join("net.proxy"), run_dir.join("net.sock"))?);
        let _ = fs::remove_file(dir.join("report.json"));
        let said = fs::File::options().append(true).create(true).open(place.path(&format!("{name}.log")))?;
        let strata = place.strata();
        // Its own view of /sys, which shows the interfaces of the namespace it was mounted in.
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", "mount -t sysfs sysfs /sys && exec \"$0\" \"$@\""])
            .arg(strata.get_program());
        command.args(["run", "--name", &name, "--kernel"]).arg(place.path("vmlinuz"));
        command.args(["--console", "off", "--backend", "hung_after=1s"]).args(&arguments);
        let environment: Vec<_> =
            strata.get_envs().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect();
        command.envs(environment.clone()).env("LOAD_DIR", &dir).env("LOAD_PROXY", "1");
        command.env("LOAD_TAP", format!("{}:tap1", place.guest_namespace(index)?));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
        let network = place.network(index).context("a network")?;
        let launcher = network.host.run(|| command.spawn())?.context("cannot start strata")?;
        let program = strata.get_program().to_owned();
        let strata = Box::new(move || {
            let mut command = Command::new(&program);
            command.envs(environment.clone());
            command
        });
        let mut this = Self { name, launcher, run_dir, dir, strata, proxies, stream: None };
        this.settle()?;
        this.stream = Some(Stream::begin(network, u64::from(this.launcher.id()))?);
        Ok(this)
    }

    /// The devices.
    pub(crate) fn devices(&self) -> Vec<String> {
        self.proxies.keys().cloned().collect()
    }

    pub(crate) fn launcher_pid(&self) -> i32 {
        self.launcher.id() as i32
    }

    /// The end of what it said.
    fn said(&self) -> String {
        let log = self.dir.with_extension("log");
        let text = fs::read_to_string(log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n")
    }

    /// It must not have ended.
    pub(crate) fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.launcher.try_wait()? {
            bail!("{} ended by itself ({status}); it said:\n{}", self.name, self.said());
        }
        Ok(())
    }

    /// Runs `strata ARGUMENTS`; its output, if it ends well.
    pub(crate) fn ask(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = (self.strata)().args(arguments).output()?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "strata {}: {}{err}{out}", arguments.join(" "), output.status);
        Ok(out.into_owned())
    }

    fn status(&self) -> Option<Value> {
        serde_json::from_str(&self.ask(&["status", &self.name, "--output", "json"]).ok()?).ok()
    }

    /// Whether a device is connected and its rings move.
    fn is_well(device: &Value) -> bool {
        device.get("state").and_then(Value::as_str) == Some("connected")
            && device.get("stalled_milliseconds").and_then(Value::as_u64).is_some_and(|stalled| stalled < 250)
    }

    /// Waits until every device is served and the stream flows.
    pub(crate) fn settle(&mut self) -> anyhow::Result<()> {
        let wanted = self.proxies.len();
        let name = self.name.clone();
        let settled = until(&format!("{name} to be whole"), || {
            self.check()?;
            let status = self.status();
            let devices = status.as_ref().and_then(|it| it.get("devices")?.as_array());
            let well = devices.is_some_and(|all| all.len() == wanted && all.iter().all(Self::is_well));
            Ok(well.then_some(()))
        });
        settled.with_context(|| format!("it said:\n{}", self.said()))?;
        if let Some(before) = self.stream.as_ref().map(Stream::bytes) {
            let flows = until(&format!("{name}'s stream to flow"), || {
                self.check()?;
                Ok(self.stream.as_ref().is_some_and(|stream| stream.bytes() > before).then_some(()))
            });
            flows.with_context(|| format!("it said:\n{}", self.said()))?;
        }
        Ok(())
    }

    /// Whether one device is served again.
    pub(crate) fn is_served(&self, id: &str) -> bool {
        let status = self.status();
        let devices = status.as_ref().and_then(|it| it.get("devices")?.as_array());
        let mut all = devices.into_iter().flatten();
        all.any(|device| device.get("id").and_then(Value::as_str) == Some(id) && Self::is_well(device))
    }

    /// The process of a device (or `vmm`), if it lives; `grown`: only one that is not young.
    pub(crate) fn pid_of(&self, id: &str, grown: bool) -> Option<i32> {
        let path = self.run_dir.join(format!("{id}.pid"));
        let age = fs::metadata(&path).ok()?.modified().ok()?.elapsed().ok()?;
        let pid: i32 = fs::read_to_string(&path).ok()?.trim().parse().ok()?;
        // Not somebody else's who has got the number meanwhile.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut fields = stat.rsplit_once(") ")?.1.split_whitespace();
        let alive = fields.next() != Some("Z");
        let ours = fields.next()?.parse() == Ok(self.launcher_pid());
        (alive && ours && (!grown || age >= GROWN)).then_some(pid)
    }

    /// The sandboxed process of a device: the reaper's child.
    pub(crate) fn inner_of(&self, id: &str, grown: bool) -> Option<i32> {
        let reaper = self.pid_of(id, grown)?;
        let children = fs::read_to_string(format!("/proc/{reaper}/task/{reaper}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    }

    /// Waits for its end; the launcher's exit code.
    fn wait(&mut self) -> anyhow::Result<Option<i32>> {
        let name = self.name.clone();
        let launcher = &mut self.launcher;
        let status = until(&format!("{name} to end"), || Ok(launcher.try_wait()?))?;
        Ok(status.code())
    }

    /// Stops it as a user does: every byte and every block must be there.
    pub(crate) fn finish(mut self, tally: &mut Tally) -> anyhow::Result<()> {
        let name = self.name.clone();
        self.check()?;
        if let Some(stream) = self.stream.take() {
            let bytes = stream.finish().with_context(|| format!("{name}; it said:\n{}", self.said()))?;
            tally.stream_bytes += bytes;
        }
        self.ask(&["stop", &name, "--timeout", "110"])?;
        let code = self.wait()?;
        ensure!(code == Some(0), "{name} ended with {code:?}; it said:\n{}", self.said());
        let report = fs::read(self.dir.join("report.json")).context("the load left no report")?;
        let report: Report = serde_json::from_slice(&report)?;
        tally.add(report);
        Ok(())
    }

    /// Kills its vmm or its launcher; all the rest has to end by itself, and soon.
    pub(crate) fn kill(&mut self, id: &str) -> anyhow::Result<()> {
        if let Some(stream) = self.stream.take() {
            tracing::debug!("{}: the stream came to {} bytes", self.name, stream.bytes());
            stream.abandon();
        }
        let pid = if id == "launcher" { Some(self.launcher_pid()) } else { self.pid_of(id, false) };
        let pid = pid.with_context(|| format!("{} has no {id}", self.name))?;
        let below = crate::leaks::below(self.launcher_pid());
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        let code = self.wait()?;
        let expected = if id == "launcher" { None } else { Some(1) };
        ensure!(code == expected, "{} ended with {code:?} after its {id} was killed", self.name);
        until("the killed machine's processes to end", || {
            let left = below.iter().any(|pid| crate::leaks::alive(*pid));
            Ok((!left).then_some(()))
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.abandon();
        }
        if matches!(self.launcher.try_wait(), Ok(None)) {
            let _ = self.launcher.kill();
            let _ = self.launcher.wait();
        }
    }
}
