//! The command line. Values of keys that the machine file has too are read by strata-config, so that a rule and
//! its error text exist once.

use std::path::PathBuf;
use std::time::Duration;

use crate::device::DeviceCommand;
use crate::disk::DiskCommand;
use crate::image::ImageCommand;
use crate::lab::LabCommand;
use crate::net::NetCommand;
use crate::reload::ReloadArgs;
use crate::switch::SwitchCommand;
use crate::unit::UnitArgs;
use crate::upgrade::UpgradeArgs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use strata_config::{
    BackendEntry, DeviceEntry, DiskEntry, MachineFile, Name, NetEntry, NumberOrText, VcpuEntry,
};

/// Runs Linux guests on separate, sandboxed processes: one vmm, one vhost-blk per disk, one vhost-net per NIC.
#[derive(Debug, Parser)]
#[command(name = "strata", version, max_term_width = 110, after_help = EXAMPLES, after_long_help = LONG_HELP)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  strata run --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2 --disk path=debian.img --net tap=tap0
  strata run web.toml
  strata check web.toml
  strata ps
  strata console web          (Ctrl-] leaves)
  strata stop web";

const LONG_HELP: &str = "\
Examples:
  strata run --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2 --disk path=debian.img --net tap=tap0
  strata run web.toml
  strata check web.toml
  strata ps
  strata console web          (Ctrl-] leaves)
  strata stop web

Exit status:
  0  done; for `run`: the guest powered off, or rebooted under --no-reboot
  1  the guest or a process failed, or the host lacks something; standard error says what and why
  2  a wrong command line or machine file; standard error names the key, the value and what is allowed
  `check` has its own: 0 ready, 1 ready with warnings, 2 not ready

Environment:
  STRATA_RUN_DIR   where running machines have their folders
                   (default /run/strata for root, else $XDG_RUNTIME_DIR/strata, else /tmp/strata-UID)
  STRATA_LIBEXEC   where vmm, vhost-blk and vhost-net are
                   (default: beside strata, then ../libexec/strata from there)
  RUST_LOG         what the processes log, e.g. info or vhost_blk=debug";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a machine, connect its console to this terminal, and end when the guest does
    Run(Box<RunArgs>),
    /// List the running machines
    Ps {
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Show a machine's state, devices and counters
    Status {
        /// The machine
        name: Name,
        #[command(flatten)]
        output: OutputArgs,
    },
    /// Attach this terminal to a machine's console; Ctrl-] detaches
    Console {
        /// The machine
        name: Name,
    },
    /// Press a machine's power button, wait until it is gone, end it when that takes too long
    Stop(StopArgs),
    /// Say whether machines can run on this host, and what to change
    Check(CheckArgs),
    /// Count what a machine's exits are for, over a window of time
    Exits(ExitsArgs),
    /// Watch all machines: exits, memory, vCPU time, devices
    Top(TopArgs),
    /// Plug disks and NICs into running machines, and unplug them
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Look at and change the disks of running machines
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Look at and change the NICs of running machines
    #[command(subcommand)]
    Net(NetCommand),
    /// Make and look at disk images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Replace the processes of a running machine's disks and NICs by the installed version
    Upgrade(UpgradeArgs),
    /// Take over what a running machine's file says now, and name what has to wait for a start
    Reload(ReloadArgs),
    /// Stop a machine's vCPUs
    Pause {
        /// The machine
        name: Name,
    },
    /// Let a paused machine's vCPUs run
    Resume {
        /// The machine
        name: Name,
    },
    /// Reset a machine, without asking the guest
    Reboot {
        /// The machine
        name: Name,
    },
    /// Join guests by switches in user space
    #[command(subcommand)]
    Switch(SwitchCommand),
    /// Run switches and the machines on them from one file
    #[command(subcommand)]
    Lab(LabCommand),
    /// Show a machine's systemd drop-ins, made from its file in /etc/strata/machines
    ///
    /// A generator writes them at boot and at every `systemctl daemon-reload`.
    Unit(UnitArgs),
    /// Write the manual pages into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        folder: PathBuf,
    },
    /// Print the completion script of a shell
    ///
    /// For bash: strata completions bash > /etc/bash_completion.d/strata
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

const RUN_HELP: &str = "\
The keys of the machine file are those of the flags, with `_` for `-`.
A flag wins over the file; a disk, NIC or device given by flag comes after the
file's, or replaces the one with the same id.

    kernel = \"vmlinuz\"
    memory = \"1G\"
    cpus = 2
    [[disk]]
    path = \"debian.img\"
    [[net]]
    tap = \"tap0\"

Relative paths in a file start at the file's folder. In a flag's list of
key=value, `,,` is a comma of the value.

On a terminal the guest gets every key, Ctrl-C too. Ctrl-] then q presses the
power button, k kills, another Ctrl-] is sent to the guest. SIGTERM, SIGINT and
SIGHUP press the power button and wait --stop-timeout; a second one kills.";

// The brackets are help texts for people, not links.
#[allow(rustdoc::broken_intra_doc_links)]
#[derive(Debug, Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct RunArgs {
    /// Machine file, TOML or JSON
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Name: a-z, 0-9, `-`, `_`, `.` [default: the file's without suffix, else vm-PID]
    #[arg(long)]
    name: Option<String>,
    /// Kernel: a bzImage or an ELF vmlinux
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line [default: console=hvc0]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// vCPUs [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    cpus: Option<i64>,
    /// Guest memory, such as 512M or 6G; without a unit MiB [default: 512M]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Disk: path=FILE[,format=raw|qcow2][,readonly][,serial=TEXT][,queues=N][,id=ID][,cache=MODE]... (all keys: the
    /// machine file's), or socket=PATH of a running vhost-user-blk backend
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = DiskEntry::from_flag)]
    disk: Vec<DiskEntry>,
    /// NIC: tap=NAME, bridge=NAME[,vlan=N][,trunk=N,N...] or macvtap=NAME, then [,mac=ADDRESS][,queues=PAIRS]
    /// [,id=ID]... (all keys: the machine file's schema); or switch=NAME[,port=NAME]; or socket=PATH of a running
    /// vhost-user-net backend
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = NetEntry::from_flag)]
    net: Vec<NetEntry>,
    /// Any other vhost-user device: socket=PATH,type=rng|fs|vsock|...|NUMBER[,queues=N][,id=ID]
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = DeviceEntry::from_flag)]
    device: Vec<DeviceEntry>,
    /// Where the virtio console goes: stdio, off, pty or file=PATH [default: stdio]
    #[arg(long, value_name = "WHERE")]
    console: Option<String>,
    /// Where a serial port goes: off, stdio, pty or file=PATH [default: off]
    #[arg(long, value_name = "WHERE")]
    serial: Option<String>,
    /// End when the guest reboots
    #[arg(long)]
    no_reboot: bool,
    /// How long the guest may take to power off: seconds, or e.g. 500ms [default: 30]
    #[arg(long, value_name = "TIME")]
    stop_timeout: Option<String>,
    /// Take guest memory from this mounted hugetlbfs
    #[arg(long, value_name = "FOLDER")]
    hugetlbfs: Option<PathBuf>,
    /// Allocate and map all guest memory before the guest starts
    #[arg(long)]
    prefault: bool,
    /// What exits are assumed to cost: auto, nested or bare [default: auto]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// vCPUs: count=N,pin=2-3,nested=on|off,halt=poll|host|guest,sockets=N,cores=N,threads=N
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = VcpuEntry::from_flag)]
    vcpu: Option<VcpuEntry>,
    /// While a disk's or NIC's process is gone: lost=wait|pause,reset_after=TIME|off,hung_after=TIME|off
    #[arg(long, value_name = "KEY=VALUE,...", value_parser = BackendEntry::from_flag)]
    backend: Option<BackendEntry>,
    /// Run the processes without their sandboxes; for debugging only
    #[arg(long)]
    no_sandbox: bool,
}

impl RunArgs {
    /// The flags as a machine file.
    pub(crate) fn overlay(self) -> MachineFile {
        MachineFile {
            name: self.name,
            kernel: self.kernel,
            initrd: self.initrd,
            cmdline: self.cmdline,
            cpus: self.cpus,
            memory: self.memory.map(NumberOrText::Text),
            disk: self.disk,
            net: self.net,
            device: self.device,
            console: self.console,
            serial: self.serial,
            no_reboot: self.no_reboot.then_some(true),
            sandbox: self.no_sandbox.then_some(false),
            stop_timeout: self.stop_timeout.map(NumberOrText::Text),
            hugetlbfs: self.hugetlbfs,
            prefault: self.prefault.then_some(true),
            profile: self.profile,
            vcpu: self.vcpu.unwrap_or_default(),
            backend: self.backend.unwrap_or_default(),
            // The rest is for a file: it concerns a service manager, or is too long for a flag.
            ..MachineFile::default()
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The machine
    pub(crate) name: Name,
    /// End it now, without asking the guest
    #[arg(long, conflicts_with = "timeout")]
    pub(crate) now: bool,
    /// Seconds the guest may take [default: the machine's stop_timeout]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<u32>,
}

const CHECK_HELP: &str = "\
Exit status: 0 ready, 1 ready with warnings, 2 not ready.";

#[derive(Debug, Args)]
#[command(after_help = CHECK_HELP)]
pub(crate) struct CheckArgs {
    /// Machine files: whether the host has what these need, together
    #[arg(value_name = "FILE")]
    pub(crate) machines: Vec<PathBuf>,
    /// The same as --output json
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    /// Enter the sandbox and say how far it came; the check starts itself with this
    #[arg(long, hide = true)]
    pub(crate) probe: bool,
}

const EXITS_HELP: &str = "\
KVM's counters need no privilege. The reasons come from the tracepoint
kvm:kvm_exit, which only root may use. Ctrl-C ends the window early.";

#[derive(Debug, Args)]
#[command(after_help = EXITS_HELP)]
pub(crate) struct ExitsArgs {
    /// The machine
    pub(crate) name: Name,
    /// How long to count: seconds, or e.g. 500ms, 2m
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = window)]
    pub(crate) time: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// One snapshot as text, also on a terminal
    #[arg(long)]
    pub(crate) once: bool,
    /// Time between two looks: seconds, or e.g. 500ms
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = window)]
    pub(crate) interval: Duration,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// A length of time from 100 ms to an hour.
fn window(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let milliseconds = match unit {
        "ms" => 1,
        "" | "s" => 1000,
        "m" => 60_000,
        _ => 0,
    };
    let time = number
        .parse()
        .ok()
        .and_then(|number: u64| number.checked_mul(milliseconds))
        .map(Duration::from_millis);
    let allowed = Duration::from_millis(100)..=Duration::from_secs(3600);
    time.filter(|time| allowed.contains(time))
        .ok_or_else(|| "must be 100ms to 60m: a whole number of s, ms or m".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// For people or for programs; the JSON's keys are only ever added to
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Text,
    Json,
}
