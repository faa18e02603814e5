use super::*;

fn trunk(native: Option<u16>) -> Vlans {
    Vlans::Trunk { native, carried: Set::new([10, 20].into_iter().chain(native)) }
}

#[test]
fn a_set_has_what_was_put_in_and_nothing_that_is_no_vlan() {
    let set = Set::new([0, 1, 63, 64, 4094, 4095, 5000]);
    assert_eq!(set.iter().collect::<Vec<_>>(), [1, 63, 64, 4094]);
    assert!(!set.contains(0) && !set.contains(4095) && !set.contains(u16::MAX));
}

#[test]
fn an_access_port_takes_no_vlan_from_the_guest() {
    let access = Vlans::Access(10);
    assert_eq!(access.of(None, false), Some(10));
    assert_eq!(access.of(Some(5 << 13), false), Some(10), "a priority tag");
    for tci in [10, 20, 0xfff, 7 << 13 | 20] {
        assert_eq!(access.of(Some(tci), false), None, "{tci:#x}");
    }
    assert_eq!(access.of(Some(0), true), None, "a tag behind a priority tag");
    assert!(access.carry(10) && !access.carry(20) && !access.carry(0));
    assert!(!access.tagged(10, false) && !access.tagged(10, true));
}

#[test]
fn a_trunk_takes_its_own_by_tag() {
    let plain = trunk(None);
    assert_eq!(plain.of(Some(10), false), Some(10));
    assert_eq!(plain.of(Some(7 << 13 | 20), false), Some(20));
    assert_eq!(plain.of(Some(30), false), None);
    assert_eq!(plain.of(None, false), None, "no native VLAN");
    assert_eq!(plain.of(Some(0), false), None);
    assert!(plain.tagged(10, false));
}

/// The double-tag hop: what goes out untagged must not begin with somebody's own tag.
#[test]
fn a_native_vlan_is_no_way_into_another() {
    let native = trunk(Some(1));
    assert_eq!(native.of(None, false), Some(1));
    assert_eq!(native.of(Some(1), true), Some(1));
    assert_eq!(native.of(Some(0), true), None);
    assert!(!native.tagged(1, false));
    assert!(native.tagged(1, true));
}
