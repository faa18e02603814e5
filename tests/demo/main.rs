//! The demo's inside: boots the Debian image on its three processes, uses disk and network, and shows who did what.
//!
//! `guest-demo IMAGE`, started by `cargo xtask demo`, natively or in the rig.

mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use strata_rig::{Kvm, Place, tool};
use strata_tests::exits::Count;
use strata_tests::leftovers::Before;
use strata_tests::net::{self, HOST, Tap};
use strata_tests::programs::Programs;
use strata_tests::strata::Running;
use strata_tests::{Context, guest};

use show::{heading, note};

/// Runs in the initramfs: from there to Debian's own init.
const SWITCH: &str = "
mkdir -p /new; mount -t ext4 /dev/vda /new || say 'the disk cannot be mounted'
for d in proc sys dev; do mount --move /$d /new/$d; done
exec switch_root /new /sbin/init
";
/// What is typed into the guest once it has a shell.
const COMMANDS: &[&str] = &[
    "uname -sr",
    "lscpu | grep -E '^(Virtualization|Hypervisor)'",
    "findmnt -no SOURCE,FSTYPE,SIZE,USED /",
    "dd if=/dev/vda of=/dev/null bs=1M count=128 iflag=direct 2>&1 | tail -1",
    "ip -br address",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let image: PathBuf = std::env::args().nth(1).context("guest-demo IMAGE")?.into();
    net::own_namespace()?;
    let dir = tempfile::Builder::new().prefix("strata-demo-").tempdir()?;
    let context = Context::new(&Place::of_this_clone(), &Programs::beside_us()?, dir.path())?;
    let before = Before::now();

    heading("A Debian guest on three processes");
    note(&format!(
        "{}{}",
        Kvm::probe(),
        if std::env::var_os("IN_RIG").is_some() { ", in software" } else { "" }
    ));
    let disk = context.file("debian.img");
    tool::output(tool::command("cp").arg("--sparse=always").arg(&image).arg(&disk))?;
    note(&format!("disk: a copy of {}", image.display()));
    let tap = Tap::new("tap0", false)?;
    note(&format!("network: tap0, {HOST} at this end"));
    let count = Count::start()?;
    let start = Instant::now();
    let mut vm = boot(&context, &disk, &tap)?;
    let to_login = start.elapsed();
    let boot_exits = count.so_far()?;

    log_in_and_look_round(&mut vm)?;
    // Its login comes before its addresses on a slow machine.
    command(&mut vm, &format!("until ip route get {HOST} > /dev/null 2>&1; do sleep 0.2; done"))?;
    let before_ping = count.so_far()?;
    heading("The network: 20 pings from the guest to this end of the tap");
    command(&mut vm, &format!("ping -q -i 0.2 -c 20 {HOST}"))?;
    let ping_exits = count.so_far()?.since(&before_ping);
    ensure!(
        vm.output.so_far().contains("20 received"),
        "the guest's pings were not all answered\n{}",
        vm.tails()
    );

    heading("What ran where");
    show::processes(&vm, &["vmm", "disk0", "net0"])?;
    heading("Exits of the guest by reason (interrupts of the host itself left out)");
    show::exits(&[("boot to login", &boot_exits), ("20 pings", &ping_exits)]);

    heading("Powering off");
    vm.output.hush();
    vm.type_in("poweroff\n")?;
    vm.expect_exit(0)?;
    let left = before.left(&context);
    ensure!(left.is_empty(), "left behind: {}", left.join(", "));
    note(&format!(
        "login prompt after {:.1} s; strata ended with 0 and left nothing behind",
        to_login.as_secs_f64()
    ));
    Ok(())
}

fn boot(context: &Context, disk: &Path, tap: &Tap) -> anyhow::Result<Running> {
    let initrd = context.file("initrd");
    guest::initrd(&context.place, &initrd, SWITCH, &[])?;
    let machine = context
        .machine("")?
        .name("debian")
        .memory("768M")
        .append("root=/dev/vda systemd.show_status=1 systemd.log_color=0");
    let machine = machine.initrd(&initrd).disk(disk, ",serial=debian").net(tap.name(), "");
    note(&format!("$ {}", show::command_line(&machine.command())));
    println!();
    let vm = machine.start()?;
    vm.output.echo(show::GUEST);
    vm.output.wait("login:").with_context(|| vm.errors.tail(20))?;
    Ok(vm)
}

fn log_in_and_look_round(vm: &mut Running) -> anyhow::Result<()> {
    vm.type_in("root\n")?;
    vm.output.wait("# ")?;
    COMMANDS.iter().try_for_each(|line| command(vm, line))
}

/// Types a line and waits until the shell is done with it.
fn command(vm: &mut Running, line: &str) -> anyhow::Result<()> {
    // Written so that the echo of what is typed does not look like the answer.
    vm.type_in(&format!("{line}; echo do''ne\n"))?;
    vm.output.wait_line("done").map(drop).with_context(|| vm.errors.tail(20))
}
