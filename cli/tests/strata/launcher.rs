//! Starting `strata` with fakes, and looking at what it does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Folders of a test: where machines run, where the programs are, and files to name.
pub(crate) struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder };
        for folder in ["run", "libexec", "args"] {
            fs::create_dir(place.path(folder)).unwrap();
        }
        let test = std::env::current_exe().unwrap();
        let fake = test.parent().unwrap().parent().unwrap().join("examples/fake");
        assert!(fake.exists(), "{} is not built: run the tests with `cargo test`", fake.display());
        for name in ["vmm", "vhost-blk", "vhost-net"] {
            symlink(&fake, place.path("libexec").join(name)).unwrap();
        }
        fs::write(place.path("vmlinuz"), "kernel").unwrap();
        fs::write(place.path("disk.img"), "disk").unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The command with this place's folders in its environment.
    pub(crate) fn strata(&self, args: &[&str]) -> Command {
        // Whoever runs the tests may ignore signals (nohup SIGHUP, a shell's background jobs SIGINT and SIGQUIT), which
        // the launcher would respect.
        let mut command = Command::new("env");
        command.arg("--default-signal=HUP,INT,QUIT").arg(env!("CARGO_BIN_EXE_strata"));
        command.args(args).current_dir(self.folder.path());
        command.env("STRATA_RUN_DIR", self.path("run")).env("STRATA_LIBEXEC", self.path("libexec"));
        command.env("FAKE_ARGS", self.path("args"));
        command
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.strata(args).output().unwrap()
    }

    /// Nobody's machine is left here.
    pub(crate) fn is_empty(&self) -> bool {
        fs::read_dir(self.path("run")).unwrap().next().is_none()
    }

    /// The arguments of the processes of this program, oldest first.
    pub(crate) fn args_of(&self, program: &str) -> Vec<String> {
        let mut found: Vec<_> = fs::read_dir(self.path("args"))
            .unwrap()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("{program}.")))
            .map(|entry| (entry.metadata().unwrap().modified().unwrap(), entry.path()))
            .collect();
        found.sort();
        found.into_iter().map(|(_, path)| fs::read_to_string(path).unwrap()).collect()
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asks until the answer is there.
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and is no zombie.
pub(crate) fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// A running `strata run`.
pub(crate) struct Launcher<'a> {
    pub(crate) place: &'a Place,
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    out: Arc<Mutex<Vec<u8>>>,
    err: Arc<Mutex<Vec<u8>>>,
    readers: Vec<std::thread::JoinHandle<()>>,
    seen: BTreeMap<String, i32>,
}

impl<'a> Launcher<'a> {
    /// `strata run --kernel vmlinuz ARGS` with these variables.
    pub(crate) fn start(place: &'a Place, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = place.strata(&["run", "--kernel", "vmlinuz"]);
        command.args(args).envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (out, out_reader) = collect(child.stdout.take().unwrap());
        let (err, err_reader) = collect(child.stderr.take().unwrap());
        let stdin = child.stdin.take();
        let readers = vec![out_reader, err_reader];
        Self { place, child, stdin, out, err, readers, seen: BTreeMap::new() }
    }

    pub(crate) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).unwrap();
    }

    pub(crate) fn type_in(&mut self, text: &str) {
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    pub(crate) fn out(&self) -> String {
        String::from_utf8_lossy(&self.out.lock().unwrap()).into_owned()
    }

    pub(crate) fn err(&self) -> String {
        String::from_utf8_lossy(&self.err.lock().unwrap()).into_owned()
    }

    pub(crate) fn wait_for_out(&self, text: &str) {
        wait_for(text, || self.out().contains(text).then_some(()));
    }

    pub(crate) fn wait_for_err(&self, text: &str) {
        wait_for(text, || self.err().contains(text).then_some(()));
    }

    /// The pid in a pid file of the machine, once it is there; remembered for [`Launcher::nothing_is_left`].
    pub(crate) fn pid_of(&mut self, name: &str, id: &str) -> i32 {
        let path = self.place.path("run").join(name).join(format!("{id}.pid"));
        let pid = wait_for("a pid file", || fs::read_to_string(&path).ok()?.trim().parse().ok());
        self.seen.insert(format!("{id}.{pid}"), pid);
        pid
    }

    /// Waits for the launcher's end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let status = wait_for("the launcher's end", || self.child.try_wait().unwrap());
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        status
    }

    /// No folder, and none of the processes seen.
    pub(crate) fn nothing_is_left(&self) {
        assert!(self.place.is_empty(), "a folder is left");
        for (id, pid) in &self.seen {
            assert!(!alive(*pid), "{id} is left");
        }
    }
}

impl Drop for Launcher<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn collect(mut from: impl Read + Send + 'static) -> (Arc<Mutex<Vec<u8>>>, std::thread::JoinHandle<()>) {
    let all = Arc::new(Mutex::new(Vec::new()));
    let into = Arc::clone(&all);
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(bytes) = from.read(&mut buffer) {
            if bytes == 0 {
                return;
            }
            into.lock().unwrap().extend_from_slice(&buffer[..bytes]);
        }
    });
    (all, reader)
}

/// The launcher looks for /dev/kvm before it starts anything, fakes too.
pub(crate) fn no_kvm() -> bool {
    let missing = !Path::new("/dev/kvm").exists()
        || fs::File::options().read(true).write(true).open("/dev/kvm").is_err();
    if missing {
        eprintln!("skipped: no /dev/kvm that can be opened");
    }
    missing
}

/// What `profile = "auto"` is on this host.
pub(crate) fn profile() -> &'static str {
    if std::arch::x86_64::__cpuid(1).ecx & 1 << 31 == 0 { "bare" } else { "nested" }
}
