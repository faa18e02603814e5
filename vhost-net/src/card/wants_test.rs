use super::*;

const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
const GROUP: Mac = Mac::new([1, 0, 0x5e, 0, 0, 1]);

fn compiled(modes: &[RxMode]) -> Option<Filter> {
    let mut wants = Wants { unicast: vec![OTHER], multicast: vec![GROUP], ..Wants::default() };
    modes.iter().for_each(|mode| wants.set(*mode, true));
    wants.filter(OWN)
}

#[test]
fn unicast_addresses_come_first_and_everyone_is_among_them() {
    let filter = compiled(&[]).unwrap();
    assert_eq!(filter.addresses, [OWN, OTHER, Mac::BROADCAST, GROUP]);
    assert!(!filter.all_multicast);
}

#[test]
fn modes_open_and_close() {
    assert_eq!(compiled(&[RxMode::Promiscuous]), None);
    assert_eq!(compiled(&[RxMode::AllUnicast]), None);
    assert!(compiled(&[RxMode::AllMulticast]).unwrap().all_multicast);
    assert_eq!(compiled(&[RxMode::NoUnicast]).unwrap().addresses, [Mac::BROADCAST, GROUP]);
    let filter = compiled(&[RxMode::NoMulticast, RxMode::AllMulticast]).unwrap();
    assert_eq!(filter.addresses, [OWN, OTHER, Mac::BROADCAST]);
    assert!(!filter.all_multicast);
}

#[test]
fn a_filter_for_nothing_is_not_no_filter() {
    let modes = [RxMode::NoUnicast, RxMode::NoMulticast, RxMode::NoBroadcast];
    assert_eq!(compiled(&modes).unwrap().addresses.len(), 1);
}
