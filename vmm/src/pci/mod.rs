//! The guest's PCI bus: one root bus, one function per virtio device at 00:01.0, 00:02.0, ...
//!
//! Made by the machine, called by vCPU threads for the accesses that come to us, by a thread of its own
//! for what devices have to say, and by the machine's owner when a device comes or goes (`hotplug.rs`). There is no host bridge function: none is needed behind ACPI's PNP0A08, and
//! a kernel would spend 14 exits on sizing the BARs it does not have.
//!
//! ```text
//! guest-physical                        who answers a read            a write
//! ecam_base            1 MiB  config    the shadow, no exit           Pci::ecam_write
//! ecam_base + 1 MiB    1 MiB  BAR 0s    the shadow, no exit           Pci::mmio_write
//! mmio32                      BAR 1s    Pci::mmio_read (ISR, PBA)     KVM (doorbells), Pci::mmio_write
//! ```
//!
//! The first two are one 2 MiB read-only memory slot over [`Pci::shadow`]. BARs are assigned at power-on; a
//! guest may move them inside the two windows, and what it has moved is answered with exits. Accesses of any
//! width and alignment are answered or ignored.

mod bytes;
mod config;
mod function;
mod hotplug;
mod layout;
mod msix;
mod notify;
mod queue;
mod shadow;
mod transport;
pub mod wiring;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use strata_virtio::device::Device;
use strata_virtio::memory::Memory;

use function::Function;
use layout::{BAR_SIZE, DOORBELLS, REGISTERS};
use notify::Event;
pub use notify::Notifier;
pub use shadow::{SHADOW_SIZE, SPARE_PAGE, Shadow};
pub(crate) use transport::causes;
use wiring::Wiring;

/// Bytes of configuration space of one bus.
pub const ECAM_SIZE: u64 = 1 << 20;
/// The most devices on the bus: slots 1 to 31.
pub const DEVICES_MAX: usize = 31;
/// Bytes of configuration space of one device number (8 functions).
const SLOT: usize = 8 << 12;

/// Where the bus is in guest-physical space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PciWindows {
    /// Configuration space of bus 0, and 1 MiB behind it the window of the BARs in the shadow. 2 MiB-aligned,
    /// below 4 GiB.
    pub ecam_base: u64,
    /// The window of the other BARs: 16 KiB per device, below 4 GiB. Page-aligned.
    pub mmio32: Range<u64>,
}

impl PciWindows {
    /// The window of the BARs behind the configuration space; part of the root bridge's resources, like
    /// `mmio32`.
    #[must_use]
    pub fn registers(&self) -> Range<u64> {
        // The last place for a BAR is left out: its page belongs to another device.
        self.ecam_base + ECAM_SIZE..self.ecam_base + (SHADOW_SIZE - BAR_SIZE as usize) as u64
    }
}

/// Why there is no bus.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// Too many devices.
    #[error("{0} devices; the PCI bus has room for {DEVICES_MAX}")]
    Devices(usize),
    /// No room, or not where it has to be.
    #[error("device {id}: no slot of the PCI bus is free; it has {DEVICES_MAX}")]
    Full {
        /// Which device.
        id: String,
    },
    /// A device with no queues or too many.
    #[error("device {id}: {queues} queues; 1 to {} are possible", layout::QUEUES_MAX)]
    Queues {
        /// Which device.
        id: String,
        /// How many it has.
        queues: usize,
    },
    /// The windows cannot be used.
    #[error(
        "PCI windows {0:x?}: ecam_base must be 2 MiB-aligned, mmio32 page-aligned and big enough, all below 4 GiB"
    )]
    Windows(PciWindows),
    /// No eventfd is left.
    #[error("no eventfd for a device")]
    Eventfd(#[source] std::io::Error),
    /// No thread.
    #[error("no thread for the PCI bus")]
    Thread(#[source] std::io::Error),
}

/// A device on its way onto the bus or off it.
pub struct PciDevice {
    /// Its name in the machine file.
    pub id: String,
    /// What it speaks up through.
    pub notifier: Notifier,
    /// The device.
    pub device: Box<dyn Device>,
    /// Its slot, 1 to 31, where it has had one: a guest that reboots finds it there again. `None`: the first that is
    /// free.
    pub slot: Option<u8>,
}

impl std::fmt::Debug for PciDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciDevice").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A function and what its device speaks up through.
struct Occupant {
    function: Function,
    notifier: Notifier,
}

/// A place on the bus, with a device in it or not.
struct Slot {
    occupant: Mutex<Option<Occupant>>,
    /// Where each BAR answers, [`NOWHERE`] if it does not; to find the function without locking them all.
    bars: [AtomicU64; 2],
}

const NOWHERE: u64 = u64::MAX;

impl Slot {
    fn empty() -> Self {
        Self { occupant: Mutex::new(None), bars: [AtomicU64::new(NOWHERE), AtomicU64::new(NOWHERE)] }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Occupant>> {
        self.occupant.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, function: &Function) {
        for (bar, at) in (0..).zip(&self.bars) {
            at.store(function.decoded(bar).unwrap_or(NOWHERE), Ordering::Release);
        }
    }

    /// Answers nowhere any more.
    fn hide(&self) {
        self.bars.iter().for_each(|at| at.store(NOWHERE, Ordering::Release));
    }

    /// Which BAR has the access, and where in it.
    fn find(&self, address: u64) -> Option<(u8, u64)> {
        (0..).zip(&self.bars).find_map(|(bar, at)| {
            let base = at.load(Ordering::Acquire);
            let offset = address.checked_sub(base)?;
            (base != NOWHERE && offset < u64::from(BAR_SIZE)).then_some((bar, offset))
        })
    }
}

/// The bus.
pub struct Pci {
    /// Slot 1 is the first.
    slots: Arc<Vec<Slot>>,
    shadow: Arc<Shadow>,
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
    windows: PciWindows,
    wiring: Arc<dyn Wiring>,
    memory: Arc<Memory>,
}

impl Pci {
    /// Puts `devices` on a new bus: those that had a slot there, the others in their order where there is room. All are
    /// in the state after power-on.
    ///
    /// `shadow` is fresh or was given back by [`Pci::into_devices`]'s bus; `memory` is where rings are.
    ///
    /// # Errors
    /// Too many devices, or windows too small for them.
    pub fn new(
        wiring: Arc<dyn Wiring>,
        windows: &PciWindows,
        memory: &Arc<Memory>,
        shadow: Arc<Shadow>,
        devices: Vec<PciDevice>,
    ) -> Result<Self, PciError> {
        if devices.len() > DEVICES_MAX {
            return Err(PciError::Devices(devices.len()));
        }
        let room = (DEVICES_MAX as u64 + 1) * u64::from(BAR_SIZE);
        let PciWindows { ecam_base, mmio32 } = windows;
        if ecam_base % SHADOW_SIZE as u64 != 0
            || ecam_base.saturating_add(SHADOW_SIZE as u64) > 1 << 32
            || mmio32.start % u64::from(BAR_SIZE) != 0
            || mmio32.end > 1 << 32
            || mmio32.end.saturating_sub(mmio32.start) < room
        {
            return Err(PciError::Windows(windows.clone()));
        }
        shadow.fill(0, SHADOW_SIZE, 0xff);
        let slots: Arc<Vec<Slot>> = Arc::new((0..DEVICES_MAX).map(|_| Slot::empty()).collect());
        let (events, inbox) = channel();
        let listening = Arc::clone(&slots);
        let thread = std::thread::Builder::new()
            .name("pci-events".into())
            .spawn(move || listen(&listening, &inbox))
            .map_err(PciError::Thread)?;
        let (thread, memory, windows) = (Some(thread), Arc::clone(memory), windows.clone());
        let this = Self { slots, shadow, events, thread, windows, wiring, memory };
        let (placed, new): (Vec<_>, Vec<_>) = devices.into_iter().partition(|device| device.slot.is_some());
        for device in placed.into_iter().chain(new) {
            this.insert(device)?;
        }
        Ok(this)
    }

    /// What the guest reads without exits: to be mapped read-only at `ecam_base`, [`SHADOW_SIZE`] bytes.
    #[must_use]
    pub fn shadow(&self) -> &Arc<Shadow> {
        &self.shadow
    }

    /// A guest's write to configuration space, `offset` bytes from `ecam_base`.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        // Only function 0 exists, and only at device numbers from 1.
        let Some(slot) = (offset / SLOT).checked_sub(1).and_then(|index| self.slots.get(index)) else {
            return;
        };
        if offset % SLOT < 0x1000
            && let Some(Occupant { function, .. }) = &mut *slot.lock()
        {
            function.write_config(offset % SLOT, data);
            slot.publish(function);
        }
    }

    /// What a guest's read of configuration space returns; only for guests without the read-only slot.
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        match usize::try_from(offset) {
            Ok(at) if at < ECAM_SIZE as usize => self.shadow.read(at, data),
            _ => data.fill(0xff),
        }
    }

    /// A guest's read at an address in the BAR windows that came to us; all ones where no BAR answers, zero where one
    /// did whose device was taken away by force (`hotplug.rs` says why).
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) {
        let Some((slot, bar, offset)) = self.find(address) else {
            data.fill(0xff);
            return;
        };
        match &mut *slot.lock() {
            Some(Occupant { function, .. }) => function.read_bar(bar, offset, data),
            None => data.fill(0),
        }
    }

    /// A guest's write at an address in the BAR windows that came to us.
    pub fn mmio_write(&self, address: u64, data: &[u8]) {
        if let Some((slot, bar, offset)) = self.find(address)
            && let Some(Occupant { function, .. }) = &mut *slot.lock()
        {
            function.write_bar(bar, offset, data);
        }
    }

    fn find(&self, address: u64) -> Option<(&Slot, u8, u64)> {
        self.slots.iter().find_map(|slot| slot.find(address).map(|(bar, offset)| (slot, bar, offset)))
    }

    /// Resets all devices and takes them off the bus. No vCPU may be running.
    #[must_use]
    pub fn into_devices(mut self) -> Vec<PciDevice> {
        self.stop();
        (1..=DEVICES_MAX as u8).filter_map(|slot| self.take(slot)).collect()
    }

    fn stop(&mut self) {
        for slot in self.slots.iter() {
            if let Some(Occupant { notifier, .. }) = &*slot.lock() {
                notifier.disconnect();
            }
        }
        let _ = self.events.send(Event::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Pci {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Hears what devices have to say, until the bus goes away.
fn listen(slots: &[Slot], inbox: &Receiver<Event>) {
    while let Ok(Event::Signalled(index)) = inbox.recv() {
        if let Some(slot) = slots.get(index)
            && let Some(Occupant { function, notifier }) = &mut *slot.lock()
        {
            function.attend(notifier.take());
        }
    }
}

const _: () = assert!(REGISTERS == 0 && DOORBELLS == 1);

#[cfg(test)]
mod enumerate_test;
#[cfg(test)]
mod hostile_test;
#[cfg(test)]
mod hotplug_test;
#[cfg(test)]
pub(crate) mod mock;
#[cfg(test)]
mod transport_test;
