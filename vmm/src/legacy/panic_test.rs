use std::sync::mpsc;

use super::*;

#[test]
fn a_panic_is_reported_once() {
    let (sender, events) = mpsc::channel();
    let mut device = Panic::new(sender);
    let mut known = [0];
    device.read(0, &mut known);
    assert_eq!(known, [3]);
    for value in [0, 0x80, 1, 1, 3, 2] {
        device.write(0, &[value]);
    }
    device.write(0, &[1, 0]);
    assert!(matches!(events.try_recv(), Ok(Event::Panicked { crash_kernel: false })));
    assert!(matches!(events.try_recv(), Ok(Event::Panicked { crash_kernel: true })));
    assert!(events.try_recv().is_err());
}
