//! The console: typed into, attached to, written to a file; the serial port on demand.

use anyhow::ensure;
use strata_tests::{Case, Context, process};

/// The cases of this file.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::kvm("console::typing", typing),
        Case::kvm("console::attached", attached),
        Case::kvm("console::into_a_file", into_a_file),
        Case::kvm("console::serial_on_demand", serial_on_demand),
    ]
}

const ECHO: &str = "say ready; read line; say heard $line";

fn typing(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine(ECHO)?.start()?;
    vm.guest("ready")?;
    vm.type_in("hello there\n")?;
    ensure!(vm.guest_value("heard")? == "hello there");
    vm.expect_exit(0)
}

/// `strata console` joins a running machine, types into it, and sees what it answers.
fn attached(context: &Context) -> anyhow::Result<()> {
    let mut vm = context.machine(ECHO)?.start()?;
    vm.guest("ready")?;
    let mut console = context.start("strata", &["console", "vm"])?;
    console.errors.wait("console of vm")?;
    console.type_in("from outside\n")?;
    ensure!(console.output.value("guest: heard")? == "from outside");
    vm.expect_exit(0)?;
    console.wait().map(drop)
}

fn into_a_file(context: &Context) -> anyhow::Result<()> {
    let file = context.file("console");
    let vm = context.machine("say into the file")?.arg("--console").arg(&format!("file={}", file.display()));
    let mut vm = vm.start()?;
    vm.expect_exit(0)?;
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains("guest: into the file"), "the file holds {text:?}");
    ensure!(!vm.output.so_far().contains("guest:"), "the console went to standard output as well");
    Ok(())
}

/// Without `--serial` there is no UART; with it the kernel's own messages come through it.
fn serial_on_demand(context: &Context) -> anyhow::Result<()> {
    // Without a UART the kernel has no such driver, hence no such file.
    let find = "say uarts $(cat /proc/tty/driver/serial 2>/dev/null | grep -c 'uart:16550A')";
    let mut vm = context.machine(find)?.start()?;
    ensure!(vm.guest_value("uarts")? == "0", "a UART that nobody asked for");
    vm.expect_exit(0)?;
    let file = context.file("serial");
    let vm = context.machine(find)?.append("console=ttyS0 loglevel=7");
    let mut vm = vm.arg("--serial").arg(&format!("file={}", file.display())).start()?;
    ensure!(vm.guest_value("uarts")? == "1", "the UART asked for is not there");
    vm.expect_exit(0)?;
    process::until("the kernel's messages in the serial port's file", || {
        Ok(std::fs::read_to_string(&file)?.contains("Linux version"))
    })
}
