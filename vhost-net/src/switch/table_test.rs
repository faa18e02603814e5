use super::*;

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac::new([2, 0, a, b, c, d])
}

#[test]
fn an_address_is_found_where_it_was_last_seen_until_it_is_old() {
    let mut table = Table::new(4, 300);
    assert_eq!(table.find(1, mac(1), 0), None);
    assert_eq!(table.learn(1, mac(1), 2, 10), Learnt::New);
    assert_eq!(table.learn(1, mac(1), 2, 20), Learnt::Known);
    assert_eq!(table.find(1, mac(1), 320), Some(2));
    assert_eq!(table.find(1, mac(1), 321), None);
    assert_eq!(table.learn(1, mac(1), 3, 30), Learnt::Moved);
    assert_eq!(table.find(1, mac(1), 31), Some(3));
    assert_eq!(table.counts, [0, 0, 0, 1]);
}

#[test]
fn vlans_are_worlds_of_their_own() {
    let mut table = Table::new(2, 300);
    table.learn(10, mac(1), 0, 0);
    table.learn(20, mac(1), 1, 0);
    assert_eq!((table.find(10, mac(1), 0), table.find(20, mac(1), 0)), (Some(0), Some(1)));
    assert_eq!(table.find(30, mac(1), 0), None);
}

/// One guest that invents addresses costs itself, not its neighbours.
#[test]
fn a_port_cannot_take_the_room_of_others() {
    let mut table = Table::new(2, 300);
    table.learn(1, mac(0xffff_ffff), 1, 0);
    for number in 0..100_000 {
        let expected = if number < PER_PORT { Learnt::New } else { Learnt::Full };
        assert_eq!(table.learn(1, mac(number), 0, 1), expected);
    }
    assert_eq!(table.entries.len(), PER_PORT as usize + 1);
    assert_eq!(table.find(1, mac(0xffff_ffff), 1), Some(1));
    // Age makes room again.
    assert_eq!(table.learn(1, mac(500_000), 0, 302), Learnt::New);
    assert_eq!(table.counts[0], 1);
}

#[test]
fn a_port_that_is_gone_is_forgotten() {
    let mut table = Table::new(2, 300);
    table.learn(1, mac(1), 0, 0);
    table.learn(1, mac(2), 1, 5);
    table.forget(0);
    assert_eq!(table.find(1, mac(1), 0), None);
    assert_eq!(table.rows(7), [Row { vlan: 1, mac: mac(2), port: 1, age: 2 }]);
    assert_eq!(table.counts, [0, 1]);
}
