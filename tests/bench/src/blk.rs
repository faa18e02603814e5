//! The block benchmark: 4 KiB random reads or writes at a constant depth, backends interleaved.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::backend::{Program, Use};
use crate::frontend::Client;
use crate::report;
use crate::ring::{BLOCK, Notify};
use crate::stats::Histogram;

/// `strata-bench blk`
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The backend to measure: [strata=]PROGRAM
    #[arg(long, value_name = "PROGRAM")]
    backend: Program,

    /// Others beside it: ch=PROGRAM, qsd=PROGRAM, strata=PROGRAM
    #[arg(long, value_name = "KIND=PROGRAM")]
    against: Vec<Program>,

    /// Image to use; written over
    #[arg(long, value_name = "PATH")]
    image: PathBuf,

    /// Size the image is given (and filled to) if it does not exist, in MiB
    #[arg(long, default_value_t = 1024)]
    size: u64,

    /// What is done
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Load::Read, Load::Write])]
    load: Vec<Load>,

    /// Requests under way at once, at most 42
    #[arg(long, value_delimiter = ',', default_values_t = [1, 32])]
    depth: Vec<u16>,

    /// Whether the driver spins or sleeps for completions
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Mode::Poll, Mode::Event])]
    mode: Vec<Mode>,

    /// Direct I/O
    #[arg(long)]
    direct: bool,

    /// Length of one run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,

    /// Runs of each backend, interleaved
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Processors of driver and backend
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0, 1])]
    cpus: Vec<usize>,

    /// Leave both unpinned
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
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    Poll,
    Event,
}

/// One run of one backend.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) iops: f64,
    /// Backend's processor seconds per million requests.
    pub(crate) cpu: f64,
    pub(crate) kicks: f64,
    pub(crate) calls: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// Measures everything asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    prepare(options)?;
    let mut programs = vec![&options.backend];
    programs.extend(&options.against);
    if let (false, Some(cpu)) = (options.unpinned, options.cpus.first()) {
        let mut set = CpuSet::new();
        set.set(*cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("pinning the driver")?;
    }
    for mode in &options.mode {
        for load in &options.load {
            for depth in &options.depth {
                let mut runs: BTreeMap<usize, Vec<Run>> = BTreeMap::new();
                for _ in 0..options.rounds {
                    for (index, program) in programs.iter().enumerate() {
                        runs.entry(index).or_default().push(measure(options, program, *mode, *load, *depth)?);
                    }
                }
                let names = programs.iter().map(|program| program.name()).collect::<Vec<_>>();
                let title = format!("{load:?}, depth {depth}, {mode:?}").to_lowercase();
                if options.json {
                    report::json(&title, &names, &runs);
                } else {
                    report::table(&title, &names, &runs);
                }
            }
        }
    }
    Ok(())
}

/// Makes and fills the image: holes would be read without the file system.
fn prepare(options: &Options) -> anyhow::Result<()> {
    if options.image.exists() {
        return Ok(());
    }
    let chunk = vec![0x5a; 1 << 20];
    let mut file = std::fs::File::create(&options.image).context("making the image")?;
    for _ in 0..options.size {
        std::io::Write::write_all(&mut file, &chunk)?;
    }
    file.sync_all()?;
    Ok(())
}

fn measure(options: &Options, program: &Program, mode: Mode, load: Load, depth: u16) -> anyhow::Result<Run> {
    let socket = std::env::temp_dir().join(format!("strata-bench-{}.sock", std::process::id()));
    let cpu = options.cpus.get(1).copied().filter(|_| !options.unpinned);
    let mut backend = program.start(Use {
        image: &options.image,
        socket: &socket,
        direct: options.direct,
        cpu,
        extra: &options.extra,
    })?;
    let mut client = Client::connect(&socket, depth).with_context(|| backend.said())?;
    let notify = if mode == Mode::Poll { Notify::Poll } else { Notify::Event };
    let mut driver = Driver::new(&mut client, load == Load::Write, depth, notify);
    driver.run(Duration::from_secs_f64(options.seconds / 5.0))?; // warm-up
    driver.forget();
    let cpu_before = backend.cpu_time()?;
    let start = Instant::now();
    driver.run(Duration::from_secs_f64(options.seconds))?;
    let elapsed = start.elapsed();
    let cpu = backend.cpu_time()?.saturating_sub(cpu_before);
    let done = driver.done as f64;
    let run = Run {
        iops: done / elapsed.as_secs_f64(),
        cpu: cpu.as_secs_f64() * 1e6 / done,
        kicks: driver.kicks as f64 / done,
        calls: driver.calls()? as f64 / done,
        p50: driver.latency.percentile(0.5),
        p99: driver.latency.percentile(0.99),
    };
    client.disconnect()?;
    drop(backend);
    drop(std::fs::remove_file(&socket));
    Ok(run)
}

struct Driver<'a> {
    client: &'a mut Client,
    write: bool,
    depth: u16,
    notify: Notify,
    random: u64,
    posted: Vec<Instant>,
    done: u64,
    kicks: u64,
    calls: u64,
    latency: Histogram,
}

impl<'a> Driver<'a> {
    fn new(client: &'a mut Client, write: bool, depth: u16, notify: Notify) -> Self {
        let posted = vec![Instant::now(); usize::from(depth)];
        Self {
            client,
            write,
            depth,
            notify,
            random: 0x9e37_79b9_7f4a_7c15,
            posted,
            done: 0,
            kicks: 0,
            calls: 0,
            latency: Histogram::default(),
        }
    }

    fn forget(&mut self) {
        (self.done, self.kicks, self.calls, self.latency) = (0, 0, 0, Histogram::default());
        drop(self.drain_calls());
        self.calls = 0;
    }

    /// Keeps `depth` requests under way for a time, then waits for the last.
    fn run(&mut self, time: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut now = start;
        let mut under_way = 0;
        for slot in 0..self.depth {
            self.post(slot, now);
            under_way += 1;
        }
        self.publish()?;
        loop {
            let mut any = false;
            let going_on = now - start < time;
            while let Some((slot, status)) = self.client.ring.completed() {
                ensure!(status == 0, "a request has failed with status {status}");
                if !any {
                    now = Instant::now();
                    any = true;
                }
                if let Some(posted) = self.posted.get(usize::from(slot)) {
                    self.latency.add((now - *posted).as_nanos() as u64);
                }
                self.done += 1;
                if going_on {
                    self.post(slot, now);
                } else {
                    under_way -= 1;
                }
            }
            if under_way == 0 {
                return Ok(());
            }
            if any {
                self.publish()?;
            } else if self.notify == Notify::Poll {
                std::hint::spin_loop();
                // A backend that has died never answers.
                ensure!(start.elapsed() < time + Duration::from_secs(20), "the backend does not answer");
            } else if !self.client.ring.arm() {
                self.sleep()?;
            }
        }
    }

    fn post(&mut self, slot: u16, now: Instant) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let blocks = self.client.capacity / BLOCK as u64;
        let sector = (self.random % blocks) * (BLOCK as u64 / 512);
        if let Some(posted) = self.posted.get_mut(usize::from(slot)) {
            *posted = now;
        }
        self.client.ring.post(slot, self.write, sector);
    }

    fn publish(&mut self) -> anyhow::Result<()> {
        if self.client.ring.publish() {
            self.kicks += 1;
            self.client.kick.write(1).context("kicking")?;
        }
        Ok(())
    }

    fn sleep(&mut self) -> anyhow::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.client.call(), PollFlags::POLLIN)];
        let ready = poll(&mut fds, PollTimeout::from(20_000u16))?;
        ensure!(ready > 0, "the backend does not answer");
        self.calls += self.client.calls.read().context("reading calls")?;
        Ok(())
    }

    fn drain_calls(&mut self) -> anyhow::Result<()> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut fds = [PollFd::new(self.client.call(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO)? > 0 {
            self.calls += self.client.calls.read()?;
        }
        Ok(())
    }

    fn calls(&mut self) -> anyhow::Result<u64> {
        self.drain_calls()?;
        Ok(self.calls)
    }
}
