//! How a machine ends, and what the other commands do to a running one.

use anyhow::ensure;
use nix::sys::signal::Signal;
use strata_tests::{Case, Context, process};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("lifecycle::no_reboot_ends_with_0", no_reboot_ends_with_0),
        Case::kvm("lifecycle::panic_ends_with_1", panic_ends_with_1),
        Case::kvm("lifecycle::triple_fault_ends_with_1", triple_fault_ends_with_1),
        Case::kvm("lifecycle::sigterm_presses_the_power_button", sigterm_presses_the_power_button),
        Case::kvm("lifecycle::second_sigterm_kills", second_sigterm_kills),
        Case::kvm("lifecycle::stop_waits_then_kills", stop_waits_then_kills),
        Case::kvm("lifecycle::pause_resume_ps_status", pause_resume_ps_status),
        Case::kvm("lifecycle::reboot_from_outside", reboot_from_outside),
        Case::kvm("lifecycle::a_dead_vmm_ends_with_1", a_dead_vmm_ends_with_1),
        Case::kvm("lifecycle::a_dead_backend_comes_back", a_dead_backend_comes_back),
    ]
}

/// A guest that powers off when its power button is pressed, as acpid or logind would.
const BUTTON: &str = "button; say ready; pressed";

/// A guest that counts; what it prints shows that it runs.
const COUNT: &str = "i=0; while true; do i=$((i+1)); say count $i; sleep 0.2; done";

fn no_reboot_ends_with_0(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine("say rebooting; reboot -f")?.arg("--no-reboot").start()?;
    vm.guest("rebooting")?;
    vm.expect_exit(0)?;
    let boots = vm.output.so_far().matches("guest: init").count();
    ensure!(boots == 1, "the guest booted {boots} times");
    Ok(())
}

fn panic_ends_with_1(context: &Context) -> anyhow::Result<()> {
    // A kernel that is told to (panic=-1) reboots instead, and that is its own affair.
    let machine = context.machine("say panicking; echo c > /proc/sysrq-trigger")?.append("panic=0");
    let mut vm = machine.start()?;
    vm.guest("panicking")?;
    vm.expect_exit(1)?;
    let said = vm.errors.so_far();
    ensure!(said.contains("panic"), "nothing is said about a panic:\n{said}");
    let boots = vm.output.so_far().matches("guest: init").count();
    ensure!(boots == 1, "the guest booted {boots} times");
    Ok(())
}

/// A kernel that is told to (reboot=t) reboots by a triple fault, which is how a guest that has lost its way ends, too.
fn triple_fault_ends_with_1(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine("say tripping; reboot -f")?.append("reboot=t").start()?;
    vm.guest("tripping")?;
    vm.expect_exit(1)?;
    let said = vm.errors.so_far();
    // Where is told as far as KVM knows: on AMD it has reset the vCPU by then.
    ensure!(said.contains("triple fault") && said.contains("rip=0x"), "the crash is not told:\n{said}");
    Ok(())
}

fn sigterm_presses_the_power_button(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine(BUTTON)?.start()?;
    vm.guest("ready")?;
    vm.signal(Signal::SIGTERM)?;
    vm.guest("button")?;
    vm.expect_exit(0)
}

fn second_sigterm_kills(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine("say deaf; while true; do sleep 100; done")?.start()?;
    vm.guest("deaf")?;
    vm.signal(Signal::SIGTERM)?;
    vm.errors.wait("power button")?;
    vm.signal(Signal::SIGTERM)?;
    vm.expect_exit(1)
}

fn stop_waits_then_kills(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine(BUTTON)?.name("willing").start()?;
    vm.guest("ready")?;
    context.start("strata", &["stop", "willing"])?.expect_exit(0)?;
    vm.expect_exit(0)?;
    let mut vm = context.machine("say deaf; while true; do sleep 100; done")?.name("deaf").start()?;
    vm.guest("deaf")?;
    let mut stop = context.start("strata", &["stop", "deaf", "--timeout", "1"])?;
    stop.expect_exit(0)?;
    ensure!(stop.errors.so_far().contains("did not power off"), "{}", stop.tails());
    vm.wait()?;
    let mut vm = context.machine("say deaf; while true; do sleep 100; done")?.name("now").start()?;
    vm.guest("deaf")?;
    context.start("strata", &["stop", "now", "--now"])?.expect_exit(0)?;
    vm.wait().map(drop)
}

fn pause_resume_ps_status(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let vm = context.machine(COUNT)?.disk(&disk, "").name("counter").start()?;
    vm.guest("count 3")?;
    let listed = || -> anyhow::Result<serde_json::Value> {
        let mut ps = context.start("strata", &["ps", "--output", "json"])?;
        ps.expect_exit(0)?;
        Ok(serde_json::from_str(&ps.output.so_far())?)
    };
    let field = |value: &serde_json::Value, path: &str| value.pointer(path).cloned().unwrap_or_default();
    let before = listed()?;
    ensure!(field(&before, "/0/name") == "counter" && field(&before, "/0/state") == "running", "{before}");
    // The console comes first; it is the vmm's own.
    ensure!(field(&before, "/0/devices/0/state") == "internal", "{before}");
    ensure!(field(&before, "/0/devices/1/id") == "disk0", "{before}");
    ensure!(field(&before, "/0/devices/1/state") == "connected", "{before}");
    context.start("strata", &["pause", "counter"])?.expect_exit(0)?;
    ensure!(field(&listed()?, "/0/state") == "paused");
    // A paused guest says nothing: what it said before has arrived by the time two looks agree, and stays.
    let said = |text: &str| text.matches("guest: count").count();
    let mut last = said(&vm.output.so_far());
    process::until("the paused guest's last words", || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        let now = said(&vm.output.so_far());
        Ok(std::mem::replace(&mut last, now) == now)
    })?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    let after = said(&vm.output.so_far());
    ensure!(after == last, "the paused guest went on counting: {last}, then {after}");
    context.start("strata", &["resume", "counter"])?.expect_exit(0)?;
    process::until("the resumed guest's counting", || Ok(said(&vm.output.so_far()) > last + 2))?;
    ensure!(field(&listed()?, "/0/state") == "running");
    let mut status = context.start("strata", &["status", "counter"])?;
    status.expect_exit(0)?;
    ensure!(status.output.so_far().contains("disk0"), "{}", status.tails());
    context.start("strata", &["stop", "counter", "--now"])?.expect_exit(0)
}

fn reboot_from_outside(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let script = "
if [ \"$(head -c 2 /dev/vda)\" = on ]; then say again; poweroff -f; fi
echo on > /dev/vda; sync; say ready; while true; do sleep 100; done";
    let mut vm = context.machine(script)?.disk(&disk, "").start()?;
    vm.guest("ready")?;
    context.start("strata", &["reboot", "vm"])?.expect_exit(0)?;
    vm.guest("init")?;
    vm.guest("again")?;
    vm.expect_exit(0)
}

fn a_dead_vmm_ends_with_1(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 8)?;
    let mut vm = context.machine(COUNT)?.disk(&disk, "").start()?;
    vm.guest("count")?;
    process::kill(vm.pid_of("vmm")?)?;
    vm.expect_exit(1)?;
    let said = vm.errors.so_far();
    ensure!(said.contains("vmm") && said.contains("SIGKILL"), "it is not said what died of what:\n{said}");
    Ok(())
}

/// A killed vhost-blk is started again, the vmm reconnects, and the guest's requests are all answered.
fn a_dead_backend_comes_back(context: &Context) -> anyhow::Result<()> {
    let disk = context.disk("disk.img", 64)?;
    let script = "
head -c 4194304 /dev/urandom > /tmp/f
say ready; read go
(until [ -e /tmp/enough ]; do dd if=/tmp/f of=/dev/vda bs=4k oflag=direct 2>/dev/null || say ERROR; done) & W=$!
read go; touch /tmp/enough; wait $W; say written
A=$(sha256sum < /tmp/f); B=$(dd if=/dev/vda bs=1M count=4 iflag=direct 2>/dev/null | sha256sum)
[ \"$A\" = \"$B\" ] && say same
";
    let mut vm = context.machine(script)?.cpus(1).disk(&disk, "").start()?;
    vm.guest("ready")?;
    let first = vm.pid_of("disk0")?;
    vm.type_in("go\n")?;
    process::until("the guest's first writes", || Ok(strata_tests::image::allocated(&disk)? > 1 << 20))?;
    process::kill(first)?;
    vm.errors.wait("starting it again")?;
    vm.type_in("go\n")?;
    vm.guest("written")?;
    vm.guest("same")?;
    ensure!(!vm.output.so_far().contains("guest: ERROR"), "the guest saw an error:\n{}", vm.tails());
    ensure!(vm.pid_of("disk0")? != first, "the same process still serves the disk");
    vm.expect_exit(0)
}
