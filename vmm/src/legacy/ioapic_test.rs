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
    (Interrupts::new(Box::new(Recorder(Arc::clone(&sent))), 2), sent)
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
