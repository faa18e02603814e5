use super::*;

type Sent = Arc<Mutex<Vec<(u32, u32)>>>;

struct Recorder(Sent);

impl Messages for Recorder {
    fn send(&self, address: u32, data: u32) -> std::io::Result<()> {
        self.0.lock().unwrap().push((address, data));
        Ok(())
    }
}

fn chip() -> (Interrupts, Sent) {
    let sent = Sent::default();
    (Interrupts::new(Box::new(Recorder(Arc::clone(&sent))), 2, None), sent)
}

fn read(chip: &mut Interrupts, register: u8) -> u32 {
    chip.write(SELECT, &u32::from(register).to_le_bytes());
    let mut data = [0; 4];
    chip.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

fn write(chip: &mut Interrupts, register: u8, value: u32) {
    chip.write(SELECT, &[register]);
    chip.write(WINDOW, &value.to_le_bytes());
}

#[test]
fn registers_read_as_a_chip_of_two_pins() {
    let (mut chip, _) = chip();
    assert_eq!(read(&mut chip, VERSION), 0x0001_0020);
    write(&mut chip, ID, 0x0f00_0000);
    assert_eq!((read(&mut chip, ID), read(&mut chip, ARBITRATION)), (0x0f00_0000, 0x0f00_0000));
    write(&mut chip, 0x10, 0xffff_ffff);
    write(&mut chip, 0x11, 0xffff_ffff);
    // Status and reserved bits stay zero.
    assert_eq!((read(&mut chip, 0x10), read(&mut chip, 0x11)), (0x0001_afff, 0xff00_0000));
    assert_eq!(read(&mut chip, 0x12), 0x0001_0000);
    for absent in [3, 0x0f, 0x14, 0xff] {
        write(&mut chip, absent, 0xffff_ffff);
        assert_eq!(read(&mut chip, absent), 0, "{absent:#x}");
    }
    let mut wide = [0xff; 8];
    chip.read(0x40, &mut wide);
    assert_eq!(wide, [0; 8]);
}

#[test]
fn an_edge_is_sent_as_the_entry_says() {
    let (mut chip, sent) = chip();
    write(&mut chip, 0x13, 0x0300_0000);
    // Vector 0x31, lowest priority, logical destination.
    write(&mut chip, 0x12, 0x0000_0931);
    chip.raise(1);
    assert_eq!(*sent.lock().unwrap(), [(0xfee0_3004, 0x4131)]);
    chip.raise(2);
    chip.raise(u32::MAX);
    assert_eq!(sent.lock().unwrap().len(), 1);
}

#[test]
fn an_edge_on_a_masked_pin_waits_for_the_unmask_and_comes_once() {
    let (mut chip, sent) = chip();
    chip.raise(0);
    chip.raise(0);
    assert!(sent.lock().unwrap().is_empty());
    write(&mut chip, 0x11, 0);
    assert!(sent.lock().unwrap().is_empty());
    write(&mut chip, 0x10, 0x20);
    assert_eq!(*sent.lock().unwrap(), [(0xfee0_0000, 0x4020)]);
    write(&mut chip, 0x10, 0x20);
    assert_eq!(sent.lock().unwrap().len(), 1);
}

#[test]
fn a_guest_reads_from_the_page_what_it_would_read_from_the_chip() {
    let shadow = Arc::new(Shadow::anonymous().unwrap());
    let at = crate::pci::SPARE_PAGE;
    let (_, sent) = chip();
    let chip = Interrupts::new(Box::new(Recorder(sent)), 2, Some((Arc::clone(&shadow), at)));
    let mut device = chip.device();
    let both = |device: &mut Box<dyn BusDevice>, offset: u64| {
        let (mut page, mut own) = ([0; 4], [0; 4]);
        shadow.read(at + offset as usize, &mut page);
        device.read(offset, &mut own);
        (u32::from_le_bytes(page), u32::from_le_bytes(own))
    };
    for (select, value) in
        [(0_u32, 0x0300_0000_u32), (1, 7), (0x10, 0x41), (0x11, 0x0500_0000), (0x12, 0), (0xff, 1)]
    {
        device.write(SELECT, &select.to_le_bytes());
        assert_eq!(both(&mut device, SELECT), (select, select));
        let (page, own) = both(&mut device, WINDOW);
        assert_eq!(page, own, "register {select:#x}");
        device.write(WINDOW, &value.to_le_bytes());
        let (page, own) = both(&mut device, WINDOW);
        assert_eq!(page, own, "register {select:#x} after a write");
    }
}
