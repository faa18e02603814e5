//! Reads of a guest's guest: what each layer pays for one, in exits, counted by both at once.
//!
//! L1 is the host of these cases, L2 its guest, L3 the guest in that. L1 counts with [`Count`]; L2 counts with the same
//! tracepoint, in its own kernel, and prints the histogram before and after. Between "counting" and "did" L2's shell only
//! waits for a line, so what L1 counts is L3's, its vmm's and its backend's.

use std::ops::RangeInclusive;

use anyhow::{Context as _, ensure};
use strata_tests::Context;
use strata_tests::exits::{Count, Exits};
use strata_tests::load::{self, Measured};

/// How L3 reads.
struct Way {
    name: &'static str,
    /// What is typed to it.
    load: &'static str,
    /// Of its disk.
    disk: &'static str,
    /// On its kernel's command line.
    append: &'static str,
    /// How many doorbells L2 may see for each read. By event one, or a few less on a busy host: a backend that has not come
    /// to its sleep yet needs none. Far less would mean that L2 does not count.
    doorbells: RangeInclusive<f64>,
    /// The most halts for each.
    halts: f64,
}

const WAYS: [Way; 2] = [
    Way { name: "event", load: "disk", disk: "poll_us=0", append: "", doorbells: 0.5..=1.1, halts: 1.1 },
    Way {
        name: "polled",
        load: "polled",
        disk: "queues=2,poll_us=1000",
        append: "possible_cpus=2 virtio_blk.poll_queues=1",
        // One each where L2's backend finds no processor to look with.
        doorbells: 0.0..=1.1,
        halts: 0.1,
    },
];

const READS: u32 = 500;

/// Exits that L1 counts for each of L3's that L2 handles: the exit itself, L2's entry after it, and what L2's KVM does in
/// between (VMLOAD and VMSAVE, its own registers). 10 to 12 were seen, and at least the first two must be there. Other
/// bounds are not set for L1, nor for L2's timers: both depend on how long a read takes.
const OF_EACH: RangeInclusive<f64> = 1.8..=20.0;

/// Runs as process 1 of L2, on the disk that holds everything. `@WAYS@` is a line for each way.
const OUTER: &str = "#!/bin/busybox sh
ln -s /proc/self/fd /dev/fd; mount -t tmpfs run /run; mount -t tmpfs tmp /tmp; mount -t tracefs trace /sys/kernel/tracing
E=/sys/kernel/tracing/events/kvm/kvm_exit
echo hist:keys=exit_reason:size=2048 >$E/trigger
dd if=/dev/urandom of=/tmp/inner.img bs=1M count=4 2>/dev/null; mkfifo /tmp/in /tmp/out
say() { echo \"guest: $*\"; }
heard() { while read -r line <&4; do case $line in \"guest: $1\"*) return;; esac; done; say never heard $1; cat /tmp/err; poweroff -f; }
counts() { say $1; cat $E/hist; }
way() {
  /strata/strata run --name inner --kernel /strata/vmlinuz --initrd /strata/initrd --memory 256M \\
    --cmdline \"console=hvc0 quiet loglevel=4 panic=-1 $4\" --disk path=/tmp/inner.img,$3 </tmp/in >/tmp/out 2>/tmp/err &
  exec 3>/tmp/in 4</tmp/out
  heard 'under load'; echo \"guest-load $2\" >&3; heard ready
  counts before
  say counting; read -r go
  echo >&3; heard did; say ${line#guest: }; read -r go
  counts after
  say counted
  echo poweroff -f >&3; wait; exec 3>&- 4<&-
}
@WAYS@
say over
sync; poweroff -f
";

pub(super) fn of_a_guest_of_a_guest(context: &Context) -> anyhow::Result<()> {
    let line = |way: &Way| {
        format!("way {} '{} /dev/vda 1 {READS}' '{}' '{}'\n", way.name, way.load, way.disk, way.append)
    };
    let outer = OUTER.replace("@WAYS@", &WAYS.iter().map(line).collect::<String>());
    let files = load::files(&context.programs)?;
    let files: Vec<_> =
        files.iter().map(|(name, mode, bytes)| (name.as_str(), *mode, bytes.clone())).collect();
    let disk = super::disk_with_strata(context, &outer, load::SCRIPT, &files)?;
    let count = Count::start()?;
    let machine = context.machine(super::OUTERMOST)?.memory("1G").cpus(2).disk(&disk, "");
    let mut vm = machine.start()?;
    for way in &WAYS {
        vm.guest("counting")?;
        let before = count.so_far()?;
        vm.type_in("\n")?;
        let said = vm.guest_value("did")?;
        let outer = count.so_far()?.since(&before);
        vm.type_in("\n")?;
        vm.guest("counted")?;
        let inner = counted(&vm.output.so_far())?;
        check(way, &said, inner, outer)?;
    }
    vm.guest("over")?;
    vm.expect_exit(0)
}

/// What L2 counted last.
fn counted(console: &str) -> anyhow::Result<Exits> {
    let (text, after) = console.rsplit_once("guest: after").context("no count afterwards")?;
    let (_, before) = text.rsplit_once("guest: before").context("no count before")?;
    Ok(Exits::of_histogram(after).since(&Exits::of_histogram(before)))
}

fn check(way: &Way, said: &str, inner: Exits, outer: Exits) -> anyhow::Result<()> {
    let measured =
        |layer: &str, exits| Measured::said(&format!("{}, {layer}", way.name), "read", said, exits);
    let (inner, outer) = (measured("L2 of L3", inner)?, measured("L1 of L2 and L3", outer)?);
    println!("   {}\n   {}", inner.line(), outer.line());
    ensure!(inner.operations == f64::from(READS), "{READS} reads were asked for: {said}");
    let each = |reason: &str| inner.exits.of(reason) as f64 / inner.operations;
    let doorbells = inner.exits.nested_page_faults() as f64 / inner.operations;
    ensure!(way.doorbells.contains(&doorbells), "{doorbells} doorbells a read: {}", inner.line());
    ensure!(each("HLT") <= way.halts, "halts: {}", inner.line());
    let of_each = outer.exits.total() as f64 / inner.exits.total() as f64;
    ensure!(OF_EACH.contains(&of_each), "{of_each} exits at L1 for each of L3's: {}", outer.line());
    Ok(())
}
