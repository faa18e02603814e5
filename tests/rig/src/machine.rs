//! The machine: QEMU emulating a processor with SVM, a Debian kernel with `kvm_amd`, and one command in it.
//!
//! Owns: the QEMU process for as long as the command runs. Called by: `xtask`. Its output arrives line by line while
//! it runs; the kernel's own messages go to a file that is shown only when the machine fails.
//!
//! ```text
//!   host: Rig::run ── starts ──> QEMU (TCG)
//!     /            ── 9p, read-only, below a tmpfs overlay ──> the command's /
//!     out folder   ── 9p ──> /run/out   (.command goes in, .status comes out)
//!     stdout       <── virtio-serial port "rig.output" ── the command's output
//! ```

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::place::Place;
use crate::{kernel, tool};

/// All that TCG can do but five-level paging, which few hosts have.
const CPU: &str = "max,la57=off";
/// Processors that run no guest: the first. Whenever any processor loads x87 state (XRSTOR, that is each change of
/// tasks), QEMU clears IGNNE in `hflags2` of the *first* processor (`cpu_clear_ignne`,
/// target/i386/tcg/system/fpu_helper.c of 10.0; 11.1 fails the same way), without a lock, while that one may be writing
/// there what VMRUN, #VMEXIT, STGI and CLGI change. One of the two writes is lost. Seen, on the first processor only: a
/// guest without nested paging, which meets a triple fault at once; a host that takes interrupts with interrupts off
/// and waits for its own lock for ever. A processor that never runs a guest changes none of it. (One processor that
/// counts instructions has nobody to race with.)
const WITHOUT_GUESTS: u32 = 1;
/// In the out folder: what the emulator notes of resets.
const EMULATOR_LOG: &str = ".emulator-log";
/// A busy host lets the timer check at boot and the lockup detector see things that are not there.
const KERNEL_PARAMETERS: &str = "console=ttyS0 panic=-1 quiet loglevel=4 mitigations=off no_timer_check nowatchdog rcupdate.rcu_cpu_stall_suppress=1";

/// A machine to be, with sizes from the environment (`RIG_CPUS`, `RIG_MEM` in MiB, `RIG_SECONDS`, `RIG_ICOUNT=1`).
#[derive(Clone, Debug)]
pub struct Rig {
    place: Place,
    /// Processors the command may use, besides the first; one if instructions are counted.
    pub cpus: u32,
    /// Memory in MiB; the host pays for what is touched.
    pub memory_mib: u32,
    /// After this the machine is stopped and the run has failed.
    pub limit: Duration,
    /// One processor that counts instructions: exit counts repeat to about one per cent. Slower; no polling tests.
    pub counts_instructions: bool,
}

impl Rig {
    /// The machine as the environment asks for it.
    pub fn from_environment(place: &Place) -> Self {
        let number = |name: &str, default: u32| {
            std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
        };
        Self {
            place: place.clone(),
            cpus: number("RIG_CPUS", 2),
            memory_mib: number("RIG_MEM", 9216),
            limit: Duration::from_secs(number("RIG_SECONDS", 1500).into()),
            counts_instructions: number("RIG_ICOUNT", 0) == 1,
        }
    }

    /// Runs `script` with bash as root inside, from the clone's top folder, with `out` writable at `/run/out`.
    /// Each line of its output goes to `line`. Gives the script's exit status.
    ///
    /// # Errors
    /// If the machine cannot start, stops before the script ends, or reaches the time limit.
    pub fn run(&self, script: &str, out: &Path, line: &mut dyn FnMut(&str)) -> anyhow::Result<i32> {
        fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        let (command, status, log) = (out.join(".command"), out.join(".status"), out.join(".kernel-log"));
        let _ = fs::remove_file(&status);
        fs::write(&command, self.preamble() + script + "\n")?;
        // Its standard input stays open although nothing comes: at its end QEMU would close the output port with it.
        let mut qemu = self.qemu(out, &log)?;
        let mut qemu =
            qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
        let stdin = qemu.stdin.take();
        let stdout = qemu.stdout.take().context("QEMU has no output")?;
        let alarm = Alarm::set(&qemu, self.limit);
        let mut reader = BufReader::new(stdout);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes)? > 0 {
            line(String::from_utf8_lossy(&bytes).trim_end_matches(['\r', '\n']));
            bytes.clear();
        }
        let ended = qemu.wait()?;
        drop(stdin);
        let expired = alarm.disarm();
        let said = fs::read_to_string(&status).unwrap_or_default();
        match said.trim().parse() {
            Ok(code) => Ok(code),
            Err(_) if expired => bail!(
                "the rig ran out of time: its limit is {} s (RIG_SECONDS sets another)\n{}",
                self.limit.as_secs(),
                tail(&log)
            ),
            Err(_) if ended.success() => {
                let noted = fs::read_to_string(log.with_file_name(EMULATOR_LOG)).unwrap_or_default();
                let fault = if noted.contains("Triple fault") { "a triple fault" } else { "no triple fault" };
                bail!(
                    "the rig was reset before its command ended: the emulator noted {fault}; {}",
                    tail(&log)
                )
            }
            Err(_) => bail!("the rig stopped before its command ended (QEMU: {ended})\n{}", tail(&log)),
        }
    }

    fn preamble(&self) -> String {
        let home = std::env::var("HOME").unwrap_or_else(|_| "/root".into());
        let path = std::env::var("PATH").unwrap_or_default();
        let seconds = std::env::var("STRATA_TEST_SECONDS").unwrap_or_default();
        let root = self.place.root().display();
        let processors = match self.counts_instructions {
            true => String::new(),
            false => format!("taskset -pc {WITHOUT_GUESTS}-{} $$ >/dev/null || exit 125\n", self.cpus),
        };
        format!(
            "export PATH='{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin' HOME='{home}' IN_RIG=1 TMPDIR=/run/tmp\n\
             export STRATA_TEST_SECONDS='{seconds}'\n\
             {processors}\
             mkdir -m 1777 -p /run/tmp; cd '{root}' || exit 125\n"
        )
    }

    fn qemu(&self, out: &Path, log: &Path) -> anyhow::Result<Command> {
        let kernel = kernel::boot_image(&self.place.rig_kernel())
            .context("the rig is not set up: cargo xtask setup")?;
        let (accel, cpus) = match self.counts_instructions {
            true => ("tcg,thread=single", 1),
            false => ("tcg,thread=multi", WITHOUT_GUESTS + self.cpus),
        };
        // A killed test run must not leave a machine behind.
        let mut qemu = tool::command("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-machine", "q35", "-cpu", CPU]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", accel]);
        if self.counts_instructions {
            qemu.args(["-icount", "shift=1,sleep=off"]);
        }
        qemu.arg("-smp").arg(cpus.to_string()).arg("-m").arg(self.memory_mib.to_string());
        qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(self.place.rig_initramfs());
        qemu.args(["-append", KERNEL_PARAMETERS]);
        qemu.arg("-serial").arg(option_path("file:", log));
        // A triple fault of the rig's own kernel says nothing on its console; the emulator notes it.
        qemu.args(["-d", "cpu_reset", "-D"]).arg(log.with_file_name(EMULATOR_LOG));
        qemu.args(["-chardev", "stdio,id=output,signal=off", "-device", "virtio-serial-pci"]);
        qemu.args(["-device", "virtserialport,chardev=output,name=rig.output"]);
        for (id, path, more) in [("host", Path::new("/"), ",readonly=on,multidevs=remap"), ("out", out, "")] {
            let fsdev = format!(",security_model=none{more}");
            let mut share = option_path(&format!("local,id={id},path="), path);
            share.push(fsdev);
            qemu.arg("-fsdev").arg(share);
            qemu.arg("-device").arg(format!("virtio-9p-pci,fsdev={id},mount_tag={id}"));
        }
        Ok(qemu)
    }
}

/// `prefix` and a path, whose commas QEMU wants doubled.
fn option_path(prefix: &str, path: &Path) -> std::ffi::OsString {
    format!("{prefix}{}", path.display().to_string().replace(',', ",,")).into()
}

fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let shown = lines.iter().skip(lines.len().saturating_sub(25)).copied().collect::<Vec<_>>().join("\n");
    format!("the end of its kernel's log ({}):\n{shown}", log.display())
}

/// Ends a process when its time is over.
struct Alarm {
    over: Arc<AtomicBool>,
    expired: Arc<AtomicBool>,
    watcher: std::thread::JoinHandle<()>,
}

impl Alarm {
    fn set(child: &Child, limit: Duration) -> Self {
        let (over, expired) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (seen, rang, pid, start) = (over.clone(), expired.clone(), child.id(), Instant::now());
        let watcher = std::thread::spawn(move || {
            while !seen.load(Ordering::Acquire) {
                if start.elapsed() > limit {
                    rang.store(true, Ordering::Release);
                    // The child is not waited for before `disarm`, so the number is still its own.
                    let _ = tool::output(tool::command("kill").args(["-KILL", &pid.to_string()]));
                    return;
                }
                std::thread::park_timeout(Duration::from_millis(200));
            }
        });
        Self { over, expired, watcher }
    }

    fn disarm(self) -> bool {
        self.over.store(true, Ordering::Release);
        self.watcher.thread().unpark();
        let _ = self.watcher.join();
        self.expired.load(Ordering::Acquire)
    }
}

/// A folder of this name below the cache, empty.
///
/// # Errors
/// If it cannot be made.
pub fn fresh_output(place: &Place, name: &str) -> anyhow::Result<PathBuf> {
    let dir = place.cache().join(name);
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot empty {}", dir.display()))?;
    }
    fs::create_dir_all(&dir)?;
    Ok(dir)
}
