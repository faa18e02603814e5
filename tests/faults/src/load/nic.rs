#![allow(unsafe_code)] // TUNSETIFF

//! A card's driver: carries frames between its rings and a tap in another network namespace, whose kernel is the
//! guest's TCP.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use strata_virtio::device::Device;
use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::spec::{F_EVENT_IDX, F_VERSION_1};
use strata_vmm::frontend::Handle;
use strata_vmm::pci::PciDevice;

use crate::Wanted;

const QUEUE: u16 = 128;
/// Frames under way in each direction.
const FRAMES: u64 = 64;
const ROOM: u64 = 2048;
/// Of `struct virtio_net_hdr_v1`.
const HEADER: usize = 12;
const RX: u64 = 1 << 20;
const TX: u64 = 2 << 20;
const NAP: Duration = Duration::from_millis(20);

/// The driver.
pub(crate) struct Load {
    device: Box<dyn Device>,
    memory: Arc<Memory>,
    tap: File,
    rx: DriverQueue,
    tx: DriverQueue,
    /// Which buffer each chain has.
    received: std::collections::HashMap<u16, u64>,
    sent: std::collections::HashMap<u16, u64>,
    free: Vec<u64>,
    report: strata_faults::Nic,
}

/// Opens the tap `name` without headers or offloads.
fn open_tap(name: &str) -> io::Result<File> {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    const TAP_NO_PI: u16 = 0x1002;
    let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    let mut request = [0; 40];
    for (to, from) in request.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    for (to, from) in request.iter_mut().skip(16).zip(TAP_NO_PI.to_ne_bytes()) {
        *to = from;
    }
    // SAFETY: a struct ifreq is 40 bytes, name and flags first.
    if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

impl Load {
    /// On the thread that is to run it: it enters the tap's namespace.
    pub(crate) fn new(id: &str, device: PciDevice, memory: Arc<Memory>, tap: &str) -> anyhow::Result<Self> {
        let (namespace, name) = tap.rsplit_once(':').context("LOAD_TAP is NAMESPACE:TAP")?;
        let file = File::open(namespace).with_context(|| format!("the namespace {namespace}"))?;
        setns(file, CloneFlags::CLONE_NEWNET).context("entering the namespace")?;
        let tap = open_tap(name).with_context(|| format!("the tap {name}"))?;
        let features = F_VERSION_1 | F_EVENT_IDX;
        let rx = DriverQueue::new(&memory, 0, QUEUE, features)?;
        let tx = DriverQueue::new(&memory, 0x8000, QUEUE, features)?;
        let report = strata_faults::Nic { id: id.to_owned(), ..strata_faults::Nic::default() };
        let device = device.device;
        let (received, sent, free) = Default::default();
        let mut this = Self { device, memory, tap, rx, tx, received, sent, free, report };
        this.start()?;
        Ok(this)
    }

    fn start(&mut self) -> anyhow::Result<()> {
        let features = self.device.identity().features & (F_VERSION_1 | F_EVENT_IDX);
        self.device.set_features(features);
        self.rx = DriverQueue::new(&self.memory, 0, QUEUE, features)?;
        self.tx = DriverQueue::new(&self.memory, 0x8000, QUEUE, features)?;
        self.device.start_queue(self.rx.setup(0, 0)?)?;
        self.device.start_queue(self.tx.setup(1, 0)?)?;
        self.received.clear();
        self.sent.clear();
        self.free = (0..FRAMES).map(|frame| TX + frame * ROOM).collect();
        for frame in 0..FRAMES {
            self.give(RX + frame * ROOM)?;
        }
        self.rx.kick();
        Ok(())
    }

    fn give(&mut self, at: u64) -> anyhow::Result<()> {
        let head = self.rx.add(&[Buf::writable(at, ROOM as u32)]).context("no room in the receive ring")?;
        ensure!(self.received.insert(head, at).is_none(), "a receive buffer is given twice");
        Ok(())
    }

    pub(crate) fn run(mut self, wanted: &Wanted, handle: &Handle) -> anyhow::Result<strata_faults::Nic> {
        let mut resets = wanted.resets.load(Ordering::Acquire);
        // Whoever stops the machine has seen all streams complete before.
        while !wanted.stop.load(Ordering::Acquire) {
            if resets != wanted.resets.load(Ordering::Acquire) {
                resets = wanted.resets.load(Ordering::Acquire);
                ensure!(
                    self.device.stop_queue(0).is_some() && self.device.stop_queue(1).is_some(),
                    "no queues"
                );
                self.device.reset();
                self.start()?;
                self.report.resets += 1;
            }
            self.receive()?;
            self.send()?;
            if self.rx.arm_calls() {
                continue;
            }
            let (call, done) = (Arc::clone(self.rx.call_fd()), Arc::clone(self.tx.call_fd()));
            let mut fds = [
                PollFd::new(call.as_fd(), PollFlags::POLLIN),
                PollFd::new(done.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.tap.as_fd(), PollFlags::POLLIN),
            ];
            // Without room to send, the tap is not looked at.
            let watched = if self.free.is_empty() { fds.get_mut(..2) } else { fds.get_mut(..) };
            let _ = poll(watched.unwrap_or_default(), PollTimeout::try_from(NAP).unwrap_or(PollTimeout::MAX));
            self.rx.take_call();
            self.tx.take_call();
        }
        self.report.losses = handle.losses();
        Ok(self.report)
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        let mut frame = vec![0; ROOM as usize];
        while let Some((head, len)) = self.rx.poll() {
            let at = self.received.remove(&head).context("a frame in a buffer that was not given")?;
            let len = len as usize;
            // Nothing: the buffer came back from a backend that stopped.
            if len > HEADER {
                let frame = frame.get_mut(..len).context("a frame longer than its buffer")?;
                self.memory.read_at(at, frame)?;
                // A full tap drops it, as a network may.
                let _ = self.tap.write(frame.get(HEADER..).unwrap_or_default());
                self.report.received += 1;
            }
            self.give(at)?;
        }
        self.rx.kick();
        Ok(())
    }

    fn send(&mut self) -> anyhow::Result<()> {
        while let Some((head, _)) = self.tx.poll() {
            self.free.push(self.sent.remove(&head).context("a frame was sent that was not given")?);
        }
        let mut frame = vec![0; ROOM as usize];
        while let Some(at) = self.free.pop() {
            let read = frame.get_mut(HEADER..).map_or(Ok(0), |room| self.tap.read(room));
            let Ok(len) = read.map(|len| len + HEADER) else {
                self.free.push(at);
                break;
            };
            self.memory.write_at(at, frame.get(..len).unwrap_or_default())?;
            let head = self.tx.add(&[Buf::readable(at, len as u32)]).context("no room in the send ring")?;
            self.sent.insert(head, at);
            self.report.sent += 1;
        }
        self.tx.kick();
        self.tx.arm_calls();
        Ok(())
    }
}
