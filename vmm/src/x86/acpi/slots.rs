//! The slots of the PCI bus, for a kernel to be told of devices that come and go (ACPI 6.4, 6.3).
//!
//! Part of the DSDT. Nothing here is run while a kernel boots: it finds the objects, and reads addresses that are plain
//! values; whether there is a device it sees in configuration space, so there is no `_STA`, and the registers
//! ([`crate::legacy::ged`]) are read when there is something to tell. Written for all slots, whether in use or not.
//!
//! A slot is two objects: function 0, which is told, and function 1, which does not exist but has the method by which
//! the slot is given back. Linux calls the method of any function it finds there, but makes a "hotplug slot" of one whose
//! first object has it. It would show those to user space, where udev names NICs by them: every guest's `enp0s3` would be
//! `ens3` from one start to the next.

use acpi_tables::Aml;
use acpi_tables::aml::{
    And, Arg, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Method,
    MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, Scope, Store, ZERO,
};

use crate::legacy::ged;
use crate::pci::DEVICES_MAX;
use crate::x86::layout;

/// The registers, by the names that the DSDT's other parts use.
pub(super) const CHECK: &str = "CHCK";
pub(super) const EJECT: &str = "EJCT";
/// Notifications (ACPI 6.4, table 5-163).
pub(super) const DEVICE_CHECK: u8 = 1;
pub(super) const EJECT_REQUEST: u8 = 3;

/// The registers, in `\_SB_`, where every method of it sees them.
pub(super) fn registers(aml: &mut Vec<u8>) {
    let (offset, length) = (layout::GED_PORT, ged::PORTS as u8);
    let region = OpRegion::new("GEDR".into(), OpRegionSpace::SystemIO, &offset, &length);
    let fields = vec![FieldEntry::Named(*b"CHCK", 32), FieldEntry::Named(*b"EJCT", 32)];
    let (access, lock) = (FieldAccessType::DWord, FieldLockRule::NoLock);
    let field = Field::new("GEDR".into(), access, lock, FieldUpdateRule::Preserve, fields);
    Scope::new("\\_SB_".into(), vec![&region, &field]).to_aml_bytes(aml);
}

/// The slots, and the method that tells some of them something.
pub(super) fn slots(aml: &mut Vec<u8>) {
    let mut body = Vec::new();
    let (which, what) = (Arg(0), Arg(1));
    let mut telling = Vec::new();
    for slot in 1..=DEVICES_MAX as u32 {
        let bit = 1_u32 << slot;
        let (told, gives) = (name(b'S', slot), name(b'E', slot));
        Device::new(told.as_str().into(), vec![&Name::new("_ADR".into(), &(slot << 16))])
            .to_aml_bytes(&mut body);
        let give = Store::new(&Path::new(EJECT), &bit).bytes();
        let eject = Method::new("_EJ0".into(), 1, false, vec![&Raw(give)]).bytes();
        let address = Name::new("_ADR".into(), &(slot << 16 | 1));
        Device::new(gives.as_str().into(), vec![&address, &Raw(eject)]).to_aml_bytes(&mut body);
        let (is_it, notify) =
            (And::new(&ZERO, &which, &bit).bytes(), Notify::new(&Path::new(&told), &what).bytes());
        telling.push(Raw(If::new(&Raw(is_it), vec![&Raw(notify)]).bytes()));
    }
    let telling = telling.iter().map(|part| part as &dyn Aml).collect();
    Method::new("TELL".into(), 2, false, telling).to_aml_bytes(&mut body);
    Scope::new("\\_SB_.PCI0".into(), vec![&Raw(body)]).to_aml_bytes(aml);
}

/// Tells the slots whose bits `which` has `what`.
pub(super) fn tell(which: &dyn Aml, what: u8) -> impl Aml {
    Raw(MethodCall::new("\\_SB_.PCI0.TELL".into(), vec![which, &what]).bytes())
}

fn name(kind: u8, slot: u32) -> String {
    format!("{}{slot:02}_", char::from(kind))
}

/// What has been written out already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}

impl<T: Aml> Bytes for T {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.to_aml_bytes(&mut bytes);
        bytes
    }
}

#[cfg(test)]
#[path = "slots_test.rs"]
mod slots_test;
