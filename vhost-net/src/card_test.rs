use super::*;

const OWN: Mac = Mac::new([2, 0, 0, 0, 0, 1]);
const OTHER: Mac = Mac::new([2, 0, 0, 0, 0, 2]);
const GROUP: Mac = Mac::new([1, 0, 0x5e, 0, 0, 1]);

fn compiled(modes: Modes) -> Option<Filter> {
    compile(&State {
        mac: OWN,
        features: 0,
        modes,
        unicast: vec![OTHER],
        multicast: vec![GROUP],
        pairs: 1,
        control: true,
        started: Vec::new(),
        announce: false,
    })
}

#[test]
fn unicast_addresses_come_first_and_everyone_is_among_them() {
    let filter = compiled(Modes::default()).unwrap();
    assert_eq!(filter.addresses, [OWN, OTHER, Mac::BROADCAST, GROUP]);
    assert!(!filter.all_multicast);
}

#[test]
fn modes_open_and_close() {
    assert_eq!(compiled(Modes { promiscuous: true, ..Modes::default() }), None);
    assert_eq!(compiled(Modes { all_unicast: true, ..Modes::default() }), None);
    assert!(compiled(Modes { all_multicast: true, ..Modes::default() }).unwrap().all_multicast);
    let none = Modes { no_unicast: true, ..Modes::default() };
    assert_eq!(compiled(none).unwrap().addresses, [Mac::BROADCAST, GROUP]);
    let none = Modes { no_multicast: true, all_multicast: true, ..Modes::default() };
    let filter = compiled(none).unwrap();
    assert_eq!(filter.addresses, [OWN, OTHER, Mac::BROADCAST]);
    assert!(!filter.all_multicast);
}

#[test]
fn a_filter_for_nothing_is_not_no_filter() {
    let modes = Modes { no_unicast: true, no_multicast: true, no_broadcast: true, ..Modes::default() };
    assert_eq!(compiled(modes).unwrap().addresses.len(), 1);
}
