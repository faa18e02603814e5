use super::*;

fn trunk(native: Option<u16>, tags: &[u16]) -> Vlans {
    Vlans::Trunk { native, carried: Set::new(tags.iter().copied()) }
}

#[test]
fn ports_that_are_right() {
    let web = port("name=web,fd=5").unwrap();
    assert_eq!((web.name.as_str(), web.socket, web.vlans), ("web", Socket::Fd(5), Vlans::Access(1)));
    assert_eq!(web.mac, Mac::for_tap("web"));
    assert_eq!((web.isolated, web.guard, web.from_guest), (false, Guard::default(), Rate::default()));
    let all = "name=a-1.b,socket-path=/s,vlan=1,trunk=10+20,mac=02:00:00:00:00:01,isolated,guard=mac+ra,\
               allow-ip=192.0.2.7+2001:db8::/64,\
               tx-bits=1000,tx-burst=50,rx-packets=7";
    let all = port(all).unwrap();
    assert_eq!((all.socket, all.vlans), (Socket::Path("/s".into()), trunk(Some(1), &[1, 10, 20])));
    let addresses = ["192.0.2.7", "2001:db8::/64"].map(|text| address(text).unwrap()).to_vec();
    assert!(all.isolated);
    assert_eq!(all.guard, Guard { mac: Some(all.mac), addresses, dhcp: false, router: true });
    assert_eq!((all.from_guest.bits, all.to_guest.packets), (Some(1000), Some(7)));
    assert_eq!(port("name=x,trunk=4094").unwrap().vlans, trunk(None, &[4094]));
    assert_eq!(port("name=x").unwrap().socket, Socket::Passed);
    let up = uplink("tap=t0,create,trunk=10").unwrap();
    assert_eq!((up.tap.as_deref(), up.create, up.vlans), (Some("t0"), true, trunk(None, &[10])));
}

#[test]
fn ports_that_are_wrong_are_told_why() {
    for (text, why) in [
        ("fd=5", "name"),
        ("name=a/b", "up to 64"),
        ("name=a,fd=5,socket-path=/s", "exclude"),
        ("name=a,fd=-1", "descriptor"),
        ("name=a,fd", "needs a value"),
        ("name=a,vlan=0", "1 to 4094"),
        ("name=a,vlan=4095", "1 to 4094"),
        ("name=a,trunk=10+x", "1 to 4094"),
        ("name=a,vlan=10,trunk=10+20", "either tagged or not"),
        ("name=a,isolated=1", "no value"),
        ("name=a,mac=01:00:00:00:00:00", "group"),
        ("name=a,guard=mac+x", "guard=x"),
        ("name=a,allow-ip=10.0.0.300", "allow-ip=10.0.0.300"),
        ("name=a,tx-bits=0", "limit of 0"),
        ("name=a,rx-burst=5", "means nothing"),
        ("name=a,nonsense", "unknown key nonsense"),
        ("name=a,name=b", "twice"),
        ("name=a,,", "neither"),
    ] {
        let error = port(text).expect_err(text);
        assert!(error.contains(why), "{text}: {error}");
    }
    for text in ["vlan=1", "tap=a,fd=3", "fd=-1", "tap=a,mac=x"] {
        assert!(uplink(text).is_err(), "{text}");
    }
}
