//! One life of the hardware: a VM, its buses, its vCPU threads. A reboot ends it and builds the next over the same
//! memory and devices.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use strata_config::Halt;

use super::parts::Parts;
use super::shared::Meters;
use super::{Event, MachineError};
use crate::bus::BusDevice;
use crate::kvm::gate::Gate;
use crate::kvm::irq::{Irqchip, MsiRoutes};
use crate::kvm::kick;
use crate::kvm::run::{self, Exits, Spaces};
use crate::kvm::stats::Stats;
use crate::kvm::vcpu;
use crate::kvm::vm::{self, Vm};
use crate::legacy::ged::{self, Reasons};
use crate::legacy::ioapic::{self, Interrupts};
use crate::legacy::panic::Panic;
use crate::legacy::power::{self, Power};
use crate::legacy::uart::{self, Line};
use crate::memory::Ram;
use crate::pci::{Pci, PciDevice, PciWindows, SPARE_PAGE, Shadow};
use crate::x86::{acpi, layout, smbios};

/// How long vCPUs get to leave the guest and whatever device they are in.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often they are reminded meanwhile.
const REMINDER: Duration = Duration::from_millis(100);

/// What outlives a board.
pub(super) struct Keep<'a> {
    pub(super) parts: &'a Parts,
    pub(super) ram: &'a Ram,
    pub(super) shadow: &'a Arc<Shadow>,
    pub(super) serial: Option<&'a Line>,
    pub(super) events: &'a Sender<Event>,
}

/// A running or paused machine's hardware.
pub(super) struct Board {
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
    pub(super) interrupts: Interrupts,
    pub(super) reasons: Reasons,
    pub(super) pci: Arc<Pci>,
    // Last: threads and devices are gone before the VM is.
    _vm: Vm,
}

/// The PCI bus as seen from the memory bus: one for each range.
struct Ecam(Arc<Pci>);
struct Bars(Arc<Pci>, u64);

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.ecam_read(offset, data);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.ecam_write(offset, data);
    }
}

impl BusDevice for Bars {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.mmio_read(self.1 + offset, data);
    }
    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.mmio_write(self.1 + offset, data);
    }
}

impl Board {
    /// Builds it all, loads the kernel, and has the vCPUs wait at the gate.
    pub(super) fn build(keep: &Keep<'_>, devices: Vec<PciDevice>) -> Result<(Self, Meters), MachineError> {
        let Keep { parts, ram, shadow, serial, events } = keep;
        let (cpus, topology) = (parts.machine.cpus, parts.machine.vcpu.topology);
        let mut vm = Vm::new(&parts.host, Arc::clone(&ram.memory))?;
        if parts.machine.vcpu.halt == Halt::Guest {
            vm.let_halt()?;
        }
        vm.add_shadow(layout::SHADOW.start, layout::IOAPIC.into(), Arc::clone(shadow))?;
        let gate = Arc::new(Gate::new(cpus.into()));
        let wiring = Arc::new(MsiRoutes::new(Arc::clone(vm.fd()), Irqchip::Split));
        let windows = PciWindows { ecam_base: layout::ECAM, mmio32: layout::PCI32 };
        let pci = Arc::new(Pci::new(wiring, &windows, &ram.memory, Arc::clone(shadow), devices)?);
        // After the bus, which fills all of the shadow.
        let (pins, page) = (layout::ioapic_pins(serial.is_some()), (Arc::clone(shadow), SPARE_PAGE));
        let interrupts = Interrupts::new(Box::new(Arc::clone(vm.fd())), pins, Some(page));

        let mut spaces = Spaces::default();
        spaces.ports.attach(
            layout::PM_PORT.into(),
            power::PORTS,
            Box::new(Power::new(Arc::clone(&gate), (*events).clone())),
        )?;
        let reasons = Reasons::default();
        spaces.ports.attach(layout::GED_PORT.into(), ged::PORTS, reasons.device((*events).clone()))?;
        spaces.ports.attach(layout::PANIC_PORT.into(), 1, Box::new(Panic::new((*events).clone())))?;
        if let Some(line) = serial {
            line.reset(interrupts.clone());
            spaces.ports.attach(layout::UART_PORT.into(), uart::PORTS, line.device())?;
        }
        spaces.mmio.attach(layout::IOAPIC.into(), ioapic::SIZE, interrupts.device())?;
        spaces.mmio.attach(layout::ECAM, layout::ECAM_SIZE, Box::new(Ecam(Arc::clone(&pci))))?;
        for window in [windows.registers(), windows.mmio32.clone()] {
            let bars = Box::new(Bars(Arc::clone(&pci), window.start));
            spaces.mmio.attach(window.start, window.end - window.start, bars)?;
        }

        let facts = acpi::Facts {
            apic_ids: (0..cpus).map(|index| topology.apic_id(index) as u8).collect(),
            serial: serial.is_some(),
            windows: vec![windows.mmio32.clone(), windows.registers()],
        };
        let rsdp = acpi::write(&ram.memory, &facts)?;
        smbios::write(&ram.memory, &parts.identity)?;
        let start = parts.payload.load(&ram.memory, ram.size, rsdp)?;

        let mut cpuid = None;
        let mut vcpus = Vec::new();
        let mut meters = Meters { vm: open_stats(&**vm.fd()), vcpus: Vec::new() };
        for index in 0..cpus {
            let fd = vm.vcpu(topology.apic_id(index))?;
            let cpuid = cpuid.get_or_insert_with(|| match fd.get_tsc_khz() {
                Ok(khz) if khz > 0 => parts.cpuid.with_timing(khz),
                _ => parts.cpuid.clone(),
            });
            vcpu::prepare(&fd, index, cpuid, (index == 0).then_some(start))?;
            let exits = Arc::new(Exits::default());
            meters.vcpus.push((open_stats(&fd), Arc::clone(&exits)));
            vcpus.push((index, fd, exits));
        }
        if let Some((_, first, _)) = vcpus.first() {
            pre_fault(first, keep);
        }
        let mut board = Self { gate, threads: Vec::new(), interrupts, reasons, pci, _vm: vm };
        let spaces = Arc::new(spaces);
        for (index, fd, exits) in vcpus {
            let cpu = parts.machine.vcpu.pin.get(usize::from(index)).copied();
            let thread = board.spawn((index, cpu), fd, exits, Arc::clone(&spaces), (*events).clone());
            match thread {
                Ok(thread) => board.threads.push(thread),
                Err(source) => {
                    // The missing ones never come to the gate.
                    (board.threads.len()..cpus.into()).for_each(|_| board.gate.leave());
                    board.end();
                    return Err(MachineError::System { doing: format!("start vCPU {index}"), source });
                }
            }
        }
        Ok((board, meters))
    }

    fn spawn(
        &self,
        (index, cpu): (u8, Option<usize>),
        mut fd: VcpuFd,
        exits: Arc<Exits>,
        spaces: Arc<Spaces>,
        events: Sender<Event>,
    ) -> std::io::Result<JoinHandle<()>> {
        let gate = Arc::clone(&self.gate);
        thread::Builder::new().name(format!("vcpu{index}")).spawn(move || {
            let pinned = cpu.map_or(Ok(()), pin);
            let end = match pinned {
                Ok(()) => run::run(&mut fd, &spaces, &gate, &exits),
                Err(why) => {
                    gate.leave();
                    run::End::Failed(why)
                }
            };
            match end {
                run::End::SentHome => {}
                end => {
                    let _ = events.send(Event::VcpuEnded { index, end });
                }
            }
        })
    }

    /// Lets the vCPUs run.
    pub(super) fn open(&self) {
        self.gate.open();
    }

    /// Holds the vCPUs; false: they did not come in time.
    #[must_use]
    pub(super) fn close(&self) -> bool {
        self.gate.close();
        self.settle()
    }

    /// Presses the power button.
    pub(super) fn press_power_button(&self) {
        self.reasons.press();
        self.interrupts.raise(layout::GED_PIN);
    }

    /// Ends all vCPU threads; `None` if some did not come.
    fn end(&mut self) -> Option<()> {
        self.gate.end();
        if !self.settle() {
            return None;
        }
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has ended too.
            let _ = thread.join();
        }
        Some(())
    }

    fn settle(&self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.threads.iter().for_each(kick::kick);
            if self.gate.wait_standing(REMINDER) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
        }
    }

    /// Ends this life; what is left are its devices, reset. `None`: a vCPU hangs inside a device.
    pub(super) fn dismantle(mut self) -> Option<Vec<PciDevice>> {
        self.end()?;
        let Self { pci, .. } = self;
        Some(Arc::into_inner(pci)?.into_devices())
    }
}

/// Keeps this thread on one CPU of the host.
fn pin(cpu: usize) -> Result<(), String> {
    let mut set = CpuSet::new();
    let pinned = set.set(cpu).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    pinned.map_err(|errno| {
        format!("it cannot stay on CPU {cpu}: {errno}; vcpu.pin takes CPUs that are online and in this machine's cgroup")
    })
}

fn open_stats(of: &impl std::os::fd::AsRawFd) -> Option<Stats> {
    Stats::open(of).inspect_err(|error| tracing::debug!(%error, "no KVM statistics")).ok()
}

/// Has KVM map what the kernel touches first, or all of memory where the machine file wants that.
fn pre_fault(vcpu: &VcpuFd, keep: &Keep<'_>) {
    let Keep { parts, ram, .. } = keep;
    let mut ranges = if parts.machine.memory.prefault {
        ram.memory.regions().map(|region| (region.gpa(), region.size())).collect()
    } else {
        parts.payload.touched(ram.size)
    };
    ranges.push((layout::SHADOW.start, layout::SHADOW.end - layout::SHADOW.start));
    ranges.push((layout::IOAPIC.into(), ioapic::SIZE));
    for (gpa, size) in ranges {
        if let Err(error) = vm::pre_fault(vcpu, gpa, size) {
            if parts.machine.memory.prefault {
                tracing::warn!(
                    "memory is allocated but not mapped for the guest: {error} (needs Linux 6.11)"
                );
            }
            return;
        }
    }
}
