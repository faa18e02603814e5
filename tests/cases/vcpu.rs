//! What the machine file says of vCPUs and of what exits cost is what they do, and is shown.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use strata_rig::Kvm;
use strata_tests::guest::Kernel;
use strata_tests::load::{self, Loaded, Measured};
use strata_tests::{Case, Context};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("vcpu::a_halt_that_stays_is_no_exit", a_halt_that_stays_is_no_exit),
        Case::kvm("vcpu::a_profile_is_shown_and_followed", a_profile_is_shown_and_followed),
    ]
}

/// An idle guest halts some ten times a second (docs/exits.md).
const IDLE: Duration = Duration::from_secs(4);

fn idle(context: &Context, halt: &str) -> anyhow::Result<Measured> {
    let machine = load::machine(context, Kernel::Cloud)?.halting(halt)?;
    let mut guest = Loaded::start(machine)?;
    let idle = guest.idle(IDLE)?;
    println!("   halt = {halt:?}: {}", idle.line());
    guest.finish()?;
    Ok(idle)
}

fn a_halt_that_stays_is_no_exit(context: &Context) -> anyhow::Result<()> {
    if !Kvm::halts_can_stay() {
        let mut vm = load::machine(context, Kernel::Cloud)?.halting("guest")?.start()?;
        vm.expect_exit(1)?;
        let said = vm.errors.so_far();
        ensure!(said.contains("vcpu.halt = \"guest\"") && said.contains("halt = \"poll\""), "{said}");
        return Ok(());
    }
    let leaves = idle(context, "host")?;
    ensure!(leaves.exits.of("HLT") > 10, "the counter does not count: {}", leaves.line());
    let stays = idle(context, "guest")?;
    // It did something meanwhile, as its timer's exits show, and halted in between.
    ensure!(stays.exits.total() > 10, "the guest is not alive: {}", stays.line());
    ensure!(stays.exits.of("HLT") == 0, "halts left the guest: {}", stays.line());
    Ok(())
}

fn a_profile_is_shown_and_followed(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    // The rig's processor says that it is a hypervisor's.
    let below = fs::read_to_string("/proc/cpuinfo")?
        .lines()
        .any(|line| line.starts_with("flags") && line.split_whitespace().any(|flag| flag == "hypervisor"));
    let looked_up = if below { "nested" } else { "bare" };
    for (given, shown) in [("bare", "bare"), ("nested", "nested"), ("auto", looked_up)] {
        let machine = context.machine("say up; read line")?.disk(&disk, "").arg("--profile").arg(given);
        let mut vm = machine.name(given).start()?;
        vm.guest("up")?;
        for arguments in [["ps", "--output", "json"].as_slice(), &["status", given, "--output", "json"]] {
            let mut asked = context.run("strata", arguments)?;
            asked.expect_exit(0)?;
            let answer: Value = serde_json::from_str(&asked.output.so_far())?;
            let profile = answer.pointer("/0/profile").or(answer.pointer("/profile"));
            ensure!(profile == Some(&shown.into()), "profile {given}: {answer}");
        }
        // A backend looks longer where exits are dear; elsewhere it is left to itself.
        let words = fs::read(format!("/proc/{}/cmdline", vm.pid_of("disk0")?))?;
        let words: Vec<_> = words.split(|byte| *byte == 0).collect();
        let polls = words.windows(2).find(|pair| pair.first() == Some(&b"--poll".as_slice()));
        let polls = polls.and_then(|pair| pair.get(1)).map(|us| String::from_utf8_lossy(us).into_owned());
        let expected = (shown == "nested").then(|| "200".to_owned());
        ensure!(polls == expected, "profile {given}: the backend polls for {polls:?}");
        vm.type_in("\n").context("no console")?;
        vm.expect_exit(0)?;
    }
    Ok(())
}
