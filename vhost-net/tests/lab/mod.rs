//! A whole switch for a test: the thread, a session per port behind real vhost-user sockets, and what drivers in this
//! process need beside those of [`crate::scene`].
#![allow(dead_code, unreachable_pub)] // every test program uses a part of it
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)] // all of it is a test

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::sys::eventfd::EventFd;
use strata_vhost_net::mac::Mac;
use strata_vhost_net::switch::vlans::Vlans;
use strata_vhost_net::switch::{Port, Settings, Switch};
use strata_virtio::session::{Endpoint, serve};

use crate::scene::{Guest, LONG, USUAL};

pub const PLAIN: [u8; 12] = [0; 12];
pub const EVERYONE: [u8; 6] = [0xff; 6];

/// The address of a port's guest.
pub fn mac(port: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, port]
}

/// A frame of `len` bytes with a number in it.
pub fn ethernet(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5], &number.to_be_bytes()].concat();
    frame.extend((frame.len()..len).map(|at| (at as u32 ^ number) as u8));
    frame
}

/// The number in such a frame; it is whole.
pub fn number_of(frame: &[u8]) -> u32 {
    let number = u32::from_be_bytes(frame[14..18].try_into().unwrap());
    let (to, from) = (frame[..6].try_into().unwrap(), frame[6..12].try_into().unwrap());
    assert_eq!(frame, ethernet(to, from, number, frame.len()), "a frame is whole");
    number
}

/// A switch in this process.
pub struct Lab {
    pub switch: Switch,
    pub paths: Vec<PathBuf>,
    stop: Arc<EventFd>,
    sessions: Vec<JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

impl Lab {
    /// Ports of one VLAN.
    pub fn new(ports: u8) -> Self {
        let port = |number| Port::new(format!("p{number}"), Mac::new(mac(number)), Vlans::Access(1));
        Self::with((0..ports).map(port).collect())
    }

    pub fn with(ports: Vec<Port>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let switch =
            Switch::start(Settings::default(), ports.into_iter().map(Arc::new).collect(), None).unwrap();
        let stop = Arc::new(EventFd::new().unwrap());
        let (mut paths, mut sessions) = (Vec::new(), Vec::new());
        for (number, port) in switch.ports().iter().enumerate() {
            let path = dir.path().join(&port.name);
            let endpoint = Endpoint::Listener(UnixListener::bind(&path).unwrap());
            let (mut device, port, stop) =
                (switch.device(number).unwrap(), Arc::clone(port), Arc::clone(&stop));
            paths.push(path);
            sessions.push(std::thread::spawn(move || {
                serve(endpoint, &mut device, &*stop, port.change()).unwrap();
            }));
        }
        Self { switch, paths, stop, sessions, _dir: dir }
    }

    /// A driver at a port, with all of its receive buffers posted.
    pub fn guest(&self, port: usize) -> Guest {
        let mut guest = Guest::new(&self.paths[port], USUAL, 1, 64);
        guest.post(0, 64);
        guest
    }

    pub fn count(&self, port: usize, name: &str) -> u64 {
        let list = self.switch.ports()[port].stats.list();
        list.into_iter().find(|(other, _)| *other == name).unwrap_or_else(|| panic!("no counter {name}")).1
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        self.sessions.drain(..).for_each(|session| drop(session.join()));
    }
}

/// A frame from one guest to another, by the other's address.
pub fn crosses(from: &mut Guest, to: &mut Guest, addresses: (u8, u8), number: u32) {
    let sent = ethernet(mac(addresses.1), mac(addresses.0), number, 200);
    from.send(0, PLAIN, &sent);
    loop {
        let (_, received) = to.receive_within(0, LONG).expect("a frame");
        let free = usize::from(to.rx[0].free());
        to.post(0, free);
        // What others flooded comes in between.
        if received == sent {
            return;
        }
    }
}
