use std::sync::mpsc;

use super::*;

#[test]
fn only_the_documented_values_end_the_machine() {
    let (sender, events) = mpsc::channel();
    let gate = Arc::new(Gate::new(1));
    gate.open();
    let mut device = Power::new(Arc::clone(&gate), sender);
    for (offset, value) in [(0, 0), (0, 2), (1, S5 << 2), (1, 0x20), (1, 0x20 | 4 << 2), (2, 0xff)] {
        device.write(offset, &[value]);
    }
    device.write(0, &[1, 0]);
    assert!(events.try_recv().is_err() && !gate.is_closed());
    device.write(0, &[1]);
    assert!(matches!(events.try_recv(), Ok(Event::Reset)) && gate.is_closed());
    device.write(1, &[0x20 | S5 << 2]);
    assert!(matches!(events.try_recv(), Ok(Event::PowerOff)));
}
