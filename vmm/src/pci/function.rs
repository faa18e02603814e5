//! One PCI function: configuration space, vectors and virtio registers put together.
//!
//! Called by [`super::Pci`] under the function's lock, once per access of a guest that came to us. After every
//! write the function settles: doorbells, routes and attachments are made what the registers say, and the
//! shadow shows the new state. Answers every access: what is not there reads as zero inside a BAR.

use std::sync::Arc;

use strata_virtio::device::Device;
use strata_virtio::memory::Memory;

use super::PciError;
use super::bytes;
use super::config::{ConfigSpace, WINDOW_DATA};
use super::layout::{
    self, BAR_SIZE, CONFIG_SIZE_MAX, DOORBELLS, ENTRY, ISR, PBA, QUEUES_MAX, REGISTERS, TABLE, VECTORS_MAX,
    common, notify,
};
use super::msix::Msix;
use super::notify::Signals;
use super::shadow::Shadow;
use super::transport::Transport;
use super::wiring::Wiring;

/// Device ID of a console (virtio 1.2 section 5.3).
const CONSOLE: u16 = 3;

/// Where a function's registers are by our choice, and where the shadow has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Offset of the configuration space in the shadow.
    pub(super) config: usize,
    /// Guest-physical address of each BAR at power-on.
    pub(super) bars: [u32; 2],
    /// Offset in the shadow of what the guest sees at the first BAR's home.
    pub(super) registers: usize,
}

/// A function.
pub(super) struct Function {
    place: Place,
    config: ConfigSpace,
    msix: Msix,
    virtio: Transport,
    wiring: Arc<dyn Wiring>,
    shadow: Arc<Shadow>,
    /// Whether the shadow shows the registers at their home.
    shown: bool,
    /// The guest-physical range in which BARs can answer.
    window: std::ops::Range<u64>,
}

impl Function {
    pub(super) fn new(
        id: String,
        device: Box<dyn Device>,
        memory: Arc<Memory>,
        (place, window): (Place, std::ops::Range<u64>),
        (wiring, shadow): (Arc<dyn Wiring>, Arc<Shadow>),
    ) -> Result<Self, PciError> {
        let identity = device.identity();
        let queues = identity.queue_sizes.len();
        if queues == 0 || queues > QUEUES_MAX {
            return Err(PciError::Queues { id, queues });
        }
        // One vector per queue and one for the configuration, where the table has room. A console's two queues
        // share one: setting up a vector costs a guest a dozen exits, which a console never earns back.
        let vectors = if identity.device_id == CONSOLE { 2 } else { (queues as u16 + 1).min(VECTORS_MAX) };
        let mut config = ConfigSpace::new(identity.device_id, vectors, queues as u16, identity.config_size);
        for (bar, address) in (0..).zip(place.bars) {
            config.set_bar(bar, address);
        }
        let virtio = Transport::new(id, device, memory, vectors).map_err(PciError::Eventfd)?;
        let msix = Msix::new(vectors);
        let mut this = Self { place, config, msix, virtio, wiring, shadow, shown: false, window };
        this.paint_config();
        Ok(this)
    }

    /// Disappears from the shadow, before anything that takes time; then resets, and gives back all numbers. The
    /// registers at their home read as `left` from now on.
    pub(super) fn retire(mut self, left: u8) -> (String, Box<dyn Device>) {
        self.shadow.fill(self.place.config, 0x1000, 0xff);
        self.shadow.fill(self.place.registers, BAR_SIZE as usize, left);
        // What is shown no more is not painted either.
        self.window = 0..0;
        self.shown = false;
        self.virtio.reset(self.wiring.as_ref());
        self.msix.control(false, false);
        self.settle();
        self.msix.release(self.wiring.as_ref());
        self.virtio.into_parts()
    }

    /// The device's name.
    pub(super) fn id(&self) -> &str {
        self.virtio.id()
    }

    /// Where `bar` answers now.
    pub(super) fn decoded(&self, bar: u8) -> Option<u64> {
        let address = u64::from(self.config.bar(bar));
        let end = address + u64::from(BAR_SIZE);
        (self.config.decodes() && address >= self.window.start && end <= self.window.end).then_some(address)
    }

    /// A write to configuration space.
    pub(super) fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.write(offset, data);
        let window = self.config.window();
        if bytes::touches(offset, data.len(), WINDOW_DATA, 4) && matches!(window.length, 1 | 2 | 4) {
            let bytes = self.config.window_data();
            let bytes = bytes.get(..window.length as usize).unwrap_or_default();
            self.write_bar(window.bar, u64::from(window.offset), bytes);
        }
        let (enabled, masked) = self.config.msix();
        self.msix.control(enabled, masked);
        self.settle();
        self.load_window();
        self.paint_config();
    }

    /// What a read through the window capability returns. Configuration reads do not come to us, so the value
    /// is there beforehand; for the same reason it does not clear the ISR status.
    fn load_window(&mut self) {
        let window = self.config.window();
        let mut data = [0; 4];
        if window.bar == DOORBELLS && window.offset == ISR {
            data = [self.virtio.peek_isr(), 0, 0, 0];
        } else if matches!(window.length, 1 | 2 | 4)
            && let Some(wanted) = data.get_mut(..window.length as usize)
        {
            self.read_bar(window.bar, u64::from(window.offset), wanted);
        }
        self.config.set_window_data(data);
    }

    /// A read in a BAR that came to us.
    pub(super) fn read_bar(&mut self, bar: u8, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let Ok(at) = usize::try_from(offset) else { return };
        match (bar, offset as u32 & !0xfff) {
            (REGISTERS, 0) => bytes::extract(&self.virtio.common(), at, out),
            (REGISTERS, layout::CONFIG) => {
                let config = self.virtio.device_config();
                bytes::extract(&config, at - layout::CONFIG as usize, out);
            }
            (REGISTERS, TABLE) => {
                for (at, byte) in (at - TABLE as usize..).zip(out) {
                    let entry = self.msix.entry(at / ENTRY).unwrap_or_default();
                    *byte = bytes::le8(&entry, at % ENTRY);
                }
            }
            (DOORBELLS, ISR) if at == ISR as usize && !out.is_empty() => {
                let (messages, _) = self.config.msix();
                let isr = self.virtio.read_isr(messages);
                bytes::overlay(out, 0, &[isr]);
            }
            (DOORBELLS, PBA) => {
                bytes::extract(&self.msix.pending(self.virtio.lines()), at - PBA as usize, out);
            }
            _ => {}
        }
    }

    /// A write in a BAR that came to us.
    pub(super) fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let Ok(at) = usize::try_from(offset) else { return };
        match (bar, offset as u32 & !0xfff) {
            (REGISTERS, 0) if at < common::LEN => {
                let status = self.status();
                self.virtio.write_common(at, data, self.wiring.as_ref());
                self.settle();
                self.paint_common();
                // A reset may bring back a configuration that the driver had changed.
                if status != 0 && self.status() == 0 {
                    self.show_device_config();
                }
            }
            (REGISTERS, layout::CONFIG) => {
                self.virtio.write_config((at - layout::CONFIG as usize) as u32, data);
                self.show_device_config();
            }
            (REGISTERS, TABLE) => {
                let touched = self.msix.write(at - TABLE as usize, data);
                self.settle();
                self.paint_table(touched);
            }
            (DOORBELLS, 0) => {
                // Only where KVM does not answer by itself: see Running::place.
                self.virtio.kick((at as u32 / notify::STRIDE) as u16);
            }
            _ => {}
        }
    }

    /// Takes what the device had to say.
    pub(super) fn attend(&mut self, signals: Signals) {
        if signals.config {
            self.show_device_config();
            self.virtio.config_changed();
        }
        if signals.broken {
            self.virtio.break_down();
        }
        self.paint_common();
    }

    fn status(&self) -> u8 {
        bytes::le8(&self.virtio.common(), common::STATUS)
    }

    /// Makes the outside what the registers say.
    fn settle(&mut self) {
        let wiring = self.wiring.as_ref();
        let doorbells = self.decoded(DOORBELLS);
        for (index, queue) in (0..).zip(&mut self.virtio.queues) {
            if let Some(running) = &mut queue.running {
                let address = doorbells.map(|base| base + index * u64::from(notify::STRIDE));
                running.place(address, wiring);
            }
        }
        self.msix.settle(self.virtio.lines_mut(), wiring);
        let shown = self.decoded(REGISTERS) == Some(u64::from(self.place.bars[0]));
        if shown != self.shown {
            self.shown = shown;
            if shown {
                self.shadow.fill(self.place.registers, BAR_SIZE as usize, 0);
                self.paint_common();
                self.paint_table(0..self.msix.len().into());
                self.paint_device_config();
            } else {
                self.shadow.fill(self.place.registers, BAR_SIZE as usize, 0xff);
            }
        }
    }

    fn paint_config(&mut self) {
        // Not a register: the shadow's page beyond reads as zero, "no extended capabilities".
        if !self.shown {
            self.shadow.fill(self.place.config + layout::CONFIG_LEN, 0x1000 - layout::CONFIG_LEN, 0);
        }
        self.shadow.write(self.place.config, self.config.regs());
    }

    fn paint_common(&self) {
        if self.shown {
            self.shadow.write(self.place.registers, &self.virtio.common());
        }
    }

    fn paint_table(&self, entries: std::ops::Range<usize>) {
        for index in entries {
            if let Some(entry) = self.msix.entry(index).filter(|_| self.shown) {
                self.shadow.write(self.place.registers + TABLE as usize + index * ENTRY, &entry);
            }
        }
    }

    fn paint_device_config(&mut self) {
        if self.shown {
            let mut config = self.virtio.device_config();
            config.truncate(CONFIG_SIZE_MAX as usize);
            self.shadow.write(self.place.registers + layout::CONFIG as usize, &config);
        }
    }

    /// Shows the device's configuration as it is now, if it differs, under a new generation.
    fn show_device_config(&mut self) {
        let now = self.virtio.device_config();
        let mut before = vec![0; now.len()];
        self.shadow.read(self.place.registers + layout::CONFIG as usize, &mut before);
        if self.shown && now == before {
            return;
        }
        self.virtio.step_generation();
        self.paint_common();
        self.paint_device_config();
        self.virtio.step_generation();
        self.paint_common();
    }
}
