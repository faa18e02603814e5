//! A network driver for the benchmark: the rings of one queue pair in this process's memory, used the way the
//! Linux driver uses them. Calls are wanted only when there is nothing left to do; when the transmit ring is
//! full, a call is wanted once three quarters of it are free again.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use strata_vhost_net::features as feature;
use strata_virtio::driver::{Buf, DriverQueue, Frontend};
use strata_virtio::memory::Memory;
use strata_virtio::spec::{F_PROTOCOL_FEATURES, RING_FEATURES};

/// Bytes of virtio-net header.
pub(crate) const HEADER: usize = 12;
/// Bytes of a receive buffer that takes one ordinary frame.
const SMALL: u32 = 2048;
/// Bytes of one that takes any frame.
const LARGE: u32 = 65_568;
const RINGS: u64 = 0x1_0000;
const TX_AT: u64 = 0x40_0000;
const RX_AT: u64 = 0x200_0000;
const MEMORY: u64 = 128 << 20;

const FEATURES: u64 = RING_FEATURES
    | F_PROTOCOL_FEATURES
    | feature::CSUM
    | feature::GUEST_CSUM
    | feature::GUEST_TSO4
    | feature::GUEST_TSO6
    | feature::HOST_TSO4
    | feature::HOST_TSO6
    | feature::MRG_RXBUF;

/// One queue pair.
pub(crate) struct Driver {
    memory: Arc<Memory>,
    pub(crate) rx: DriverQueue,
    pub(crate) tx: DriverQueue,
    rx_buffer: u32,
    /// Whether it spins instead of sleeping.
    spin: bool,
    pub(crate) kicks: u64,
    pub(crate) calls: u64,
    _frontend: Frontend,
}

impl Driver {
    /// Connects and starts both queues. `large` frames are expected: without mergeable buffers each must be
    /// large enough for any, as the Linux driver has it.
    pub(crate) fn connect(socket: &Path, size: u16, spin: bool, large: bool) -> anyhow::Result<Self> {
        let memory = Arc::new(Memory::anonymous(MEMORY)?);
        // Touched before anything is measured.
        for page in 0..MEMORY / 4096 {
            memory.write_at(page * 4096, &[0])?;
        }
        let mut frontend = Frontend::connect(socket, FEATURES)?;
        let features = frontend.features;
        let rx_buffer = if large && features & feature::MRG_RXBUF == 0 { LARGE } else { SMALL };
        ensure!(u64::from(size) * u64::from(LARGE) <= MEMORY - RX_AT, "a queue of {size} is too large");
        frontend.set_memory(&memory)?;
        let rx = DriverQueue::new(&memory, RINGS, size, features)?;
        let tx = DriverQueue::new(&memory, RINGS + 0x1_0000, size, features)?;
        frontend.start(0, &rx, 0)?;
        frontend.start(1, &tx, 0)?;
        Ok(Self { memory, rx, tx, rx_buffer, spin, kicks: 0, calls: 0, _frontend: frontend })
    }

    /// Writes the frame that is sent from every transmit buffer.
    pub(crate) fn set_frame(&mut self, header: &[u8; HEADER], frame: &[u8]) -> anyhow::Result<()> {
        let stride = Self::stride(frame.len());
        let all = [&header[..], frame].concat();
        for slot in 0..u64::from(self.tx.size()) {
            self.memory.write_at(TX_AT + slot * stride, &all)?;
        }
        Ok(())
    }

    fn stride(frame: usize) -> u64 {
        // Large frames share their buffers: only the traffic to the backend counts.
        if frame > 8192 { 0x100 } else { 0x2000 }
    }

    /// Posts as many frames as there is room for and kicks; how many.
    pub(crate) fn transmit(&mut self, frame: usize) -> u64 {
        let (mut count, stride) = (0, Self::stride(frame));
        while self.tx.free() > 0 {
            let slot = u64::from(self.tx.free() - 1);
            let buf = Buf::readable(TX_AT + slot * stride, (HEADER + frame) as u32);
            if self.tx.add(&[buf]).is_none() {
                break;
            }
            count += 1;
        }
        self.kicks += u64::from(count > 0 && self.tx.kick());
        count
    }

    /// Posts one frame and kicks.
    pub(crate) fn transmit_one(&mut self, frame: usize) {
        let buf = Buf::readable(TX_AT, (HEADER + frame) as u32);
        let posted = self.tx.add(&[buf]).is_some();
        self.kicks += u64::from(posted && self.tx.kick());
    }

    /// Takes back sent frames if there are any.
    pub(crate) fn reap(&mut self) {
        self.tx.suppress_calls();
        while self.tx.poll().is_some() {}
    }

    /// Takes back sent frames, sleeping until most of the ring is free if none is.
    pub(crate) fn reclaim(&mut self) -> u64 {
        loop {
            let mut count = 0;
            while self.tx.poll().is_some() {
                count += 1;
            }
            if count > 0 {
                return count;
            }
            if self.spin {
                std::hint::spin_loop();
                continue;
            }
            let in_use = self.tx.size() - self.tx.free();
            if !self.tx.arm_calls_after(in_use * 3 / 4) {
                sleep(&self.tx, &mut self.calls);
            }
        }
    }

    /// Posts receive buffers in every free descriptor.
    pub(crate) fn refill(&mut self) {
        let mut posted = false;
        while self.rx.free() > 0 {
            let slot = u64::from(self.rx.free() - 1);
            posted |= self
                .rx
                .add(&[Buf::writable(RX_AT + slot * u64::from(self.rx_buffer), self.rx_buffer)])
                .is_some();
        }
        self.kicks += u64::from(posted && self.rx.kick());
    }

    /// Takes received frames, up to a budget of 64, sleeping if there is none and `wait` allows it; frames and
    /// bytes. A frame in several buffers is counted by the bytes alone.
    pub(crate) fn receive(&mut self, wait: bool) -> (u64, u64) {
        loop {
            let (mut count, mut bytes) = (0, 0);
            while count < 64 {
                let Some((_, len)) = self.rx.poll() else { break };
                count += 1;
                bytes += u64::from(len);
            }
            if count > 0 {
                self.rx.suppress_calls();
                return (count, bytes);
            }
            if self.spin {
                if !wait {
                    return (0, 0);
                }
                std::hint::spin_loop();
                continue;
            }
            if !self.rx.arm_calls() && !sleep(&self.rx, &mut self.calls) && !wait {
                return (0, 0);
            }
        }
    }
}

/// Sleeps until the queue is called, or for a while; whether it was called.
fn sleep(queue: &DriverQueue, calls: &mut u64) -> bool {
    let fd = queue.call_fd();
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if !matches!(poll(&mut fds, PollTimeout::from(20u8)), Ok(1)) {
        return false;
    }
    let mut value = [0; 8];
    let read = nix::unistd::read(fd, &mut value).context("reading a call");
    if read.is_ok() {
        *calls += u64::from_ne_bytes(value);
    }
    true
}
