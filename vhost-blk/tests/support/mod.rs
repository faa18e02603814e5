//! A backend process and a driver to go with it.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test file uses a part
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strata_virtio::driver::{Buf, DriverQueue, Frontend};
use strata_virtio::memory::Memory;
use strata_virtio::spec::{F_PROTOCOL_FEATURES, RING_FEATURES};

pub const SECTOR: usize = 512;
/// Long enough for a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;

pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
pub const UNSUPP: u8 = 2;

pub const F_RO: u64 = 1 << 5;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_WCE: u64 = 1 << 11;
pub const F_MQ: u64 = 1 << 12;

/// `vhost-blk`, ended when dropped.
pub struct Backend {
    pub child: Child,
    pub socket: PathBuf,
}

impl Backend {
    /// Starts it on an image with further words, and waits until it listens.
    pub fn start(dir: &Path, image: &Path, words: &[&str]) -> Self {
        let mut backend = Self::launch(dir, image, words);
        let begun = Instant::now();
        while !backend.socket.exists() || std::os::unix::net::UnixStream::connect(&backend.socket).is_err() {
            if let Some(status) = backend.child.try_wait().unwrap() {
                panic!("vhost-blk has ended with {status}: {}", backend.said());
            }
            assert!(begun.elapsed() < PATIENCE);
            std::thread::sleep(Duration::from_millis(5));
        }
        backend
    }

    /// Starts it and does not wait.
    pub fn launch(dir: &Path, image: &Path, words: &[&str]) -> Self {
        let socket = dir.join("disk.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-blk"));
        command.arg("--socket-path").arg(&socket).arg("--blk-file").arg(image).args(words);
        if std::env::var_os("STRATA_TEST_NO_SANDBOX").is_some() {
            command.arg("--no-sandbox");
        }
        let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Self { child, socket }
    }

    /// What it has written to stderr, once it has ended.
    pub fn said(&mut self) -> String {
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "vhost-blk does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// The process that serves: the youngest of its line.
    pub fn server_pid(&self) -> u32 {
        let mut pid = self.child.id();
        while let Ok(children) = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
            match children.split_ascii_whitespace().next() {
                Some(child) => pid = child.parse().unwrap(),
                None => break,
            }
        }
        pid
    }

    pub fn kill(&mut self) {
        let server = self.server_pid();
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(server as i32),
            nix::sys::signal::Signal::SIGKILL,
        );
        let _ = self.child.kill();
        self.child.wait().unwrap();
        // It may still be dying, with its socket accepting.
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(self.child.id() as i32),
                nix::sys::signal::Signal::SIGTERM,
            );
            let _ = self.child.wait();
        }
    }
}

/// A file of some bytes in a temporary directory.
pub fn image(dir: &Path, bytes: u64) -> PathBuf {
    let path = dir.join("disk.img");
    std::fs::File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// Guest memory in which each queue has room for itself and for the buffers of its requests.
pub const MEMORY: u64 = 64 << 20;
const QUEUE_AREA: u64 = 8 << 20;
pub const QUEUE_SIZE: u16 = 128;

/// A driver with some queues.
pub struct Disk {
    pub frontend: Frontend,
    pub memory: Arc<Memory>,
    pub queues: Vec<DriverQueue>,
}

impl Disk {
    pub fn connect(backend: &Backend) -> Self {
        Self::with(backend, 1, u64::MAX)
    }

    /// Negotiates `features` and starts `queues` queues.
    pub fn with(backend: &Backend, queues: usize, features: u64) -> Self {
        let memory = Arc::new(Memory::anonymous(MEMORY).unwrap());
        let mut frontend = Frontend::connect(&backend.socket, features | F_PROTOCOL_FEATURES).unwrap();
        frontend.set_memory(&memory).unwrap();
        let ring = frontend.features & RING_FEATURES;
        let queues = (0..queues)
            .map(|index| {
                let queue = DriverQueue::new(&memory, index as u64 * QUEUE_AREA, QUEUE_SIZE, ring).unwrap();
                frontend.start(index, &queue, 0).unwrap();
                queue
            })
            .collect();
        Self { frontend, memory, queues }
    }

    /// Where a queue's buffers lie.
    pub fn buffers(queue: usize) -> u64 {
        queue as u64 * QUEUE_AREA + (1 << 20)
    }

    /// Does one request on a queue: data to write, or how much to read. The status and what was read.
    pub fn request(&mut self, queue: usize, kind: u32, sector: u64, out: &[u8], room: u32) -> (u8, Vec<u8>) {
        let at = Self::buffers(queue);
        let (header, status, data) = (at, at + 64, at + 4096);
        self.write_header(header, kind, sector);
        self.memory.write_at(status, &[0xee]).unwrap();
        self.memory.write_at(data, out).unwrap();
        let mut chain = vec![Buf::readable(header, 16)];
        if !out.is_empty() {
            chain.push(Buf::readable(data, out.len() as u32));
        }
        if room > 0 {
            chain.push(Buf::writable(data, room));
        }
        chain.push(Buf::writable(status, 1));
        let ring = &mut self.queues[queue];
        let head = ring.add(&chain).unwrap();
        ring.kick();
        let (answered, written) = ring.wait(PATIENCE).expect("no answer");
        assert_eq!(answered, head);
        assert_eq!(written, room + 1);
        let mut read = vec![0; room as usize];
        self.memory.read_at(data, &mut read).unwrap();
        let mut code = [0];
        self.memory.read_at(status, &mut code).unwrap();
        (code[0], read)
    }

    pub fn write_header(&self, at: u64, kind: u32, sector: u64) {
        self.memory.write_at(at, &kind.to_le_bytes()).unwrap();
        self.memory.write_at(at + 4, &[0; 4]).unwrap();
        self.memory.write_at(at + 8, &sector.to_le_bytes()).unwrap();
    }

    pub fn read(&mut self, sector: u64, bytes: u32) -> (u8, Vec<u8>) {
        self.request(0, IN, sector, &[], bytes)
    }

    pub fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        self.request(0, OUT, sector, data, 0).0
    }

    pub fn flush(&mut self) -> u8 {
        self.request(0, FLUSH, 0, &[], 0).0
    }
}

/// Bytes that differ from place to place and seed to seed.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// One segment of a discard or write-zeroes request.
pub fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Makes a qcow2 image; false, and says so, where there is no qemu-img.
pub fn qcow2(path: &Path, cluster: &str, size: &str) -> bool {
    let options = format!("cluster_size={cluster}");
    let words = ["create", "-q", "-f", "qcow2", "-o", &options, path.to_str().unwrap(), size];
    let made = Command::new("qemu-img").args(words).status().is_ok_and(|status| status.success());
    if !made {
        assert!(std::env::var_os("CI").is_none(), "qemu-img should be here");
        println!("skipped: no qemu-img");
    }
    made
}

/// What qemu-img thinks of an image whose backend has been killed.
pub fn assert_sound(path: &Path) {
    loop {
        let check = Command::new("qemu-img").args(["check", "-q"]).arg(path).output().unwrap();
        let said = String::from_utf8_lossy(&[check.stdout, check.stderr].concat()).into_owned();
        // The kernel lets go of a killed process's io_uring, and the lock with it, a moment later.
        if !said.contains("lock") {
            // 0: as it should be; 3: clusters that nobody uses, which a crash may leave.
            return assert!(matches!(check.status.code(), Some(0 | 3)), "{}: {said}", check.status);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
