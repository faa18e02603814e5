//! COM1: a 16550 for early boot messages and for guests without virtio. Each byte is an exit, so it exists only
//! when asked for.
//!
//! Output goes to a writer the machine chose; input comes from a thread of the machine's through
//! [`Line::feed`]. A reset of the machine resets the UART but keeps both ends.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use strata_virtio::limit::Throttle;
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};

use super::ioapic::Interrupts;
use crate::bus::BusDevice;
use crate::x86::layout::UART_PIN;

/// Bytes of ports.
pub const PORTS: u64 = 8;

static LOST: Throttle = Throttle::new(1, 60);

/// Where output goes; shared by the UART's lives.
pub type Output = Arc<Mutex<dyn Write + Send>>;

struct Sink(Output);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// The IOAPIC of this life; none before the first.
#[derive(Clone, Default)]
struct Interrupt(Option<Interrupts>);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        if let Some(interrupts) = &self.0 {
            interrupts.raise(UART_PIN);
        }
        Ok(())
    }
}

/// Wakes whoever waits for room in the receive FIFO.
#[derive(Clone, Default)]
struct Room(Arc<Condvar>);

impl SerialEvents for Room {
    fn buffer_read(&self) {
        self.0.notify_all();
    }
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {
        if LOST.allow() {
            tracing::warn!("serial port: output is lost, nobody takes it");
        }
    }
    fn in_buffer_empty(&self) {
        self.0.notify_all();
    }
}

type Chip = Serial<Interrupt, Room, Sink>;

/// The UART as the machine has it: across resets, on both sides.
#[derive(Clone)]
pub struct Line {
    chip: Arc<Mutex<Chip>>,
    room: Room,
    output: Output,
}

impl Line {
    /// A UART that writes to `output`, not yet in a machine.
    #[must_use]
    pub fn new(output: Output) -> Self {
        let room = Room::default();
        let chip = Serial::with_events(Interrupt::default(), room.clone(), Sink(Arc::clone(&output)));
        Self { chip: Arc::new(Mutex::new(chip)), room, output }
    }

    /// The device to be put on the port bus.
    #[must_use]
    pub fn device(&self) -> Box<dyn BusDevice> {
        Box::new(self.clone())
    }

    /// Back to the state after power-on, in a machine with these `interrupts`.
    pub fn reset(&self, interrupts: Interrupts) {
        let trigger = Interrupt(Some(interrupts));
        *self.lock() = Serial::with_events(trigger, self.room.clone(), Sink(Arc::clone(&self.output)));
        self.room.0.notify_all();
    }

    /// Hands `input` to the guest, waiting whenever the receive FIFO is full.
    pub fn feed(&self, mut input: &[u8]) {
        let mut chip = self.lock();
        while !input.is_empty() {
            match chip.enqueue_raw_bytes(input) {
                // In loopback mode there is no outside.
                Ok(0) => return,
                Ok(taken) => input = input.get(taken..).unwrap_or_default(),
                Err(_) => chip = self.room.0.wait(chip).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Line {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match (u8::try_from(offset), data) {
            (Ok(offset), [value]) => *value = self.lock().read(offset),
            (_, data) => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            // What can fail is the outside taking a byte, which the events report.
            let _ = self.lock().write(offset, *value);
        }
    }
}

#[cfg(test)]
#[path = "uart_test.rs"]
mod uart_test;
