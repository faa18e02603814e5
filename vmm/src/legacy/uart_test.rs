use std::thread;

use super::*;
use crate::legacy::ioapic::Messages;

struct Count(Arc<Mutex<usize>>);

impl Messages for Count {
    fn send(&self, _address: u32, _data: u32) -> io::Result<()> {
        *self.0.lock().unwrap() += 1;
        Ok(())
    }
}

/// An IOAPIC whose UART pin is open, and how often it fired.
fn interrupts() -> (Interrupts, Arc<Mutex<usize>>) {
    let count: Arc<Mutex<usize>> = Arc::default();
    let interrupts = Interrupts::new(Box::new(Count(Arc::clone(&count))), UART_PIN + 1, None);
    let mut chip = interrupts.device();
    chip.write(0, &[0x10 + 2 * UART_PIN as u8]);
    chip.write(0x10, &[0x30, 0, 0, 0]);
    (interrupts, count)
}

fn line() -> (Line, Arc<Mutex<Vec<u8>>>) {
    let output: Arc<Mutex<Vec<u8>>> = Arc::default();
    (Line::new(Arc::clone(&output) as Output), output)
}

fn read(device: &mut dyn BusDevice, offset: u64) -> u8 {
    let mut data = [0];
    device.read(offset, &mut data);
    data[0]
}

#[test]
fn bytes_go_out_and_raise_the_interrupt_when_enabled() {
    let (line, output) = line();
    let (interrupts, count) = interrupts();
    line.reset(interrupts);
    let mut device = line.device();
    device.write(0, b"h");
    assert_eq!(*count.lock().unwrap(), 0);
    device.write(1, &[2]);
    device.write(0, b"i");
    assert_ne!(*count.lock().unwrap(), 0);
    assert_eq!(*output.lock().unwrap(), b"hi");
    // Wide accesses belong to no register.
    device.write(0, b"xx");
    let mut wide = [0; 2];
    device.read(0, &mut wide);
    assert_eq!(wide, [0xff; 2]);
    assert_eq!(output.lock().unwrap().len(), 2);
}

#[test]
fn input_longer_than_the_fifo_waits_for_the_guest() {
    let (line, _) = line();
    let mut device = line.device();
    let input: Vec<u8> = (0..=255).collect();
    let feeder = thread::spawn({
        let (line, input) = (line.clone(), input.clone());
        move || line.feed(&input)
    });
    let mut seen = Vec::new();
    while seen.len() < input.len() {
        if read(&mut *device, 5) & 1 != 0 {
            seen.push(read(&mut *device, 0));
        } else {
            thread::yield_now();
        }
    }
    feeder.join().unwrap();
    assert_eq!(seen, input);
}

#[test]
fn a_reset_forgets_the_guests_settings() {
    let (line, output) = line();
    let mut device = line.device();
    device.write(7, &[0x5a]);
    device.write(1, &[3]);
    line.feed(b"old");
    line.reset(interrupts().0);
    assert_eq!((read(&mut *device, 7), read(&mut *device, 1), read(&mut *device, 5) & 1), (0, 0, 0));
    device.write(0, b"!");
    assert_eq!(*output.lock().unwrap(), b"!");
}
