use super::*;

fn passes(filter: &VlanFilter, tpid: u16, id: u16) -> bool {
    filter.passes(|offset, out| {
        assert_eq!(offset, 12);
        out[..2].copy_from_slice(&tpid.to_be_bytes());
        out[2..].copy_from_slice(&(id | 0x6000).to_be_bytes());
        true
    })
}

#[test]
fn off_until_used_then_only_what_was_named() {
    let filter = VlanFilter::default();
    assert!(passes(&filter, 0x8100, 7));
    assert!(filter.set(42, true));
    assert!(!passes(&filter, 0x8100, 7));
    assert!(!passes(&filter, 0x88a8, 7));
    assert!(passes(&filter, 0x8100, 42));
    assert!(passes(&filter, 0x0800, 7), "untagged");
    assert!(filter.set(42, false));
    assert!(!passes(&filter, 0x8100, 42));
    filter.clear();
    assert!(passes(&filter, 0x8100, 7));
}

#[test]
fn there_are_4096() {
    let filter = VlanFilter::default();
    assert!(filter.set(4095, true));
    assert!(!filter.set(4096, true));
    assert!(!filter.set(u16::MAX, true));
}

#[test]
fn a_frame_too_short_for_a_tag_passes() {
    let filter = VlanFilter::default();
    filter.set(1, true);
    assert!(filter.passes(|_, _| false));
}
