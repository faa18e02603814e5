//! The vhost-user session, fed with any bytes a frontend may send (without descriptors), in front of a device whose
//! queues do nothing. The session must end by itself when the client has gone.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;

use libfuzzer_sys::fuzz_target;
use strata_virtio::device::{Device, Identity, QueueSetup, QueueState, StartError};
use strata_virtio::session::{ConfigChange, Endpoint, serve};

struct Quiet(Identity);

impl Device for Quiet {
    fn identity(&self) -> &Identity {
        &self.0
    }
    fn read_config(&mut self, _offset: u32, out: &mut [u8]) {
        out.fill(0);
    }
    fn write_config(&mut self, _offset: u32, _data: &[u8]) {}
    fn set_features(&mut self, _features: u64) {}
    fn start_queue(&mut self, _setup: QueueSetup) -> Result<(), StartError> {
        Ok(())
    }
    fn stop_queue(&mut self, _index: u16) -> Option<QueueState> {
        Some(QueueState { base: 0 })
    }
    fn reset(&mut self) {}
}

fuzz_target!(|data: &[u8]| {
    let Ok((mut client, server)) = UnixStream::pair() else { return };
    let Ok(stop) = nix::sys::eventfd::EventFd::from_value(0) else { return };
    // As many requests as a socket's buffer has room for answers (each costs it most of a KiB), so nobody has to read
    // meanwhile: a session waits for a client that does not. Then the client stops sending and drops the answers, as a
    // peer that died would.
    let data = data.get(..2048).unwrap_or(data);
    let _ = client.set_nonblocking(true);
    let _ = client.write_all(data);
    let _ = client.shutdown(std::net::Shutdown::Write);
    let features = strata_fuzz::FEATURES;
    let identity = Identity { device_id: 2, features, queue_sizes: vec![256; 4], config_size: 60 };
    let _ = serve(Endpoint::Stream(server), &mut Quiet(identity), &stop, &ConfigChange::default());
});
