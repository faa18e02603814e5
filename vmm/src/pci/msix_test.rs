use super::super::wiring::Recorder;
use super::*;

const MESSAGE: [u8; 12] = [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x31, 0, 0, 0];

fn unmasked(msix: &mut Msix, index: usize) {
    msix.write(index * ENTRY, &MESSAGE);
    msix.write(index * ENTRY + CONTROL, &[0; 4]);
}

#[test]
fn a_vector_fires_only_when_nothing_masks_it() {
    let wiring = Recorder::default();
    let mut msix = Msix::new(2);
    let mut line = Line::new(1).unwrap();
    unmasked(&mut msix, 1);
    for (enabled, masked, attached) in [
        (false, false, false),
        (true, true, false),
        (true, false, true),
        (true, true, false),
        (true, false, true),
    ] {
        msix.control(enabled, masked);
        msix.settle(std::iter::once(&mut line), &wiring);
        assert_eq!(wiring.seen().attached.len(), usize::from(attached), "{enabled} {masked}");
    }
    msix.write(ENTRY + CONTROL, &[1]);
    msix.settle(std::iter::once(&mut line), &wiring);
    assert!(wiring.seen().attached.is_empty());
    line.cut(&wiring);
    msix.release(&wiring);
    assert!(wiring.seen().gsis.is_empty() && wiring.seen().breaches.is_empty());
}

#[test]
fn a_masked_signal_shows_as_pending() {
    let wiring = Recorder::default();
    let mut msix = Msix::new(20);
    let mut lines = [Line::new(9).unwrap(), Line::new(9).unwrap(), Line::new(3).unwrap()];
    msix.control(true, false);
    unmasked(&mut msix, 3);
    msix.settle(lines.iter_mut(), &wiring);
    for line in &lines {
        line.event.write(1).unwrap();
    }
    let bits = msix.pending(lines.iter());
    assert_eq!(bits[..4], [0, 2, 0, 0], "vector 9 is masked, 3 is not");
}

#[test]
fn a_message_that_cannot_be_sent_silences_its_vector_alone() {
    let wiring = Recorder::default();
    let mut msix = Msix::new(3);
    msix.control(true, false);
    let mut lines = [Line::new(0).unwrap(), Line::new(1).unwrap(), Line::new(2).unwrap()];
    for index in 0..3 {
        unmasked(&mut msix, index);
    }
    msix.write(ENTRY + 4, &[0xff; 4]);
    msix.settle(lines.iter_mut(), &wiring);
    assert_eq!(wiring.seen().attached.len(), 2);
    // Put right, it fires.
    msix.write(ENTRY + 4, &[0; 4]);
    msix.settle(lines.iter_mut(), &wiring);
    assert_eq!(wiring.seen().attached.len(), 3);
}

#[test]
fn a_write_across_entries_reaches_each() {
    let mut msix = Msix::new(3);
    assert_eq!(msix.write(ENTRY - 4, &[0; 8]), 0..2);
    assert_eq!(msix.entry(0).unwrap()[CONTROL], 0);
    assert_eq!(msix.entry(1).unwrap()[CONTROL], 1);
    assert_eq!(msix.write(3 * ENTRY - 2, &[0xff; 8]), 2..3);
    assert!(msix.write(3 * ENTRY, &[0xff; 8]).is_empty());
    assert!(msix.entry(3).is_none());
}
