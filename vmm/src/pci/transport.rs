//! The virtio registers of a function: features, status, queues (virtio 1.2 sections 2.1, 3.1, 4.1.4.3).
//!
//! Owned by [`super::function::Function`], which tells it of a guest's writes and shows its registers to the
//! guest. Owns the device and its queues' lives.
//!
//! ```text
//!   0 --ACKNOWLEDGE, DRIVER--> --FEATURES_OK--> --DRIVER_OK--> queues run
//!   ^                            | refused: the bit stays 0      |
//!   +------ write of 0: queues drained, device reset ------------+--device fails--> NEEDS_RESET
//! ```
//!
//! Refuses features that are not offered, features without VERSION_1, writes out of order. Bits of the status
//! can only be added, until a reset. Registers of another state than the write is for stay as they are.

use std::sync::Arc;

use strata_virtio::device::Device;
use strata_virtio::limit::Throttle;
use strata_virtio::memory::Memory;
use strata_virtio::spec::{F_VERSION_1, status};

use super::bytes;
use super::layout::{CONFIG_SIZE_MAX, common};
use super::msix::{Line, NO_VECTOR};
use super::queue::QueueRegs;
use super::wiring::Wiring;

/// The transport's own feature: queues can be reset one by one (VIRTIO_F_RING_RESET).
const F_RING_RESET: u64 = 1 << 40;
/// ISR status bits.
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

static FAILED: Throttle = Throttle::new(10, 60);

/// A device and the registers it is driven by.
pub(super) struct Transport {
    id: String,
    pub(super) device: Box<dyn Device>,
    memory: Arc<Memory>,
    vectors: u16,
    status: u8,
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    generation: u8,
    queue_select: u16,
    pub(super) queues: Vec<QueueRegs>,
    pub(super) config: Line,
    isr: u8,
}

impl Transport {
    pub(super) fn new(
        id: String,
        device: Box<dyn Device>,
        memory: Arc<Memory>,
        vectors: u16,
    ) -> std::io::Result<Self> {
        let queues = device.identity().queue_sizes.iter().map(|max| QueueRegs::new(*max)).collect();
        Ok(Self {
            id,
            device,
            memory,
            vectors,
            status: 0,
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            generation: 0,
            queue_select: 0,
            queues,
            config: Line::new(NO_VECTOR)?,
            isr: 0,
        })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn into_parts(self) -> (String, Box<dyn Device>) {
        (self.id, self.device)
    }

    fn offered(&self) -> u64 {
        self.device.identity().features | F_RING_RESET
    }

    /// Every eventfd that interrupts the guest.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Line> {
        let calls = self.queues.iter().filter_map(|queue| queue.running.as_ref().map(|r| &r.call));
        calls.chain(std::iter::once(&self.config))
    }

    /// As [`Transport::lines`].
    pub(super) fn lines_mut(&mut self) -> impl Iterator<Item = &mut Line> {
        let calls = self.queues.iter_mut().filter_map(|queue| queue.running.as_mut().map(|r| &mut r.call));
        calls.chain(std::iter::once(&mut self.config))
    }

    /// The common configuration as the guest reads it now.
    pub(super) fn common(&self) -> [u8; common::LEN] {
        let mut out = [0; common::LEN];
        let mut put = |at: usize, data: &[u8]| bytes::overlay(&mut out, at, data);
        put(common::DEVICE_FEATURE_SELECT, &self.device_select.to_le_bytes());
        put(common::DEVICE_FEATURE, &half(self.offered(), self.device_select).to_le_bytes());
        put(common::DRIVER_FEATURE_SELECT, &self.driver_select.to_le_bytes());
        put(common::DRIVER_FEATURE, &half(self.driver_features, self.driver_select).to_le_bytes());
        put(common::CONFIG_VECTOR, &self.config.vector.to_le_bytes());
        put(common::NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        put(common::STATUS, &[self.status]);
        put(common::GENERATION, &[self.generation]);
        put(common::QUEUE_SELECT, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (section 4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(common::QUEUE_SIZE, &queue.size.to_le_bytes());
            put(common::QUEUE_VECTOR, &queue.vector.to_le_bytes());
            put(common::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
            put(common::QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            put(common::QUEUE_DESC, &queue.desc.to_le_bytes());
            put(common::QUEUE_DRIVER, &queue.driver.to_le_bytes());
            put(common::QUEUE_DEVICE, &queue.device.to_le_bytes());
        } else {
            put(common::QUEUE_VECTOR, &NO_VECTOR.to_le_bytes());
        }
        out
    }

    /// A guest's write to the common configuration, of any width, aligned or not: every register it touches
    /// takes its new bytes, in the order of their offsets.
    pub(super) fn write_common(&mut self, offset: usize, data: &[u8], wiring: &dyn Wiring) {
        let touches = |field, width| bytes::touches(offset, data.len(), field, width);
        let fresh = |this: &Self| {
            let mut block = this.common();
            bytes::overlay(&mut block, offset, data);
            block
        };
        if touches(common::DEVICE_FEATURE_SELECT, 4) {
            self.device_select = bytes::le32(&fresh(self), common::DEVICE_FEATURE_SELECT);
        }
        if touches(common::DRIVER_FEATURE_SELECT, 4) {
            self.driver_select = bytes::le32(&fresh(self), common::DRIVER_FEATURE_SELECT);
        }
        if touches(common::DRIVER_FEATURE, 4) {
            self.accept(bytes::le32(&fresh(self), common::DRIVER_FEATURE));
        }
        if touches(common::CONFIG_VECTOR, 2) {
            self.config.vector = self.vector(bytes::le16(&fresh(self), common::CONFIG_VECTOR));
        }
        if touches(common::STATUS, 1) {
            self.write_status(bytes::le8(&fresh(self), common::STATUS), wiring);
        }
        if touches(common::QUEUE_SELECT, 2) {
            self.queue_select = bytes::le16(&fresh(self), common::QUEUE_SELECT);
        }
        let block = fresh(self);
        let vector = self.vector(bytes::le16(&block, common::QUEUE_VECTOR));
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        if touches(common::QUEUE_VECTOR, 2) {
            queue.vector = vector;
            if let Some(running) = &mut queue.running {
                running.call.vector = vector;
            }
        }
        // Only a queue that is not in use may change (section 4.1.4.3.2).
        if !queue.enabled {
            let size = bytes::le16(&block, common::QUEUE_SIZE);
            if touches(common::QUEUE_SIZE, 2) && size.is_power_of_two() && size <= queue.max {
                queue.size = size;
            }
            if touches(common::QUEUE_DESC, 8) {
                queue.desc = bytes::le64(&block, common::QUEUE_DESC);
            }
            if touches(common::QUEUE_DRIVER, 8) {
                queue.driver = bytes::le64(&block, common::QUEUE_DRIVER);
            }
            if touches(common::QUEUE_DEVICE, 8) {
                queue.device = bytes::le64(&block, common::QUEUE_DEVICE);
            }
        }
        if touches(common::QUEUE_ENABLE, 2) && bytes::le16(&block, common::QUEUE_ENABLE) == 1 {
            self.enable(self.queue_select);
        }
        if touches(common::QUEUE_RESET, 2) && bytes::le16(&block, common::QUEUE_RESET) == 1 {
            self.reset_queue(wiring);
        }
    }

    fn vector(&self, asked: u16) -> u16 {
        if asked < self.vectors { asked } else { NO_VECTOR }
    }

    fn accept(&mut self, value: u32) {
        if self.status & status::FEATURES_OK == 0 {
            let value = u64::from(value);
            match self.driver_select {
                0 => self.driver_features = self.driver_features & !0xffff_ffff | value,
                1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
                // Nothing is offered beyond 64 bits; a driver that sets a bit there gets no FEATURES_OK by the
                // read-back it has to do.
                _ => {}
            }
        }
    }

    fn write_status(&mut self, value: u8, wiring: &dyn Wiring) {
        if value == 0 {
            self.reset(wiring);
            return;
        }
        let added = value & !self.status;
        // NEEDS_RESET is the device's to set.
        self.status |= added & (status::ACKNOWLEDGE | status::DRIVER | status::FAILED);
        if added & status::FEATURES_OK != 0 && self.status & status::DRIVER != 0 && self.features_fit() {
            self.status |= status::FEATURES_OK;
            self.device.set_features(self.driver_features & self.device.identity().features);
        }
        let ready = status::FEATURES_OK;
        if added & status::DRIVER_OK != 0 && self.status & (ready | status::DRIVER_OK) == ready {
            self.status |= status::DRIVER_OK;
            for index in 0..self.queues.len() as u16 {
                self.start(index);
            }
        }
    }

    fn features_fit(&self) -> bool {
        let extra = self.driver_features & !self.offered();
        let fit = extra == 0 && self.driver_features & F_VERSION_1 != 0;
        if !fit && FAILED.allow() {
            let accepted = self.driver_features;
            tracing::warn!(device = self.id, "the driver's features {accepted:#x} are refused");
        }
        fit
    }

    /// The device's share of the features the driver settled on.
    fn device_features(&self) -> u64 {
        self.driver_features & self.device.identity().features
    }

    fn enable(&mut self, index: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(index))
            && self.status & status::FEATURES_OK != 0
        {
            queue.enabled = true;
            self.start(index);
        }
    }

    fn start(&mut self, index: u16) {
        let features = self.device_features();
        let Some(queue) = self.queues.get_mut(usize::from(index)) else { return };
        if self.status & status::DRIVER_OK == 0 || !queue.enabled || queue.running.is_some() {
            return;
        }
        if let Err(error) = queue.start(index, features, self.device.as_mut(), &self.memory) {
            if FAILED.allow() {
                let error = causes(&error);
                tracing::warn!(device = self.id, queue = index, error, "a queue cannot be started");
            }
            self.break_down();
        }
    }

    fn reset_queue(&mut self, wiring: &dyn Wiring) {
        let index = self.queue_select;
        if self.driver_features & F_RING_RESET == 0 || self.status & status::FEATURES_OK == 0 {
            return;
        }
        if let Some(queue) = self.queues.get_mut(usize::from(index)) {
            queue.stop(index, self.device.as_mut(), wiring);
            queue.clear();
        }
    }

    /// Drains and stops everything, back to the state after power-on.
    pub(super) fn reset(&mut self, wiring: &dyn Wiring) {
        for (index, queue) in (0..).zip(&mut self.queues) {
            queue.stop(index, self.device.as_mut(), wiring);
            queue.clear();
        }
        if self.status != 0 {
            self.device.reset();
        }
        self.config.cut(wiring);
        self.config.take();
        self.config.vector = NO_VECTOR;
        self.status = 0;
        self.device_select = 0;
        self.driver_select = 0;
        self.driver_features = 0;
        self.queue_select = 0;
        self.isr = 0;
    }

    /// The device cannot go on: say so, and interrupt the driver if it is there (section 2.1.2).
    pub(super) fn break_down(&mut self) {
        if self.status & (status::FEATURES_OK | status::DRIVER_OK) != 0 {
            self.status |= status::NEEDS_RESET;
            self.config_interrupt();
        }
    }

    /// The device's configuration reads differently: interrupt the driver if it is there.
    pub(super) fn config_changed(&mut self) {
        if self.status & status::DRIVER_OK != 0 {
            self.config_interrupt();
        }
    }

    /// Counts a step of the configuration's generation: one before and one after a change is shown, so that a
    /// driver which read across the change sees another generation (section 2.5.2).
    pub(super) fn step_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    fn config_interrupt(&mut self) {
        self.isr |= ISR_CONFIG;
        // A counter that is full is a signal that waits: nothing is lost.
        let _ = self.config.event.write(1);
    }

    /// The device configuration as the guest reads it.
    pub(super) fn device_config(&mut self) -> Vec<u8> {
        let mut out = vec![0; self.device.identity().config_size.min(CONFIG_SIZE_MAX) as usize];
        self.device.read_config(0, &mut out);
        out
    }

    /// A guest's write to the device configuration.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) {
        let size = self.device.identity().config_size;
        let room = size.saturating_sub(offset) as usize;
        let data = data.get(..room.min(data.len())).unwrap_or_default();
        if !data.is_empty() {
            self.device.write_config(offset, data);
        }
    }

    /// A doorbell rung by an access that came to us.
    pub(super) fn kick(&self, index: u16) {
        if let Some(running) = self.queues.get(usize::from(index)).and_then(|queue| queue.running.as_ref()) {
            let _ = running.kick.write(1);
        }
    }

    /// Reads the ISR status, which clears it (section 4.1.4.5). Queue interrupts show here only while MSI-X is
    /// off (`messages` false): then nothing else takes the signals.
    pub(super) fn read_isr(&mut self, messages: bool) -> u8 {
        let mut isr = std::mem::take(&mut self.isr);
        for running in self.queues.iter().filter_map(|queue| queue.running.as_ref()) {
            if !messages && running.call.take() {
                isr |= ISR_QUEUE;
            }
        }
        isr
    }

    /// The ISR status without clearing it.
    pub(super) fn peek_isr(&self) -> u8 {
        self.isr
    }
}

/// The selected 32 bits of a feature word.
fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// An error with its causes, for a log line.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
