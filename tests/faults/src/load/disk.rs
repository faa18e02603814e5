//! The load on one disk: 32 requests per queue at a time, each slot with blocks of its own, every read compared.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use strata_faults::{BLOCK, Block, Ledger, Random, pattern};
use strata_virtio::device::Device;
use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::memory::Memory;
use strata_virtio::spec::{F_EVENT_IDX, F_VERSION_1};
use strata_vmm::frontend::Handle;
use strata_vmm::pci::PciDevice;

use crate::Wanted;

const SLOTS: usize = 32;
const QUEUE: u16 = 128;
/// Each slot's memory: a request's header, its status, its data.
const ROOM: u64 = 8192;
const BUFFERS: u64 = 1 << 20;
/// Answers that do not come within this are lost.
const LOST: Duration = Duration::from_secs(120);
/// Between two rounds: the load is there to be checked, not to be fast.
const PACE: Duration = Duration::from_millis(1);
const GAP: Duration = Duration::from_millis(5);
/// VIRTIO_BLK_F_FLUSH (virtio 1.2 section 5.2.3).
const BLK_FLUSH: u64 = 1 << 9;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Read,
    Write,
    Flush,
}

impl Op {
    /// Request types of virtio 1.2 section 5.2.6.
    fn code(self) -> u32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 4,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Its chain in the ring.
    head: Option<u16>,
    op: Op,
    block: usize,
    since: Instant,
    /// A write that was not answered well and has to be made again.
    again: bool,
}

/// The load.
pub(crate) struct Load {
    device: Box<dyn Device>,
    memory: Arc<Memory>,
    queues: Vec<DriverQueue>,
    slots: Vec<Slot>,
    ledger: Ledger,
    random: Random,
    gaps: std::fs::File,
    report: strata_faults::Disk,
    begun: Instant,
    last: Instant,
    /// Why another backend may answer differently.
    path: PathBuf,
}

impl Load {
    pub(crate) fn new(id: &str, device: PciDevice, memory: Arc<Memory>, dir: &Path) -> anyhow::Result<Self> {
        let mut device = device.device;
        let mut sectors = [0; 8];
        device.read_config(0, &mut sectors);
        let blocks = u64::from_le_bytes(sectors) as usize * 512 / BLOCK;
        let path = dir.join(format!("{id}.ledger"));
        let ledger = Ledger::open(&path, blocks).context("the ledger")?;
        let gaps = std::fs::File::options().append(true).create(true).open(dir.join(format!("{id}.gaps")))?;
        let queues = device.identity().queue_sizes.len();
        let now = Instant::now();
        let idle = Slot { head: None, op: Op::Flush, block: 0, since: now, again: false };
        let mut this = Self {
            device,
            memory,
            queues: Vec::new(),
            slots: vec![idle; SLOTS * queues],
            ledger,
            random: Random::new(blocks as u64 ^ u64::from(std::process::id())),
            gaps,
            report: strata_faults::Disk { id: id.to_owned(), ..strata_faults::Disk::default() },
            begun: now,
            last: now,
            path,
        };
        this.start(queues)?;
        Ok(this)
    }

    /// What a driver does to begin.
    fn start(&mut self, queues: usize) -> anyhow::Result<()> {
        let features = self.device.identity().features & (F_VERSION_1 | F_EVENT_IDX | BLK_FLUSH);
        self.device.set_features(features);
        self.queues.clear();
        for index in 0..queues as u16 {
            let queue = DriverQueue::new(&self.memory, u64::from(index) * 0x4000, QUEUE, features)?;
            self.device.start_queue(queue.setup(index, 0)?)?;
            self.queues.push(queue);
        }
        Ok(())
    }

    pub(crate) fn run(mut self, wanted: &Wanted, handle: &Handle) -> anyhow::Result<strata_faults::Disk> {
        self.compare_all().context("before the load")?;
        let mut resets = wanted.resets.load(Ordering::Acquire);
        loop {
            let stop = wanted.stop.load(Ordering::Acquire);
            self.take()?;
            if resets != wanted.resets.load(Ordering::Acquire) {
                resets = wanted.resets.load(Ordering::Acquire);
                self.reset()?;
            }
            if stop && self.slots.iter().all(|slot| slot.head.is_none() && !slot.again) {
                break;
            }
            self.post(!stop)?;
            let late = self.slots.iter().find(|slot| slot.head.is_some() && slot.since.elapsed() > LOST);
            if let Some(Slot { op, block, .. }) = late {
                bail!(
                    "{}: {op:?} of block {block} is lost: no answer in {} s",
                    self.report.id,
                    LOST.as_secs()
                );
            }
            std::thread::sleep(PACE);
        }
        self.compare_all().context("after the load")?;
        self.report.losses = handle.losses();
        Ok(self.report)
    }

    fn place(slot: usize) -> (u64, u64, u64) {
        let at = BUFFERS + slot as u64 * ROOM;
        (at, at + 64, at + 4096)
    }

    /// Fills the slots that are free.
    fn post(&mut self, fresh: bool) -> anyhow::Result<()> {
        if self.slots.iter().all(|slot| slot.head.is_none()) {
            self.last = Instant::now();
        }
        for index in 0..self.slots.len() {
            let Some(slot) = self.slots.get(index).copied() else { continue };
            if slot.head.is_some() || !(slot.again || fresh) {
                continue;
            }
            let (op, block) = if slot.again { (slot.op, slot.block) } else { self.choose(index) };
            if op == Op::Write && !slot.again {
                let Block { acked, asked } = self.ledger.get(block);
                self.ledger.set(block, Block { acked, asked: asked + 1 })?;
            }
            self.submit(index, op, block)?;
        }
        self.kick();
        Ok(())
    }

    fn kick(&mut self) {
        for queue in &mut self.queues {
            queue.kick();
        }
    }

    fn choose(&mut self, slot: usize) -> (Op, usize) {
        let all = self.slots.len();
        let mine = (self.ledger.len() / all).max(1) as u64;
        let block = slot + all * self.random.below(mine) as usize;
        let op = match self.random.below(100) {
            0..60 => Op::Write,
            60..96 => Op::Read,
            _ => Op::Flush,
        };
        (op, block)
    }

    fn submit(&mut self, index: usize, op: Op, block: usize) -> anyhow::Result<()> {
        let (header, status, data) = Self::place(index);
        let sector = if op == Op::Flush { 0 } else { (block * BLOCK / 512) as u64 };
        let head = [op.code().to_le_bytes().as_slice(), &[0; 4], &sector.to_le_bytes()].concat();
        self.memory.write_at(header, &head)?;
        self.memory.write_at(status, &[0xee])?;
        let mut chain = vec![Buf::readable(header, 16)];
        match op {
            Op::Write => {
                self.memory.write_at(data, &pattern(block as u64, self.ledger.get(block).asked))?;
                chain.push(Buf::readable(data, BLOCK as u32));
            }
            Op::Read => {
                self.memory.write_at(data, &[0xdd; BLOCK])?;
                chain.push(Buf::writable(data, BLOCK as u32));
            }
            Op::Flush => {}
        }
        chain.push(Buf::writable(status, 1));
        let queue = self.queues.get_mut(index / SLOTS).context("a queue")?;
        let head = queue.add(&chain).context("no room in the ring")?;
        if let Some(slot) = self.slots.get_mut(index) {
            *slot = Slot { head: Some(head), op, block, since: Instant::now(), again: false };
        }
        Ok(())
    }

    /// Takes all answers there are.
    fn take(&mut self) -> anyhow::Result<()> {
        for index in 0..self.queues.len() {
            while let Some((head, _)) = self.queues.get_mut(index).and_then(DriverQueue::poll) {
                let mine = index * SLOTS..(index + 1) * SLOTS;
                let slot = mine
                    .into_iter()
                    .find(|slot| self.slots.get(*slot).is_some_and(|it| it.head == Some(head)));
                let slot =
                    slot.with_context(|| format!("{}: an answer to nothing that was asked", self.report.id))?;
                self.answered(slot)?;
                let gap = self.last.elapsed();
                self.last = Instant::now();
                if gap >= GAP {
                    let (at, gap) = (self.begun.elapsed().as_micros(), gap.as_micros());
                    self.report.gaps.push(gap as u64);
                    writeln!(self.gaps, "{at} {gap}")?;
                }
            }
        }
        Ok(())
    }

    fn answered(&mut self, index: usize) -> anyhow::Result<()> {
        let Some(slot) = self.slots.get_mut(index) else { return Ok(()) };
        slot.head = None;
        let (op, block) = (slot.op, slot.block);
        let (_, status, data) = Self::place(index);
        let code: u8 = self.memory.read_obj(status)?;
        if code != 0 {
            ensure!(code == 1, "{}: {op:?} of block {block}: status {code}", self.report.id);
            self.report.errors += 1;
            slot.again = op == Op::Write;
            return Ok(());
        }
        match op {
            Op::Flush => self.report.flushes += 1,
            Op::Write => {
                self.report.writes += 1;
                let asked = self.ledger.get(block).asked;
                self.ledger.set(block, Block { acked: asked, asked })?;
            }
            Op::Read => {
                self.report.reads += 1;
                let mut bytes = vec![0; BLOCK];
                self.memory.read_at(data, &mut bytes)?;
                self.compare(block, &bytes)?;
            }
        }
        Ok(())
    }

    fn compare(&mut self, block: usize, bytes: &[u8]) -> anyhow::Result<()> {
        let Block { acked, asked } = self.ledger.get(block);
        self.report.compared += 1;
        let number = block as u64;
        if (acked..=asked).any(|version| bytes == pattern(number, version)) {
            return Ok(());
        }
        let word =
            |at: usize| bytes.get(at..at + 8).and_then(|it| it.try_into().ok()).map_or(0, u64::from_le_bytes);
        bail!(
            "{}: block {block} is lost or stale: version {acked} was acknowledged, {asked} asked for; it begins with \
             block {}, version {} (ledger {})",
            self.report.id,
            word(0),
            word(8),
            self.path.display()
        );
    }

    /// Reads and compares the whole disk. No request is under way.
    fn compare_all(&mut self) -> anyhow::Result<()> {
        let blocks = self.ledger.len();
        let mut next = 0;
        let all = self.slots.len();
        while next < blocks {
            let round: Vec<usize> = (next..blocks.min(next + all)).collect();
            next += round.len();
            for (index, block) in round.iter().enumerate() {
                self.submit(index, Op::Read, *block)?;
            }
            self.kick();
            let start = Instant::now();
            while self.slots.iter().any(|slot| slot.head.is_some()) {
                self.take()?;
                ensure!(start.elapsed() < LOST, "{}: reads are lost", self.report.id);
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// A driver resets its device at any moment, takes what is answered, and begins anew. What was not answered may
    /// have happened or not, and is made again.
    fn reset(&mut self) -> anyhow::Result<()> {
        let queues = self.queues.len();
        for index in 0..queues as u16 {
            ensure!(self.device.stop_queue(index).is_some(), "{}: queue {index} did not run", self.report.id);
        }
        self.take()?;
        for slot in &mut self.slots {
            if slot.head.take().is_some() {
                slot.again = slot.op == Op::Write;
            }
        }
        self.device.reset();
        self.start(queues)?;
        self.report.resets += 1;
        Ok(())
    }
}
