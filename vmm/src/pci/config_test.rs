use super::*;

#[test]
fn only_writable_bits_change() {
    let mut space = ConfigSpace::new(1, 3, 2, 12);
    let before = *space.regs();
    for at in 0..CONFIG_LEN {
        space.write(at, &[0xff]);
        space.write(at, &[0]);
    }
    let writable = [COMMAND, COMMAND + 1, CACHE_LINE, LATENCY, INTERRUPT_LINE];
    for (at, (old, new)) in before.iter().zip(space.regs()).enumerate() {
        if !writable.contains(&at) {
            assert_eq!(old, new, "register {at:#x}");
        }
    }
}

#[test]
fn writes_of_any_width_and_place_are_taken() {
    let mut space = ConfigSpace::new(1, 3, 2, 12);
    // A dword write over command and status changes the command only.
    space.write(COMMAND, &0xffff_ffff_u32.to_le_bytes());
    assert!(space.decodes());
    assert_eq!(bytes::le16(space.regs(), STATUS), STATUS_CAPABILITIES);
    // Across the end.
    space.write(CONFIG_LEN - 1, &[0xff; 8]);
    space.write(usize::MAX, &[0xff; 8]);
    assert_eq!(bytes::le8(space.regs(), CONFIG_LEN - 1), 0);
}

#[test]
fn a_device_without_configuration_has_no_capability_for_it() {
    for (size, wanted) in [(0, 4), (8, 5)] {
        let space = ConfigSpace::new(4, 2, 1, size);
        let mut at = usize::from(bytes::le8(space.regs(), CAPABILITIES));
        let mut kinds = Vec::new();
        while at != 0 {
            if bytes::le8(space.regs(), at) == CAP_VENDOR {
                kinds.push(bytes::le8(space.regs(), at + 3));
            }
            at = bytes::le8(space.regs(), at + 1).into();
        }
        assert_eq!(kinds.len(), wanted);
        assert_eq!(kinds.contains(&DEVICE_CFG), size > 0);
    }
}
