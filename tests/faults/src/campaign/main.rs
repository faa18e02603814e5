//! `fault-campaign`: machines under `strata run` with a verified load (`load-vmm` in the vmm's place), and everything
//! broken around them, from a seed. Called by `cargo xtask faults`.
//!
//! Runs in rounds. A round starts machines with disks and a card on fresh or used images, breaks things for a while,
//! stops the machines, and looks: every block ever acknowledged, every byte of every TCP stream, and that no process,
//! mount, file or descriptor is left. A round's seed follows from the campaign's and is printed, so that one round can
//! be run again.

mod chaos;
mod leaks;
mod machine;
mod place;
mod proxy;
mod stream;
mod tally;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Parser;
use strata_faults::Random;

use crate::chaos::Fault;
use crate::machine::Machine;
use crate::place::Place;
use crate::tally::Tally;

/// Breaks things around running machines, and checks that nothing is lost.
#[derive(Debug, Parser)]
#[command(name = "fault-campaign", max_term_width = 110)]
struct Arguments {
    /// How long
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// What everything follows from; printed, so that a campaign can be repeated
    #[arg(long)]
    seed: Option<u64>,
    /// Rounds to skip, to come to the one of interest
    #[arg(long, default_value_t = 0)]
    skip: u64,
    /// Machines at a time
    #[arg(long, default_value_t = 2)]
    machines: usize,
    /// How long things are broken in a round, in seconds
    #[arg(long, default_value_t = 20)]
    round: u64,
    /// End when this many faults of the kinds chosen are done, rather than after a time
    #[arg(long)]
    count: Option<u64>,
    /// Only these faults
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Fault>,
    /// Where strata, vhost-blk and vhost-net are [default: beside this program]
    #[arg(long)]
    programs: Option<std::path::PathBuf>,
    /// Where the report goes, as JSON
    #[arg(long)]
    report: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut tally = Tally::default();
    let ended = run(&arguments, &mut tally);
    println!("{tally}");
    if let Some(path) = &arguments.report
        && let Err(error) = std::fs::write(path, serde_json::to_vec_pretty(&tally).unwrap_or_default())
    {
        eprintln!("fault-campaign: cannot write {}: {error}", path.display());
    }
    match ended {
        Ok(()) => {
            println!("fault-campaign: nothing lost, nothing left behind");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("fault-campaign: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments, tally: &mut Tally) -> anyhow::Result<()> {
    let clock =
        || std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_nanos() as u64 & 0xffff_ffff);
    let seed = arguments.seed.unwrap_or_else(clock);
    println!("fault-campaign: seed {seed}");
    let mut place = Place::new(arguments.programs.as_deref(), arguments.machines)?;
    let mut seeds = Random::new(seed);
    let begun = Instant::now();
    let whole = Duration::from_secs_f64(arguments.minutes * 60.0);
    let faults = if arguments.only.is_empty() { chaos::all() } else { arguments.only.clone() };
    tally.seed = seed;
    for number in 0.. {
        let seed = seeds.next();
        let enough = arguments.count.is_some_and(|count| tally.faults() >= count);
        if enough || (arguments.count.is_none() && begun.elapsed() >= whole) {
            break;
        }
        if number < arguments.skip {
            continue;
        }
        let left =
            if arguments.count.is_some() { Duration::MAX } else { whole.saturating_sub(begun.elapsed()) };
        let time = Duration::from_secs(arguments.round).min(left);
        let round = Round { number, seed, time, faults: &faults, count: arguments.count };
        round.run(&mut place, tally).with_context(|| {
            let campaign = tally.seed;
            format!("round {number} (cargo xtask faults --seed {campaign} --skip {number})")
        })?;
        tally.seconds = begun.elapsed().as_secs();
    }
    Ok(())
}

struct Round<'a> {
    number: u64,
    seed: u64,
    time: Duration,
    faults: &'a [Fault],
    count: Option<u64>,
}

impl Round<'_> {
    fn run(&self, place: &mut Place, tally: &mut Tally) -> anyhow::Result<()> {
        let mut random = Random::new(self.seed);
        let before = leaks::Before::now();
        println!("round {}: seed {:#018x}", self.number, self.seed);
        let mut machines = Vec::new();
        for index in 0..place.machines() {
            // Now and then on fresh images, whose blocks a full file system has no room for.
            if random.below(3) == 0 {
                place.images(index)?;
            }
            machines.push(Machine::start(place, index)?);
        }
        for machine in &mut machines {
            machine.settle()?;
        }
        let held = leaks::Held::of(&machines);
        let end = Instant::now() + self.time;
        while Instant::now() < end && self.count.is_none_or(|count| tally.faults() < count) {
            let victim = random.below(machines.len() as u64) as usize;
            let Some(fault) = random.pick(self.faults).copied() else { break };
            chaos::strike(fault, place, &mut machines, victim, &mut random, tally)
                .with_context(|| format!("{fault:?} on {}", place.name(victim)))?;
            std::thread::sleep(Duration::from_millis(random.below(200)));
        }
        for machine in &mut machines {
            machine.settle()?;
        }
        held.compare(&leaks::Held::of(&machines))?;
        for machine in machines {
            machine.finish(tally)?;
        }
        before.compare(place)?;
        tally.rounds += 1;
        Ok(())
    }
}
