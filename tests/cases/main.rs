//! The guest cases: every one boots real guests through the real binaries.
//!
//! `guest-cases [--on kvm|host] [--summary FILE] [--list] [FILTER]...` runs those whose name contains a filter.
//! Started by `cargo xtask test`: with KVM inside the rig or natively, with `--on host` always natively.

mod blk;
mod boot;
mod budget;
mod cables;
mod console;
mod disk;
mod early;
mod faults;
mod foreign;
mod hotplug;
mod lifecycle;
mod nested;
mod net;
mod sandbox;
mod switch;
mod systemd;
mod unprivileged;
mod vcpu;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use strata_rig::Place;
use strata_tests::programs::Programs;
use strata_tests::report::{self, Summary};
use strata_tests::{Case, Needs, net as host_net};

struct Arguments {
    needs: Needs,
    summary: Option<PathBuf>,
    list: bool,
    filters: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("guest-cases: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> anyhow::Result<bool> {
    let arguments = arguments()?;
    let cases: Vec<Case> = all().into_iter().filter(|case| arguments.wants(case)).collect();
    if arguments.list {
        cases.iter().for_each(|case| println!("{}", case.name));
        return Ok(true);
    }
    let mut summary = Summary::create(arguments.summary.as_deref())?;
    host_net::own_namespace()?;
    let programs = Programs::beside_us()?;
    let dir = tempfile::Builder::new().prefix("strata-cases-").tempdir()?;
    report::run(&cases, &Place::of_this_clone(), &programs, dir.path(), &mut summary)
}

fn all() -> Vec<Case> {
    [
        boot::cases(),
        disk::cases(),
        blk::cases(),
        net::cases(),
        cables::cases(),
        switch::cases(),
        console::cases(),
        lifecycle::cases(),
        sandbox::cases(),
        early::cases(),
        faults::cases(),
        unprivileged::cases(),
        foreign::cases(),
        hotplug::cases(),
        budget::cases(),
        nested::cases(),
        vcpu::cases(),
        systemd::cases(),
    ]
    .concat()
}

impl Arguments {
    fn wants(&self, case: &Case) -> bool {
        let named =
            self.filters.is_empty() || self.filters.iter().any(|filter| case.name.contains(filter.as_str()));
        named && case.needs == self.needs
    }
}

fn arguments() -> anyhow::Result<Arguments> {
    let mut parsed = Arguments { needs: Needs::Kvm, summary: None, list: false, filters: Vec::new() };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--on" => match words.next().as_deref() {
                Some("kvm") => parsed.needs = Needs::Kvm,
                Some("host") => parsed.needs = Needs::Host,
                other => bail!("--on takes kvm or host, not {}", other.unwrap_or("nothing")),
            },
            "--summary" => parsed.summary = Some(words.next().context("--summary takes a file")?.into()),
            "--list" => parsed.list = true,
            filter if !filter.starts_with('-') => parsed.filters.push(filter.to_owned()),
            other => bail!("unknown flag {other}"),
        }
    }
    Ok(parsed)
}
