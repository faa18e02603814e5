//! The differentiated definition block: the devices a kernel cannot find by itself.

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, Device, EISAName, Equal, IO, If, Interrupt, Local,
    Memory32Fixed, Method, Name, Notify, Package, Path, ResourceTemplate, Scope, Store, ZERO,
};

use super::{Facts, slots};
use crate::legacy::{ged, power};
use crate::x86::layout;

const GED_GSI: u32 = layout::IOAPIC_GSI + layout::GED_PIN;
const UART_GSI: u32 = layout::IOAPIC_GSI + layout::UART_PIN;
/// Notification of a button press (ACPI 6.4, table 5-166).
const PRESSED: u8 = 0x80;
/// Present, enabled, shown, working (ACPI 6.4, 6.3.7).
const HERE: u8 = 0x0f;

pub(super) fn definition_block(facts: &Facts) -> Vec<u8> {
    let mut aml = Vec::new();
    // The value the kernel writes to the sleep control register to power off (ACPI 6.4, 7.4.2).
    let sleep_type = power::S5;
    Name::new(Path::new("\\_S5_"), &Package::new(vec![&sleep_type])).to_aml_bytes(&mut aml);
    let bus = !facts.windows.is_empty();
    slots::registers(&mut aml);
    if bus {
        host_bridge(&facts.windows, &mut aml);
        slots::slots(&mut aml);
    }
    // Its method calls one of the bus's, which has to be there first.
    event_device(bus, &mut aml);
    panic_device(&mut aml);
    if facts.serial {
        com1(&mut aml);
    }
    aml
}

/// Adds a device under `\_SB_`, made of named values and, if there is one, a method.
fn device(name: &str, values: &[(&str, &dyn Aml)], method: Option<&dyn Aml>, aml: &mut Vec<u8>) {
    let values: Vec<Name> = values.iter().map(|(name, value)| Name::new(Path::new(name), *value)).collect();
    let mut body: Vec<&dyn Aml> = values.iter().map(|value| value as &dyn Aml).collect();
    body.extend(method);
    let device = Device::new(Path::new(name), body);
    Scope::new(Path::new("\\_SB_"), vec![&device]).to_aml_bytes(aml);
}

/// The button, and the event device that reports it and what becomes of slots (ACPI 6.4, 4.8.2.2.1 and 5.6.9).
fn event_device(bus: bool, aml: &mut Vec<u8>) {
    device("PWRB", &[("_HID", &EISAName::new("PNP0C0C"))], None, aml);
    let interrupt = Interrupt::new(true, true, false, false, GED_GSI);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let (what, bit, said) = (Local(0), ged::BUTTON, Path::new(slots::CHECK));
    let look = Store::new(&what, &said);
    let (button, pressed) = (Path::new("\\_SB_.PWRB"), PRESSED);
    let (is_pressed, notify) = (And::new(&ZERO, &what, &bit), Notify::new(&button, &pressed));
    let press = If::new(&is_pressed, vec![&notify]);
    let asked = Path::new(slots::EJECT);
    let let_go = slots::tell(&asked, slots::EJECT_REQUEST);
    let changed = slots::tell(&what, slots::DEVICE_CHECK);
    let mut tell: Vec<&dyn Aml> = vec![&look, &press];
    if bus {
        // What goes is told before what comes, which may be in its place.
        tell.extend([&let_go as &dyn Aml, &changed]);
    }
    let (source, line) = (Arg(0), GED_GSI);
    let ours = Equal::new(&source, &line);
    let body = If::new(&ours, tell);
    let event = Method::new(Path::new("_EVT"), 1, true, vec![&body]);
    device("GED_", &[("_HID", &"ACPI0013"), ("_UID", &ZERO), ("_CRS", &resources)], Some(&event), aml);
}

/// The device QEMU has and Linux has a driver for.
fn panic_device(aml: &mut Vec<u8>) {
    let port = IO::new(layout::PANIC_PORT, layout::PANIC_PORT, 1, 1);
    let resources = ResourceTemplate::new(vec![&port]);
    device("PEVT", &[("_HID", &"QEMU0001"), ("_STA", &HERE), ("_CRS", &resources)], None, aml);
}

fn com1(aml: &mut Vec<u8>) {
    let ports = IO::new(layout::UART_PORT, layout::UART_PORT, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, UART_GSI);
    let resources = ResourceTemplate::new(vec![&ports, &interrupt]);
    device("COM1", &[("_HID", &EISAName::new("PNP0501")), ("_UID", &ZERO), ("_CRS", &resources)], None, aml);
}

fn host_bridge(windows: &[Range<u64>], aml: &mut Vec<u8>) {
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let windows: Vec<_> = windows
        .iter()
        .filter(|window| !window.is_empty())
        .map(|window| {
            let (first, last) = (window.start as u32, (window.end - 1) as u32);
            AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
        })
        .collect();
    let mut resources: Vec<&dyn Aml> = vec![&bus];
    resources.extend(windows.iter().map(|window| window as &dyn Aml));
    let resources = ResourceTemplate::new(resources);
    let (hid, cid) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let values: [(&str, &dyn Aml); 6] = [
        ("_HID", &hid),
        ("_CID", &cid),
        ("_UID", &ZERO),
        ("_SEG", &ZERO),
        ("_BBN", &ZERO),
        ("_CRS", &resources),
    ];
    device("PCI0", &values, None, aml);

    // PCI Firmware 3.3, 4.1.2: ECAM is also a motherboard resource.
    let ecam = Memory32Fixed::new(true, layout::ECAM as u32, layout::ECAM_SIZE as u32);
    let resources = ResourceTemplate::new(vec![&ecam]);
    device("ECAM", &[("_HID", &EISAName::new("PNP0C02")), ("_UID", &ZERO), ("_CRS", &resources)], None, aml);
}
