//! The block benchmark: 4 KiB random reads or writes at a constant depth, backends interleaved.
//!
//! Without `--image` it measures the two kinds of backing there are: data that is in memory anyway (a file on tmpfs,
//! through the page cache), and a device (a file below `target/`, direct I/O).

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, ValueEnum};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::backend::{Program, Use};
use crate::blk_driver::Driver;
use crate::frontend::Client;
use crate::report::{self, Figure, Runs};
use crate::ring::Notify;

/// `strata-bench blk`
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The backend to measure: [strata=]PROGRAM
    #[arg(long, value_name = "PROGRAM")]
    backend: Program,

    /// Others beside it: qemu-storage-daemon, or KIND=PROGRAM with kind cloud-hypervisor, qemu-storage-daemon,
    /// qemu-storage-daemon-io_uring or strata
    #[arg(long, value_name = "KIND=PROGRAM")]
    against: Vec<Program>,

    /// Image to use; written over [default: one on tmpfs, then, with direct I/O, one below target/]
    #[arg(long, value_name = "PATH")]
    image: Option<PathBuf>,

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
    #[arg(long, requires = "image")]
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
struct Run {
    iops: f64,
    /// Backend's processor seconds per million requests.
    cpu: f64,
    kicks: f64,
    calls: f64,
    p50: f64,
    p99: f64,
}

const FIGURES: &[Figure<Run>] = &[
    Figure::new("IOPS", 12, 0, "iops", |run: &Run| run.iops).compared("IOPS"),
    Figure::new("CPU s/M", 9, 2, "cpu_seconds_per_million", |run: &Run| run.cpu).compared("CPU per I/O"),
    Figure::new("p50 us", 8, 1, "p50_us", |run: &Run| run.p50),
    Figure::new("p99 us", 8, 1, "p99_us", |run: &Run| run.p99),
    Figure::new("kicks/IO", 9, 4, "kicks_per_io", |run: &Run| run.kicks),
    Figure::new("calls/IO", 9, 4, "calls_per_io", |run: &Run| run.calls),
];

/// A place for the image, and how it is used.
struct Backing {
    name: String,
    image: PathBuf,
    direct: bool,
    /// Made for this run, and taking up memory.
    temporary: bool,
}

impl Options {
    fn backings(&self) -> Vec<Backing> {
        let name = |direct| if direct { "direct I/O" } else { "page cache" };
        if let Some(image) = &self.image {
            let (image, direct) = (image.clone(), self.direct);
            return vec![Backing { name: name(direct).to_owned(), image, direct, temporary: false }];
        }
        let memory = format!("/dev/shm/strata-bench-{}.img", std::process::id());
        let backing = |place: &str, image: PathBuf, direct| {
            let (name, temporary) = (format!("{place}, {}", name(direct)), !direct);
            Backing { name, image, direct, temporary }
        };
        vec![
            backing("tmpfs", memory.into(), false),
            backing("target/", PathBuf::from("target/strata/bench-blk.img"), true),
        ]
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        if self.temporary {
            drop(std::fs::remove_file(&self.image));
        }
    }
}

/// Measures everything asked for.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let mut programs = vec![&options.backend];
    programs.extend(&options.against);
    if !options.json {
        programs.iter().for_each(|program| println!("{}: {}", program.name(), program.version()));
        println!();
    }
    if let (false, Some(cpu)) = (options.unpinned, options.cpus.first()) {
        let mut set = CpuSet::new();
        set.set(*cpu)?;
        sched_setaffinity(Pid::from_raw(0), &set).context("pinning the driver")?;
    }
    for backing in options.backings() {
        prepare(&backing.image, options.size)?;
        for mode in &options.mode {
            for load in &options.load {
                for depth in &options.depth {
                    compare(options, &backing, &programs, (*mode, *load, *depth))?;
                }
            }
        }
    }
    Ok(())
}

fn compare(
    options: &Options,
    backing: &Backing,
    programs: &[&Program],
    (mode, load, depth): (Mode, Load, u16),
) -> anyhow::Result<()> {
    let mut runs = Runs::new();
    for _ in 0..options.rounds {
        for (index, program) in programs.iter().enumerate() {
            runs.entry(index).or_default().push(measure(options, backing, program, mode, load, depth)?);
        }
    }
    let names = programs.iter().map(|program| program.name()).collect::<Vec<_>>();
    let title = format!("{}, {load:?}, depth {depth}, {mode:?}", backing.name).to_lowercase();
    report::print(options.json, &title, &names, FIGURES, &runs);
    Ok(())
}

/// Makes and fills an image of so many MiB: holes would be read without the file system.
fn prepare(image: &Path, size: u64) -> anyhow::Result<()> {
    if image.exists() {
        return Ok(());
    }
    let chunk = vec![0x5a; 1 << 20];
    let mut file =
        std::fs::File::create(image).with_context(|| format!("cannot make {}", image.display()))?;
    for _ in 0..size {
        std::io::Write::write_all(&mut file, &chunk)?;
    }
    file.sync_all()?;
    Ok(())
}

fn measure(
    options: &Options,
    backing: &Backing,
    program: &Program,
    mode: Mode,
    load: Load,
    depth: u16,
) -> anyhow::Result<Run> {
    let socket = std::env::temp_dir().join(format!("strata-bench-{}.sock", std::process::id()));
    let cpu = options.cpus.get(1).copied().filter(|_| !options.unpinned);
    let mut backend = program.start(Use {
        image: &backing.image,
        socket: &socket,
        direct: backing.direct,
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
