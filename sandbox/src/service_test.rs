use std::os::unix::net::UnixDatagram;

use std::time::Duration;

use std::os::fd::AsFd;

use super::{Notify, STORED, connect, interval, named, one_line};

fn said(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 256];
    let length = socket.recv(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

#[test]
fn a_state_is_one_message_of_assignments() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let notify = Notify { socket: Some(connect(path.as_os_str()).unwrap()), watched: None };
    // The path is not needed once it is connected: the sandbox has none.
    std::fs::remove_file(&path).unwrap();
    notify.ready("two\nlines");
    assert_eq!(said(&manager), "READY=1\nSTATUS=two lines");
    notify.status("busy");
    assert_eq!(said(&manager), "STATUS=busy");
    notify.stopping("asked to");
    assert_eq!(said(&manager), "STOPPING=1\nSTATUS=asked to");
    notify.alive();
    assert_eq!(said(&manager), "WATCHDOG=1");
}

#[test]
fn a_watchdog_is_fed_twice_in_its_time_and_only_by_whom_it_watches() {
    let text = |text: &str| Some(text.to_owned());
    let us = std::process::id().to_string();
    assert_eq!(interval(text("60000000"), text(&us)), Some(Duration::from_secs(30)));
    assert_eq!(interval(text("60000000"), None), Some(Duration::from_secs(30)));
    assert_eq!(interval(text("60000000"), text("1")), None);
    assert_eq!(interval(text("0"), None), None);
    assert_eq!(interval(text("soon"), None), None);
    assert_eq!(interval(None, text(&us)), None);
}

#[test]
fn abstract_addresses_work_and_relative_paths_do_not() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("strata-notify-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&address).unwrap();
    let notify = Notify { socket: Some(connect(format!("@{name}").as_ref()).unwrap()), watched: None };
    notify.status("here");
    assert_eq!(said(&manager), "STATUS=here");
    assert!(connect("notify".as_ref()).is_err());
    assert!(connect("/does/not/exist".as_ref()).is_err());
}

#[test]
fn nobody_is_told_anything_without_a_manager() {
    let nobody = Notify::default();
    assert!(!nobody.is_connected());
    nobody.ready("");
    // Nor by one that has gone.
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    drop(theirs);
    Notify { socket: Some(ours), watched: None }.stopping("");
}

#[test]
fn a_status_cannot_smuggle_in_another_assignment() {
    assert_eq!(one_line("a\nMAINPID=1"), "a MAINPID=1");
}

#[test]
fn descriptors_are_stored_by_name_and_told_from_sockets_by_it() {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    use std::os::fd::{AsRawFd, RawFd};

    let (ours, manager) = UnixDatagram::pair().unwrap();
    let notify = Notify { socket: Some(ours), watched: None };
    let (one, other) = UnixDatagram::pair().unwrap();
    notify.store("tap", &[one.as_fd(), other.as_fd()]);
    let mut space = nix::cmsg_space!([RawFd; 2]);
    let mut text = [0; 256];
    let mut parts = [std::io::IoSliceMut::new(&mut text)];
    let got =
        recvmsg::<()>(manager.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC).unwrap();
    let rights = got.cmsgs().unwrap().next().unwrap();
    assert!(matches!(rights, ControlMessageOwned::ScmRights(fds) if fds.len() == 2));
    let length = got.bytes;
    assert_eq!(&text[..length], b"FDSTORE=1\nFDNAME=stored-tap\nFDPOLL=0");
    notify.forget("tap");
    assert_eq!(said(&manager), "FDSTOREREMOVE=1\nFDNAME=stored-tap");
    // Nobody keeps anything for a process that no manager started.
    Notify::default().store("tap", &[one.as_fd()]);

    let sockets = |fds: &[RawFd], names: &str| named(fds, names, |name| !name.starts_with(STORED));
    assert_eq!(sockets(&[3, 4, 5], "a.socket:a.socket:stored-tap"), [3, 4]);
    assert_eq!(sockets(&[3, 4], ""), [3, 4]);
    assert_eq!(named(&[3, 4, 5], "a.socket:stored-x:stored-tap", |name| name == "stored-tap"), [5]);
}
