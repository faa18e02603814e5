use super::*;

#[test]
fn every_command() {
    let card = Mac::new([2, 0, 0, 0, 0, 1]);
    let group = Mac::new([1, 0, 0x5e, 0, 0, 1]);
    let mut table = vec![1, 0, 1, 0, 0, 0];
    table.extend(card.bytes());
    table.extend([1, 0, 0, 0]);
    table.extend(group.bytes());
    let cases: [(&[u8], Command); 9] = [
        (&[0, 0, 1], Command::Receive(RxMode::Promiscuous, true)),
        (&[0, 5, 0], Command::Receive(RxMode::NoBroadcast, false)),
        (&table, Command::Addresses { unicast: vec![card], multicast: vec![group] }),
        (&[1, 1, 2, 0, 0, 0, 0, 1], Command::Address(card)),
        (&[2, 0, 42, 0], Command::Vlan(42, true)),
        (&[2, 1, 42, 0], Command::Vlan(42, false)),
        (&[3, 0], Command::Announced),
        (&[4, 0, 2, 0], Command::Pairs(2)),
        (&[5, 0, 2, 0, 0, 0, 0, 0, 0, 0], Command::Offloads(2)),
    ];
    for (bytes, command) in cases {
        assert_eq!(Command::parse(bytes), Ok(command));
        // A driver may leave room behind.
        assert!(Command::parse(&[bytes, &[0xaa; 9]].concat()).is_ok());
        for cut in 0..bytes.len() {
            assert_eq!(Command::parse(&bytes[..cut]), Err(Malformed::Short), "{bytes:?} cut to {cut}");
        }
    }
}

#[test]
fn what_is_refused() {
    let cases: [(&[u8], Malformed); 9] = [
        (&[0, 6, 1], Malformed::Unknown { class: 0, command: 6 }),
        (&[9, 0, 1], Malformed::Unknown { class: 9, command: 0 }),
        (&[4, 1, 1, 0], Malformed::Unknown { class: 4, command: 1 }),
        (&[0, 0, 2], Malformed::Switch(2)),
        (&[1, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], Malformed::Short),
        (&[1, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0], Malformed::Address(Mac::new([1, 0, 0, 0, 0, 1]))),
        (&[1, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Malformed::Address(Mac::BROADCAST)),
        (&[2, 0, 0, 16], Malformed::Vlan(4096)),
        (&[], Malformed::Short),
    ];
    for (bytes, why) in cases {
        assert_eq!(Command::parse(bytes), Err(why), "{bytes:?}");
    }
}
