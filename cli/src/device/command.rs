//! The command's own side: asks the launcher and shows what became of it.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use strata_config::{DeviceId, DiskEntry, Machine, MachineFile, Name, NetEntry};

use super::Report;
use crate::args::{Output, OutputArgs};
use crate::backend;
use crate::control;
use crate::launcher::{self, PATIENCE};
use crate::say::{print, say};
use crate::served::machine_of;

const PLUG_HELP: &str = "\
The keys are those of `strata run`; a disk or NIC without an id gets the first free
one: disk0, disk1, ... It lasts as long as the machine, over reboots of its guest.
  strata device plug web --disk path=data.img,id=data
  strata device plug web --net bridge=br0";

const UNPLUG_HELP: &str = "\
Linux's driver lets go of the device, whether or not something in the guest uses it:
unmount a disk first. A disk or NIC whose process has died for good goes as well;
what the guest waits for is then answered with errors.
Exit status: 0 the device has gone and its name is free, 1 it has not.";

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Have the guest let go of a disk, NIC or other device, end its process, free its name and slot
    #[command(after_help = UNPLUG_HELP)]
    Unplug(UnplugArgs),
    /// Plug a disk or NIC into a running machine
    #[command(after_help = PLUG_HELP)]
    Plug(Box<PlugArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct UnplugArgs {
    /// The machine
    name: Name,
    /// The device: disk0, net0, ... or its id
    device: DeviceId,
    /// End its process at once, and take it away if the guest does not let go of it in time
    #[arg(long)]
    force: bool,
    /// Seconds the guest may take [default: 30; with --force 5]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(0..=300))]
    timeout: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

// The brackets are help texts for people, not links.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, Args)]
pub(crate) struct PlugArgs {
    /// The machine
    name: Name,
    /// Disk: path=FILE[,format=raw|qcow2][,readonly][,serial=TEXT][,queues=N][,id=ID]...
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = DiskEntry::from_flag, required_unless_present = "net")]
    disk: Option<DiskEntry>,
    /// NIC: tap=NAME, bridge=NAME[,vlan=N][,trunk=N,N...] or macvtap=NAME, then [,mac=ADDRESS][,queues=PAIRS][,id=ID]...
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = NetEntry::from_flag, conflicts_with = "disk")]
    net: Option<NetEntry>,
    #[command(flatten)]
    output: OutputArgs,
}

/// Does what the command says.
///
/// # Errors
/// The machine does not run or has no launcher, or what its launcher refuses.
pub(crate) fn run(command: &DeviceCommand) -> anyhow::Result<()> {
    match command {
        DeviceCommand::Unplug(args) => unplug(args),
        DeviceCommand::Plug(args) => plug(args),
    }
}

fn unplug(args: &UnplugArgs) -> anyhow::Result<()> {
    let UnplugArgs { name, device, force, timeout, output } = args;
    if let Ok(machine) = machine_of(&control::find(name)?)
        && let Some(root) = root_disk(&machine)
        && machine.disks.get(root).is_some_and(|disk| disk.id == *device)
    {
        say(format_args!(
            "strata: note: {name}'s command line has root= on {device}: its guest may not go on without"
        ));
    }
    let milliseconds = timeout.map(|seconds| u64::from(seconds) * 1000);
    let parameters = json!({ "device": device, "force": force, "timeout_milliseconds": milliseconds });
    let report =
        ask(name, "Unplug", parameters).with_context(|| format!("cannot unplug {device} from {name}"))?;
    let how = if report.forced { "was taken away without its guest's consent" } else { "is unplugged" };
    let slot = report.slot.map(|slot| format!(" and slot {slot}")).unwrap_or_default();
    show(&report, output.output, &format!("{device} of {name} {how}; its name{slot} can be used again\n"))
}

fn plug(args: &PlugArgs) -> anyhow::Result<()> {
    let name = &args.name;
    // As `strata run` has them: a path starts where the command does, a switch's port is a socket.
    let (disk, net) = (args.disk.iter().cloned().collect(), args.net.iter().cloned().collect());
    let mut file = MachineFile { name: Some(name.to_string()), disk, net, ..MachineFile::default() };
    file.resolve(&std::env::current_dir().context("cannot find the current folder")?);
    file.plug(&crate::run_dir::base());
    let parameters = json!({ "disk": file.disk.first(), "net": file.net.first() });
    let report = ask(name, "Plug", parameters).with_context(|| format!("cannot plug into {name}"))?;
    let slot = report.slot.map(|slot| format!(", in slot {slot}")).unwrap_or_default();
    show(&report, args.output.output, &format!("{} is plugged into {name}{slot}\n", report.device))
}

fn ask(name: &Name, method: &str, parameters: Value) -> anyhow::Result<Report> {
    let Some(socket) = launcher::find(&control::find(name)?.path) else {
        bail!(
            "{name} has no launcher, which starts and ends the processes of its devices; under systemd, change its \
             file and start it again"
        );
    };
    // Longer than the launcher takes at most, whose words are better than "no answer".
    let patience = PATIENCE + Duration::from_secs(10);
    let answer = backend::call(&socket, &format!("io.strata.Launcher.{method}"), parameters, patience)?;
    serde_json::from_value(answer).context("the launcher's answer makes no sense")
}

fn show(report: &Report, output: Output, text: &str) -> anyhow::Result<()> {
    match output {
        Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(report)?))?,
        Output::Text => print(text)?,
    }
    Ok(())
}

/// Which disk the kernel's command line names as the root file system's, if it names one the way this machine has them.
fn root_disk(machine: &Machine) -> Option<usize> {
    let root = machine.cmdline.split_whitespace().rev().find_map(|word| word.strip_prefix("root=/dev/vd"))?;
    let letter = root.bytes().next().filter(u8::is_ascii_lowercase)?;
    Some(usize::from(letter - b'a'))
}

#[cfg(test)]
mod command_test {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn parsed(words: &str) -> Result<DeviceCommand, String> {
        let words = ["strata", "device"].into_iter().chain(words.split_whitespace());
        match Cli::try_parse_from(words).map_err(|error| error.to_string())?.command {
            Command::Device(command) => Ok(command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_are_taken_and_refused() {
        let DeviceCommand::Unplug(args) = parsed("unplug web disk0 --force --timeout 7").unwrap() else {
            panic!()
        };
        assert_eq!(
            (args.name.as_str(), args.device.as_str(), args.force, args.timeout),
            ("web", "disk0", true, Some(7))
        );
        let DeviceCommand::Plug(args) = parsed("plug web --disk path=a.img,id=data").unwrap() else {
            panic!()
        };
        assert_eq!(args.disk.unwrap().id.as_deref(), Some("data"));
        for (words, said) in [
            ("unplug web", "<DEVICE>"),
            ("unplug web vmm", "reserved ids"),
            ("unplug web disk0 --timeout 301", "301"),
            ("plug web", "--disk"),
            ("plug web --disk path=a --net tap=b", "cannot be used with"),
            ("plug web --disk paht=a", "did you mean `path`?"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(said), "{words}: {error}");
        }
    }

    #[test]
    fn the_root_disk_is_what_the_command_line_says() {
        let of = |cmdline: &str| {
            let machine: Machine = format!("kernel = '/k'\ncmdline = '{cmdline}'").parse().unwrap();
            root_disk(&machine)
        };
        assert_eq!(of("console=hvc0 root=/dev/vdb1 ro"), Some(1));
        assert_eq!(of("root=/dev/vda root=/dev/vdc"), Some(2), "the last one counts");
        for cmdline in ["", "root=/dev/vd", "root=/dev/sda1", "root=UUID=x", "xroot=/dev/vda"] {
            assert_eq!(of(cmdline), None, "{cmdline}");
        }
    }
}
