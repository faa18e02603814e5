//! The vmm's vhost-user frontend in front of a backend that answers with any bytes: the request's own code and a
//! plausible length as often as not, since nothing else gets far. It must end in an error or a lost backend.
#![no_main]

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use strata_virtio::driver::DriverQueue;
use strata_virtio::memory::Memory;
use strata_vmm::frontend::{Kind, Settings, connect};

/// Serves one client of a socket of this run's own, and says where that is. A socket kept for all runs would hand
/// over the connections that earlier runs' monitors left in its backlog.
fn backend(bytes: Vec<u8>) -> Option<PathBuf> {
    static RUN: AtomicU64 = AtomicU64::new(0);
    static SERVER: OnceLock<Sender<(UnixListener, Vec<u8>)>> = OnceLock::new();
    let run = RUN.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("strata-fuzz-frontend-{}-{run}", std::process::id()));
    let listener = UnixListener::bind(&path).ok()?;
    let server = SERVER.get_or_init(|| {
        let (sender, runs) = channel::<(UnixListener, Vec<u8>)>();
        std::thread::spawn(move || {
            while let Ok((listener, bytes)) = runs.recv() {
                if let Ok((client, _)) = listener.accept() {
                    let _ = serve(client, &bytes);
                }
            }
        });
        sender
    });
    server.send((listener, bytes)).ok()?;
    Some(path)
}

/// Answers requests from `bytes` until they are used up, then hangs up.
fn serve(mut client: UnixStream, mut bytes: &[u8]) -> Option<()> {
    loop {
        let mut header = [0; 12];
        client.read_exact(&mut header).ok()?;
        let [code, flags, size] =
            [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap_or_default()));
        let mut body = vec![0; size as usize];
        client.read_exact(&mut body).ok()?;
        // Requests that ask for no answer get none.
        let asks = matches!(code, 1 | 11 | 15 | 17 | 24 | 31) || flags & 8 != 0;
        if !asks {
            continue;
        }
        let (&[what, fill], rest) = bytes.split_first_chunk()?;
        bytes = rest;
        let mut reply_body = match code {
            24 => body.clone(),
            11 => body.clone(),
            31 => vec![1; 24],
            // Acknowledged, or every feature there is.
            _ if flags & 8 != 0 => vec![0; 8],
            _ => vec![0xff; 8],
        };
        let (mut reply_code, mut reply_flags) = (code, 5);
        match what & 15 {
            0 => reply_code = u32::from(fill),
            1 => reply_flags = u32::from(fill),
            2 => reply_body.resize(usize::from(fill), fill),
            3 => reply_body.fill(fill),
            4 => {
                let at = usize::from(what >> 4) % reply_body.len().max(1);
                if let Some(byte) = reply_body.get_mut(at) {
                    *byte = fill;
                }
            }
            _ => {}
        }
        let mut reply = [reply_code, reply_flags, reply_body.len() as u32].map(u32::to_ne_bytes).concat();
        reply.extend(reply_body);
        client.write_all(&reply).ok()?;
    }
}

fuzz_target!(|data: &[u8]| {
    static MEMORY: OnceLock<Option<Arc<Memory>>> = OnceLock::new();
    let Some(memory) = MEMORY.get_or_init(|| Memory::anonymous(1 << 20).ok().map(Arc::new)) else { return };
    let Some((&first, data)) = data.split_first() else { return };
    let Some(path) = backend(data.to_vec()) else { return };
    let kind = match first & 3 {
        0 => Kind::Net { mac: None },
        1 => Kind::Other { device_id: u16::from(first >> 2) },
        _ => Kind::Blk,
    };
    let settings = Settings {
        id: "fuzz".into(),
        path: path.clone(),
        kind,
        queues: None,
        queue_size: 16,
        give_up: None,
        look: Duration::from_millis(1),
        hook: None,
    };
    // A ring that is too large for a backend makes it be asked again, and nobody would answer.
    let connected = connect(settings, memory, Duration::from_millis(500));
    let _ = std::fs::remove_file(&path);
    let Ok((mut device, _handle)) = connected else { return };
    let device = &mut device.device;
    device.set_features(1 << 32);
    let Ok(queue) = DriverQueue::new(memory, 0, 16, 1 << 32) else { return };
    for index in 0..device.identity().queue_sizes.len().min(3) as u16 {
        if queue.setup(index, 0).is_ok_and(|setup| device.start_queue(setup).is_ok()) {
            device.write_config(u32::from(first), &[first]);
            assert!(device.stop_queue(index).is_some());
        }
    }
    device.reset();
});
