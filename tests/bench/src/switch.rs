//! The switch benchmark: frames from one guest to another, through the switch, and through two taps on a kernel bridge
//! with a vhost-net each. The same two drivers in this process, in turns, so that what disturbs the machine disturbs
//! both. Needs root, for a network namespace.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use strata_vhost_net::host::Namespace;

use crate::net_driver::{Driver, HEADER};
use crate::report::{self, Figure, Runs};

/// `strata-bench switch`
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// vhost-net
    #[arg(long, value_name = "PROGRAM")]
    backend: PathBuf,

    /// Bytes of a frame
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1500])]
    size: Vec<usize>,

    /// How the drivers wait: poll, one thread that looks at both rings; event, a sleeping thread each
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Poll, Mode::Event])]
    mode: Vec<Mode>,

    /// Length of one run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Runs of each, in turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Descriptors per queue
    #[arg(long, default_value_t = 256)]
    queue: u16,

    /// Processors of the drivers and of the backends: the switch, or the sender's and the receiver's vhost-net
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 1])]
    cpus: Vec<usize>,

    /// Leave all unpinned
    #[arg(long)]
    unpinned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Poll,
    Event,
}

const SENDER: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];
const RECEIVER: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];
/// Our switch, and taps on a kernel bridge.
const NAMES: &[&str] = &["switch", "bridge"];
const WARM: Duration = Duration::from_millis(200);

/// One run of one way.
#[derive(Debug, Clone, Default)]
struct Run {
    frames: f64,
    cpu: f64,
    kicks: f64,
    calls: f64,
}

const FIGURES: &[Figure<Run>] = &[
    Figure::new("kpps", 10, 1, "frames_per_second", |run: &Run| run.frames)
        .in_units_of(1e3)
        .compared("frames"),
    Figure::new("CPU s/M", 8, 2, "cpu_seconds_per_million", |run: &Run| run.cpu).compared("CPU per frame"),
    Figure::new("kicks/f", 9, 5, "kicks_per_frame", |run: &Run| run.kicks),
    Figure::new("calls/f", 9, 5, "calls_per_frame", |run: &Run| run.calls),
];

/// Measures everything asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    for mode in &options.mode {
        for size in &options.size {
            let mut runs = Runs::new();
            for _ in 0..options.rounds {
                for (index, name) in NAMES.iter().enumerate() {
                    runs.entry(index)
                        .or_default()
                        .push(measure(options, *mode, *size, index == 0).context(*name)?);
                }
            }
            report::table(&format!("{size} bytes, drivers in {mode:?} mode"), NAMES, FIGURES, &runs);
        }
    }
    Ok(())
}

/// Backends that are ended when dropped.
struct Running {
    children: Vec<Child>,
    log: PathBuf,
}

impl Running {
    fn start(
        &mut self,
        namespace: &Namespace,
        cpu: Option<usize>,
        program: &Path,
        args: &[String],
    ) -> anyhow::Result<()> {
        let mut command = match cpu {
            Some(cpu) => {
                let mut command = Command::new("taskset");
                command.arg("-c").arg(cpu.to_string()).arg(program);
                command
            }
            None => Command::new(program),
        };
        let log =
            std::fs::File::options().create(true).append(true).open(&self.log).context("making a log")?;
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child =
            namespace.run(|| command.spawn())?.with_context(|| format!("starting {}", program.display()))?;
        self.children.push(child);
        Ok(())
    }

    fn cpu_time(&mut self) -> anyhow::Result<Duration> {
        let mut total = Duration::ZERO;
        for child in &mut self.children {
            if let Some(status) = child.try_wait()? {
                bail!("a backend has ended: {status}: {}", std::fs::read_to_string(&self.log)?);
            }
            for pid in crate::backend::family(child.id()) {
                let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid as i32))?;
                total += Duration::from(nix::time::clock_gettime(clock)?);
            }
        }
        Ok(total)
    }

    fn wait_for(&mut self, what: &str, mut there: impl FnMut() -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !there() {
            self.cpu_time()?;
            ensure!(
                Instant::now() < deadline,
                "{what} is not there: {}",
                std::fs::read_to_string(&self.log)?
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
            drop(child.wait());
        }
    }
}

fn start(options: &Options, namespace: &Namespace, dir: &Path, switch: bool) -> anyhow::Result<Running> {
    let cpu = |role: usize| if options.unpinned { None } else { options.cpus.get(role).copied() };
    let mut running = Running { children: Vec::new(), log: dir.join("log") };
    let socket = |name: &str| dir.join(name).display().to_string();
    if switch {
        let port = |name: &str| format!("name={name},socket-path={}", socket(name));
        let args = ["--switch".to_owned(), "--port".to_owned(), port("a"), "--port".to_owned(), port("b")];
        running.start(namespace, cpu(1), &options.backend, &args)?;
    } else {
        namespace.ip("link add br0 type bridge").context("no kernel bridge here")?;
        for (role, name) in [(1, "a"), (2, "b")] {
            let tap = format!("bench{name}");
            let args = ["--tap", &tap, "--create-tap", "--socket-path", &socket(name)].map(str::to_owned);
            running.start(namespace, cpu(role), &options.backend, &args)?;
            running.wait_for(&tap, || namespace.counters(&tap).is_ok())?;
            namespace.ip(&format!("link set {tap} master br0"))?;
            namespace.ip(&format!("link set {tap} up"))?;
        }
        namespace.ip("link set br0 up")?;
    }
    running.wait_for("a socket", || ["a", "b"].iter().all(|name| dir.join(name).exists()))?;
    Ok(running)
}

fn pin(options: &Options) -> anyhow::Result<()> {
    if let (false, Some(cpu)) = (options.unpinned, options.cpus.first()) {
        let mut set = CpuSet::new();
        set.set(*cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("pinning")?;
    }
    Ok(())
}

fn frame(to: [u8; 6], from: [u8; 6], size: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
    frame.resize(size.max(60), 0x5a);
    frame
}

fn measure(options: &Options, mode: Mode, size: usize, switch: bool) -> anyhow::Result<Run> {
    let namespace = Namespace::new()?;
    let dir = std::env::temp_dir().join(format!("strata-bench-switch-{}", std::process::id()));
    drop(std::fs::remove_dir_all(&dir));
    std::fs::create_dir_all(&dir)?;
    let mut running = start(options, &namespace, &dir, switch)?;
    pin(options)?;
    let connect = |name: &str| Driver::connect(&dir.join(name), options.queue, mode == Mode::Poll, false);
    let mut receiver = connect("b")?;
    receiver.refill();
    // Both ways learn where the receiver is, by a frame that everybody gets.
    let hello = frame([0xff; 6], RECEIVER, 60);
    receiver.set_frame(&[0; HEADER], &hello)?;
    receiver.transmit_one(hello.len());
    let sent = frame(RECEIVER, SENDER, size);
    let result = match mode {
        Mode::Poll => {
            let mut sender = connect("a")?;
            sender.set_frame(&[0; HEADER], &sent)?;
            poll(options, &mut running, &mut sender, &mut receiver, sent.len())
        }
        Mode::Event => {
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let sending = scope.spawn(|| -> anyhow::Result<u64> {
                    pin(options)?;
                    let mut sender = connect("a")?;
                    sender.set_frame(&[0; HEADER], &sent)?;
                    while !stop.load(Ordering::Relaxed) {
                        sender.transmit(sent.len());
                        sender.reclaim();
                    }
                    Ok(sender.kicks)
                });
                let result = event(options, &mut running, &mut receiver);
                stop.store(true, Ordering::Relaxed);
                sending.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
                result
            })
        }
    };
    drop(receiver);
    drop(running);
    std::fs::remove_dir_all(&dir)?;
    result
}

/// One thread, both drivers: it sends what there is room for and takes what has come.
fn poll(
    options: &Options,
    running: &mut Running,
    sender: &mut Driver,
    receiver: &mut Driver,
    len: usize,
) -> anyhow::Result<Run> {
    let mut go = |length: Duration| {
        let (start, mut frames) = (Instant::now(), 0);
        while start.elapsed() < length {
            sender.reap();
            sender.transmit(len);
            receiver.refill();
            frames += receiver.receive(false).0;
        }
        (frames, sender.kicks + receiver.kicks, sender.calls + receiver.calls)
    };
    let (_, kicks, calls) = go(WARM);
    let (cpu, start) = (running.cpu_time()?, Instant::now());
    let (frames, kicks_after, calls_after) = go(Duration::from_secs_f64(options.seconds));
    let (cpu_after, elapsed) = (running.cpu_time()?, start.elapsed());
    summary(frames, elapsed, cpu_after - cpu, kicks_after - kicks, calls_after - calls)
}

/// A sleeping thread each; this is the receiver's.
fn event(options: &Options, running: &mut Running, receiver: &mut Driver) -> anyhow::Result<Run> {
    let mut go = |length: Duration| {
        let (start, mut frames) = (Instant::now(), 0);
        while start.elapsed() < length {
            receiver.refill();
            frames += receiver.receive(false).0;
        }
        (frames, receiver.kicks, receiver.calls)
    };
    let (_, kicks, calls) = go(WARM);
    let (cpu, start) = (running.cpu_time()?, Instant::now());
    let (frames, kicks_after, calls_after) = go(Duration::from_secs_f64(options.seconds));
    let (cpu_after, elapsed) = (running.cpu_time()?, start.elapsed());
    summary(frames, elapsed, cpu_after - cpu, kicks_after - kicks, calls_after - calls)
}

fn summary(frames: u64, elapsed: Duration, cpu: Duration, kicks: u64, calls: u64) -> anyhow::Result<Run> {
    ensure!(frames > 0, "no frame has crossed");
    let frames = frames as f64;
    Ok(Run {
        frames: frames / elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() / frames * 1e6,
        kicks: kicks as f64 / frames,
        calls: calls as f64 / frames,
    })
}
