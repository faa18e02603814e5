//! The network benchmark: frames of one size, one way, as fast as they go; or one request after the other.
//! Backends are measured in turns, so that what disturbs the machine disturbs all of them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use strata_vhost_net::host::{Namespace, Wire};

use crate::net_backend::{Program, Running, TAP};
use crate::net_driver::{Driver, HEADER};
use crate::net_frames::{GUEST, HOST, echo_request, plain, segment};
use crate::report::{self, Figure, Runs};
use crate::stats::Histogram;

/// `strata-bench net`
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The backend to measure: [strata=]PROGRAM
    #[arg(long, value_name = "PROGRAM")]
    backend: Program,

    /// Others beside it: ch=PROGRAM, strata=PROGRAM
    #[arg(long, value_name = "KIND=PROGRAM")]
    against: Vec<Program>,

    /// What is done
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Load::ALL)]
    load: Vec<Load>,

    /// Whether the driver sleeps for answers or spins
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Event])]
    mode: Vec<Mode>,

    /// Length of one run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Runs of each backend, in turns
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Descriptors per queue
    #[arg(long, default_value_t = 256)]
    queue: u16,

    /// Processors of driver, backend, and whoever sends to the guest
    #[arg(long, value_delimiter = ',', default_values_t = [1, 1, 0])]
    cpus: Vec<usize>,

    /// Leave all unpinned
    #[arg(long)]
    unpinned: bool,

    /// Print JSON lines instead of a table
    #[arg(long)]
    json: bool,

    /// Further words for our backend's command line
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    extra: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    Tx64,
    Tx1500,
    TxGso,
    Rx64,
    Rx1500,
    RxGso,
    /// Echo requests, answered by the host
    Rr,
}

impl Load {
    const ALL: [Self; 7] =
        [Self::Tx64, Self::Tx1500, Self::TxGso, Self::Rx64, Self::Rx1500, Self::RxGso, Self::Rr];

    /// The frame, with its header.
    fn frame(self) -> ([u8; HEADER], Vec<u8>) {
        match self {
            Self::Tx64 | Self::Rx64 => plain(64),
            Self::Tx1500 | Self::Rx1500 => plain(1500),
            Self::TxGso | Self::RxGso => segment(),
            Self::Rr => ([0; HEADER], echo_request()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Event,
    Poll,
}

/// One run of one backend.
#[derive(Debug, Clone, Default)]
struct Run {
    /// A second.
    frames: f64,
    gbits: f64,
    /// The backend's seconds for a million frames.
    cpu: f64,
    /// A frame.
    kicks: f64,
    /// A frame.
    calls: f64,
    /// In microseconds; 0 where frames go one way only.
    p50: f64,
    p99: f64,
}

const FIGURES: &[Figure<Run>] = &[
    Figure::new("kpps", 10, 1, "frames_per_second", |run: &Run| run.frames)
        .in_units_of(1e3)
        .compared("frames"),
    Figure::new("Gbit/s", 8, 2, "gbits", |run: &Run| run.gbits),
    Figure::new("CPU s/M", 8, 2, "cpu_seconds_per_million", |run: &Run| run.cpu).compared("CPU per frame"),
    Figure::new("kicks/f", 9, 5, "kicks_per_frame", |run: &Run| run.kicks),
    Figure::new("calls/f", 9, 5, "calls_per_frame", |run: &Run| run.calls),
    Figure::new("p50 us", 8, 1, "p50_us", |run: &Run| run.p50).compared("p50"),
    Figure::new("p99 us", 8, 1, "p99_us", |run: &Run| run.p99),
];

/// Measures everything asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut programs = vec![&options.backend];
    programs.extend(&options.against);
    for mode in &options.mode {
        for load in &options.load {
            let mut runs = Runs::new();
            for _ in 0..options.rounds {
                for (index, program) in programs.iter().enumerate() {
                    let run = measure(options, program, *mode, *load)
                        .with_context(|| format!("{} {load:?}", program.name()))?;
                    runs.entry(index).or_default().push(run);
                }
            }
            let title = format!("{load:?}, driver in {mode:?} mode");
            let names: Vec<&str> = programs.iter().map(|program| program.name()).collect();
            report::print(options.json, &title, &names, FIGURES, &runs);
        }
    }
    Ok(())
}

fn pin(options: &Options, role: usize) -> anyhow::Result<()> {
    if let (false, Some(cpu)) = (options.unpinned, options.cpus.get(role)) {
        let mut set = CpuSet::new();
        set.set(*cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("pinning")?;
    }
    Ok(())
}

fn measure(options: &Options, program: &Program, mode: Mode, load: Load) -> anyhow::Result<Run> {
    let namespace = Namespace::new()?;
    let dir = std::env::temp_dir().join(format!("strata-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let socket = dir.join("net.sock");
    let cpu = if options.unpinned { None } else { options.cpus.get(1).copied() };
    let mut backend = program.start(&namespace, &socket, cpu, &options.extra)?;
    pin(options, 0)?;
    let mut driver = Driver::connect(&socket, options.queue, mode == Mode::Poll, load == Load::RxGso)?;
    let result = match load {
        Load::Tx64 | Load::Tx1500 | Load::TxGso => {
            transmit(options, load, &namespace, &mut backend, &mut driver)
        }
        Load::Rx64 | Load::Rx1500 | Load::RxGso => {
            receive(options, load, &namespace, &mut backend, &mut driver)
        }
        Load::Rr => request(options, &namespace, &mut backend, &mut driver),
    };
    drop(driver);
    drop(backend);
    std::fs::remove_dir_all(&dir)?;
    result
}

/// Lets things get going before they are measured.
const WARM: Duration = Duration::from_millis(200);

fn transmit(
    options: &Options,
    load: Load,
    namespace: &Namespace,
    backend: &mut Running,
    driver: &mut Driver,
) -> anyhow::Result<Run> {
    let (header, frame) = load.frame();
    driver.set_frame(&header, &frame)?;
    let mut push = |length: Duration| {
        let start = Instant::now();
        while start.elapsed() < length {
            driver.transmit(frame.len());
            driver.reclaim();
        }
        (driver.kicks, driver.calls)
    };
    let (kicks, calls) = push(WARM);
    let (sent, cpu, start) = (namespace.counters(TAP)?.received, backend.cpu_time()?, Instant::now());
    let (kicks_after, calls_after) = push(Duration::from_secs_f64(options.seconds));
    let (cpu_after, elapsed) = (backend.cpu_time()?, start.elapsed());
    let frames = (namespace.counters(TAP)?.received - sent) as f64;
    Ok(Run {
        frames: frames / elapsed.as_secs_f64(),
        gbits: frames * frame.len() as f64 * 8.0 / elapsed.as_secs_f64() / 1e9,
        cpu: (cpu_after - cpu).as_secs_f64() / frames * 1e6,
        kicks: (kicks_after - kicks) as f64 / frames,
        calls: (calls_after - calls) as f64 / frames,
        ..Run::default()
    })
}

fn receive(
    options: &Options,
    load: Load,
    namespace: &Namespace,
    backend: &mut Running,
    driver: &mut Driver,
) -> anyhow::Result<Run> {
    let (header, frame) = load.frame();
    let large = load == Load::RxGso;
    let wire = namespace.wire(TAP, large)?;
    let sent = if large { [&header[..10], &frame].concat() } else { frame.clone() };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| send_until(options, &wire, &sent, &stop));
        let result = take(options, frame.len(), backend, driver);
        stop.store(true, Ordering::Relaxed);
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))??;
        result
    })
}

fn send_until(options: &Options, wire: &Wire, frame: &[u8], stop: &AtomicBool) -> anyhow::Result<()> {
    pin(options, 2)?;
    while !stop.load(Ordering::Relaxed) {
        if wire.send_many(frame, 64)? == 0 {
            std::thread::yield_now();
        }
    }
    Ok(())
}

fn take(options: &Options, len: usize, backend: &mut Running, driver: &mut Driver) -> anyhow::Result<Run> {
    let mut pull = |length: Duration| {
        let (start, mut bytes, mut buffers) = (Instant::now(), 0, 0);
        while start.elapsed() < length {
            driver.refill();
            let (count, more) = driver.receive(false);
            buffers += count;
            bytes += more;
        }
        (bytes, buffers, driver.kicks, driver.calls)
    };
    let (.., kicks, calls) = pull(WARM);
    let (cpu, start) = (backend.cpu_time()?, Instant::now());
    let (bytes, _, kicks_after, calls_after) = pull(Duration::from_secs_f64(options.seconds));
    let (cpu_after, elapsed) = (backend.cpu_time()?, start.elapsed());
    let frames = bytes as f64 / (len + HEADER) as f64;
    Ok(Run {
        frames: frames / elapsed.as_secs_f64(),
        gbits: frames * len as f64 * 8.0 / elapsed.as_secs_f64() / 1e9,
        cpu: (cpu_after - cpu).as_secs_f64() / frames * 1e6,
        kicks: (kicks_after - kicks) as f64 / frames,
        calls: (calls_after - calls) as f64 / frames,
        ..Run::default()
    })
}

fn request(
    options: &Options,
    namespace: &Namespace,
    backend: &mut Running,
    driver: &mut Driver,
) -> anyhow::Result<Run> {
    let mac = HOST.map(|byte| format!("{byte:02x}")).join(":");
    let guest = GUEST.map(|byte| format!("{byte:02x}")).join(":");
    namespace.ip(&format!("link set {TAP} address {mac}"))?;
    namespace.ip(&format!("addr replace 192.0.2.1/24 dev {TAP}"))?;
    namespace.ip(&format!("neigh replace 192.0.2.2 lladdr {guest} dev {TAP} nud permanent"))?;
    let frame = echo_request();
    driver.set_frame(&[0; HEADER], &frame)?;
    driver.refill();
    let mut ask = |length: Duration| {
        let (start, mut times) = (Instant::now(), Histogram::default());
        let mut count = 0u64;
        while start.elapsed() < length {
            let asked = Instant::now();
            driver.transmit_one(frame.len());
            driver.receive(true);
            times.add(asked.elapsed().as_nanos() as u64);
            count += 1;
            driver.reap();
            driver.refill();
        }
        (times, count, driver.kicks, driver.calls)
    };
    let (.., kicks, calls) = ask(WARM);
    let (cpu, start) = (backend.cpu_time()?, Instant::now());
    let (times, count, kicks_after, calls_after) = ask(Duration::from_secs_f64(options.seconds));
    let (cpu_after, elapsed) = (backend.cpu_time()?, start.elapsed());
    let count = count as f64;
    Ok(Run {
        frames: count / elapsed.as_secs_f64(),
        cpu: (cpu_after - cpu).as_secs_f64() / count * 1e6,
        kicks: (kicks_after - kicks) as f64 / count,
        calls: (calls_after - calls) as f64 / count,
        p50: times.percentile(0.5),
        p99: times.percentile(0.99),
        ..Run::default()
    })
}
