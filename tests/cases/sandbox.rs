//! Every process runs locked, seen from outside; `--no-sandbox` says what it is.

use anyhow::{bail, ensure};
use strata_tests::locked::{self, Report};
use strata_tests::net::Tap;
use strata_tests::{Case, Context};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("sandbox::every_process_is_locked", every_process_is_locked),
        Case::kvm("sandbox::off_is_loud", off_is_loud),
    ]
}

/// Fails unless the process noted as `id`, and the one that does its work, are locked.
pub(crate) fn is_locked(pid: i32, id: &str) -> anyhow::Result<()> {
    let worker = locked::worker(pid);
    let report = Report::of(worker)?;
    let allowed: &[&str] = if id == "vmm" { &["run", "sockets"] } else { &[] };
    let wrong = report.wrong(allowed);
    if !wrong.is_empty() {
        bail!("{id} (process {worker}) is not locked: {}\n{report:?}", wrong.join("; "));
    }
    let waiting = Report::of(pid)?;
    if pid != worker && !(waiting.no_capabilities && waiting.no_new_privs && waiting.seccomp == 2) {
        bail!("{id}: the process that waits for it ({pid}) has rights left\n{waiting:?}");
    }
    Ok(())
}

fn every_process_is_locked(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let tap = Tap::new("tap0", false)?;
    let script = "dd if=/dev/vda of=/dev/null bs=1M 2>/dev/null; say ready; read go";
    let mut vm = context
        .machine(script)?
        .disk(&disk, "")
        .disk(&context.disk("second.img", 8)?, "")
        .net(tap.name(), "")
        .start()?;
    vm.guest("ready")?;
    for id in ["vmm", "disk0", "disk1", "net0"] {
        is_locked(vm.pid_of(id)?, id)?;
    }
    // What users are shown is the sandbox crate's own view: it agrees.
    let mut ps = context.start("strata", &["ps"])?;
    ps.expect_exit(0)?;
    ensure!(ps.output.so_far().contains(" locked "), "{}", ps.output.so_far());
    vm.type_in("go\n")?;
    vm.expect_exit(0)
}

fn off_is_loud(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let mut vm = context.machine("say ready; read go")?.disk(&disk, "").arg("--no-sandbox").start()?;
    vm.guest("ready")?;
    ensure!(vm.errors.so_far().contains("WITHOUT"), "{}", vm.tails());
    for id in ["vmm", "disk0"] {
        let report = Report::of(locked::worker(vm.pid_of(id)?))?;
        ensure!(
            report.seccomp == 0,
            "{id} has a filter although the sandbox is off: the check above shows nothing"
        );
    }
    let mut ps = context.start("strata", &["ps"])?;
    ps.expect_exit(0)?;
    ensure!(ps.output.so_far().contains(" OPEN(vmm,disk0) "), "{}", ps.output.so_far());
    vm.type_in("go\n")?;
    vm.expect_exit(0)
}
