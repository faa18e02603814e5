use super::*;

const OWN: Mac = Mac::new([0x52, 0x54, 0, 1, 2, 3]);
const OTHER: Mac = Mac::new([0x52, 0x54, 0, 9, 9, 9]);

fn guard() -> Guard {
    let addresses = ["192.0.2.7", "198.51.100.0/24", "2001:db8::7"].map(|text| address(text).unwrap());
    Guard { mac: Some(OWN), addresses: addresses.to_vec(), dhcp: true, router: true }
}

fn ethernet(source: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source.bytes(), &kind.to_be_bytes(), payload].concat()
}

fn arp(sender: Mac, address: [u8; 4]) -> Vec<u8> {
    let packet = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &sender.bytes(), &address, &[0; 10]].concat();
    ethernet(OWN, 0x0806, &packet)
}

fn udp(from: u16, to: u16) -> Vec<u8> {
    [from.to_be_bytes(), to.to_be_bytes(), [0, 8], [0, 0]].concat()
}

fn v4(source: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = fragment.to_be_bytes();
    let start = [0x45, 0, 0, 0, 0, 0, high, low, 64, protocol, 0, 0];
    [&start[..], &source, &[192, 0, 2, 1], payload].concat()
}

fn v6(source: &str, next: u8, payload: &[u8]) -> Vec<u8> {
    let source: Ipv6Addr = source.parse().unwrap();
    [&[0x60, 0, 0, 0, 0, 0, next, 255][..], &source.octets(), &[0xff; 16], payload].concat()
}

fn icmp6(kind: u8, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &target.octets()].concat()
}

#[track_caller]
fn assert_frame(frame: &[u8], expected: Result<(), Spoof>) {
    assert_eq!(guard().check(frame), expected);
    // The same behind tags and behind SNAP.
    let (head, rest) = frame.split_at(12);
    let tagged = |tag: &[u8]| [head, tag, rest].concat();
    assert_eq!(guard().check(&tagged(&[0x81, 0, 0, 42])), expected, "tagged");
    assert_eq!(guard().check(&tagged(&[0x88, 0xa8, 0, 42, 0x81, 0, 0, 7])), expected, "tagged twice");
    assert_eq!(guard().check(&tagged(&[0, 99, 0xaa, 0xaa, 3, 0, 0, 0])), expected, "in SNAP");
}

#[test]
fn off_lets_everything_pass() {
    let guard = Guard::default();
    assert!(!guard.is_on());
    for frame in [&[][..], &[0; 3], &ethernet(OTHER, 0x86dd, &[0; 3])] {
        assert_eq!(guard.check(frame), Ok(()));
    }
}

#[test]
fn the_ethernet_source() {
    assert_eq!(guard().check(&ethernet(OWN, 0x88b5, &[0; 46])), Ok(()));
    assert_eq!(guard().check(&ethernet(OTHER, 0x88b5, &[0; 46])), Err(Spoof::Mac));
    assert_eq!(guard().check(&ethernet(OWN, 0x88b5, &[])[..13]), Err(Spoof::Unclear));
    let alone = Guard { mac: Some(OWN), ..Guard::default() };
    assert_eq!(alone.check(&ethernet(OTHER, 0x0800, &[])), Err(Spoof::Mac));
    assert_eq!(alone.check(&ethernet(OWN, 0x0800, &[0; 3])), Ok(()), "what is inside is not looked at");
    // Spanning tree: LLC without SNAP.
    assert_eq!(guard().check(&ethernet(OWN, 38, &[0x42, 0x42, 3, 0, 0, 0])), Ok(()));
}

#[test]
fn arp_says_who_the_nic_is() {
    assert_frame(&arp(OWN, [192, 0, 2, 7]), Ok(()));
    assert_frame(&arp(OWN, [198, 51, 100, 200]), Ok(()));
    assert_frame(&arp(OWN, [0, 0, 0, 0]), Ok(()));
    assert_frame(&arp(OTHER, [192, 0, 2, 7]), Err(Spoof::Mac));
    assert_frame(&arp(OWN, [192, 0, 2, 1]), Err(Spoof::Ip));
    assert_frame(&arp(OWN, [192, 0, 2, 7])[..27], Err(Spoof::Unclear));
    let alone = Guard { mac: Some(OWN), ..Guard::default() };
    assert_eq!(alone.check(&arp(OTHER, [192, 0, 2, 7])), Err(Spoof::Mac));
    assert_eq!(alone.check(&arp(OWN, [192, 0, 2, 1])), Ok(()));
}

#[test]
fn ipv4() {
    let frame = |source, protocol, fragment, payload: &[u8]| {
        ethernet(OWN, 0x0800, &v4(source, protocol, fragment, payload))
    };
    assert_frame(&frame([192, 0, 2, 7], 6, 0, &[]), Ok(()));
    assert_frame(&frame([192, 0, 2, 7], 17, 0, &udp(5000, 53)), Ok(()));
    assert_frame(&frame([192, 0, 2, 8], 6, 0, &[]), Err(Spoof::Ip));
    assert_frame(&frame([0, 0, 0, 0], 17, 0, &udp(68, 67)), Ok(()));
    assert_frame(&frame([0, 0, 0, 0], 17, 0, &udp(5000, 67)), Err(Spoof::Ip));
    assert_frame(&frame([0, 0, 0, 0], 1, 0, &[]), Err(Spoof::Ip));
    assert_frame(&frame([192, 0, 2, 7], 17, 0, &udp(67, 5000)), Err(Spoof::Dhcp));
    assert_frame(&frame([192, 0, 2, 7], 17, 0, &udp(5000, 68)), Err(Spoof::Dhcp));
    // A first fragment too short to show its ports; a later one is nothing without it.
    assert_frame(&frame([192, 0, 2, 7], 17, 0x2000, &[0, 67]), Err(Spoof::Unclear));
    assert_frame(&frame([192, 0, 2, 7], 17, 0x2001, &udp(67, 68)), Ok(()));
    assert_frame(&frame([192, 0, 2, 8], 17, 0x2001, &[]), Err(Spoof::Ip));
    // Options before the ports, and options that are not there.
    let mut options = v4([192, 0, 2, 7], 17, 0, &[&[0; 4][..], &udp(67, 68)].concat());
    options[0] = 0x46;
    assert_frame(&ethernet(OWN, 0x0800, &options), Err(Spoof::Dhcp));
    options[0] = 0x4f;
    assert_frame(&ethernet(OWN, 0x0800, &options), Err(Spoof::Unclear));
    options[0] = 0x44;
    assert_frame(&ethernet(OWN, 0x0800, &options), Err(Spoof::Unclear));
    options[0] = 0x65;
    assert_frame(&ethernet(OWN, 0x0800, &options), Err(Spoof::Unclear));
}

#[test]
fn ipv6() {
    let frame = |source: &str, next, payload: &[u8]| ethernet(OWN, 0x86dd, &v6(source, next, payload));
    let own = "2001:db8::7";
    let local = OWN.link_local().to_string();
    assert_eq!(local, "fe80::5054:ff:fe01:203");
    assert_frame(&frame(own, 6, &[]), Ok(()));
    assert_frame(&frame(&local, 6, &[]), Ok(()));
    assert_frame(&frame("2001:db8::8", 6, &[]), Err(Spoof::Ip));
    assert_frame(&frame("fe80::1", 6, &[]), Err(Spoof::Ip));
    assert_frame(&frame("::", 58, &icmp6(135, own)), Ok(()));
    assert_frame(&frame("::", 6, &[]), Err(Spoof::Ip));
    assert_frame(&frame(own, 17, &udp(546, 547)), Ok(()));
    assert_frame(&frame(own, 17, &udp(547, 5000)), Err(Spoof::Dhcp));
    assert_frame(&frame(own, 17, &udp(5000, 546)), Err(Spoof::Dhcp));
    assert_frame(&frame(&local, 58, &icmp6(134, "::")), Err(Spoof::Router));
    assert_frame(&frame(&local, 58, &icmp6(137, "::")), Err(Spoof::Router));
    assert_frame(&frame(own, 58, &icmp6(136, own)), Ok(()));
    assert_frame(&frame(own, 58, &icmp6(136, "fe80::1")), Err(Spoof::Ip));
    assert_frame(&frame(own, 58, &icmp6(136, own)[..20]), Err(Spoof::Unclear));
    assert_frame(&frame(own, 58, &[]), Err(Spoof::Unclear));
    assert_frame(&ethernet(OWN, 0x86dd, &v6(own, 6, &[])[..39]), Err(Spoof::Unclear));
}

#[test]
fn nothing_hides_behind_extension_headers() {
    let frame = |next, payload: &[u8]| ethernet(OWN, 0x86dd, &v6("2001:db8::7", next, payload));
    let ra = icmp6(134, "::");
    let behind = |head: &[u8]| [head, &ra].concat();
    for kind in [0, 43, 60, 135, 139, 140] {
        assert_frame(&frame(kind, &behind(&[58, 0, 0, 0, 0, 0, 0, 0])), Err(Spoof::Router));
        assert_frame(&frame(kind, &behind(&[58, 200, 0, 0, 0, 0, 0, 0])), Err(Spoof::Unclear));
    }
    assert_frame(&frame(51, &behind(&[58, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])), Err(Spoof::Router));
    // A fragment of neighbour discovery is never right; a later fragment shows nothing and leads to nothing.
    assert_frame(&frame(44, &behind(&[58, 0, 0, 1, 0, 0, 0, 0])), Err(Spoof::Unclear));
    assert_frame(&frame(44, &[58, 0, 0, 1, 0, 0, 0, 0]), Err(Spoof::Unclear));
    assert_frame(&frame(44, &behind(&[58, 0, 0, 9, 0, 0, 0, 0])), Ok(()));
    // The first fragment ends in an extension header: what follows would be in a later one.
    assert_frame(&frame(44, &[60, 0, 0, 1, 0, 0, 0, 0, 58, 0, 0, 0, 0, 0, 0, 0]), Err(Spoof::Unclear));
    let many = |count: usize| {
        behind(&[[0, 0, 0, 0, 0, 0, 0, 0].repeat(count), vec![58, 0, 0, 0, 0, 0, 0, 0]].concat())
    };
    assert_frame(&frame(0, &many(6)), Err(Spoof::Router));
    assert_frame(&frame(0, &many(20)), Err(Spoof::Unclear));
}

#[test]
fn more_tags_than_two_are_not_looked_through() {
    let inner = ethernet(OWN, 0x88b5, &[0; 46]);
    let tag = [0x81, 0, 0, 1];
    let tagged = |count: usize| [&inner[..12], &tag.repeat(count), &inner[12..]].concat();
    assert_eq!(guard().check(&tagged(2)), Ok(()));
    assert_eq!(guard().check(&tagged(3)), Err(Spoof::Unclear));
}

#[test]
fn addresses_as_they_are_written() {
    for (text, inside, outside) in [
        ("192.0.2.7", "192.0.2.7", "192.0.2.6"),
        ("192.0.2.7/24", "192.0.2.255", "192.0.3.0"),
        ("0.0.0.0/0", "255.1.2.3", "::1"),
        ("2001:db8::/64", "2001:db8::1:2:3:4", "2001:db8:0:1::"),
        ("::/0", "::1", "127.0.0.1"),
    ] {
        let guard = Guard { addresses: vec![address(text).unwrap()], ..Guard::default() };
        assert!(guard.has(inside.parse().unwrap()), "{inside} in {text}");
        assert!(!guard.has(outside.parse().unwrap()), "{outside} in {text}");
    }
    for text in ["", "192.0.2", "192.0.2.7/33", "::/129", "192.0.2.7/-1", "192.0.2.7/", "host"] {
        assert!(address(text).is_err(), "{text}");
    }
}
