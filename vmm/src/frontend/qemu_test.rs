//! Against QEMU's own block backend, where it is installed.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use strata_virtio::driver::{Buf, DriverQueue};
use strata_virtio::spec::F_VERSION_1;

use super::reference_test::{LIMIT, eventually, settings};
use super::*;

const PROGRAM: &str = "qemu-storage-daemon";

fn spawn(image: &Path, socket: &Path) -> Option<Child> {
    let export = format!(
        "vhost-user-blk,id=e,node-name=d,writable=on,num-queues=2,addr.type=unix,addr.path={}",
        socket.display()
    );
    let disk = format!("file,node-name=d,filename={}", image.display());
    let _ = std::fs::remove_file(socket);
    Command::new(PROGRAM).args(["--blockdev", &disk, "--export", &export]).stdin(Stdio::null()).spawn().ok()
}

/// One request (virtio 1.2 section 5.2.6): header, 512 bytes, status.
fn request(memory: &Memory, queue: &mut DriverQueue, kind: u32, sector: u64) {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    memory.write_at(0x8000, &header).unwrap();
    memory.write_at(0x8300, &[0xff]).unwrap();
    let data = Buf { gpa: 0x8100, len: 512, writable: kind == 0 };
    queue.add(&[Buf::readable(0x8000, 16), data, Buf::writable(0x8300, 1)]).unwrap();
    queue.kick();
    queue.wait(LIMIT).unwrap();
    assert_eq!(memory.read_obj::<u8>(0x8300).unwrap(), 0, "status of request {kind}");
}

#[test]
fn qemu_serves_a_disk_dies_and_returns() {
    let dir = tempfile::tempdir().unwrap();
    let (image, socket) = (dir.path().join("disk.img"), dir.path().join("sock"));
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    let Some(mut daemon) = spawn(&image, &socket) else {
        eprintln!("skipped: {PROGRAM} is not installed");
        return;
    };
    let memory = Arc::new(Memory::anonymous(1 << 20).unwrap());
    let (PciDevice { mut device, .. }, handle) =
        connect(settings(&socket, Kind::Blk, Some(2)), &memory, LIMIT).unwrap();
    let mut capacity = [0; 8];
    device.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), 2048);
    let features = device.identity().features & (F_VERSION_1 | 1 << 29 | 1 << 28 | 1 << 12);
    device.set_features(features);
    let mut queues = [0, 0x2000].map(|gpa| DriverQueue::new(&memory, gpa, 128, features).unwrap());
    for (index, queue) in (0..).zip(&queues) {
        device.start_queue(queue.setup(index, 0).unwrap()).unwrap();
    }
    for round in 0..4_u8 {
        for (at, queue) in (0..).zip(&mut queues) {
            memory.write_at(0x8100, &[round + 1; 512]).unwrap();
            request(&memory, queue, 1, at);
            memory.write_at(0x8100, &[0; 512]).unwrap();
            request(&memory, queue, 0, at);
            let mut read = [0; 512];
            memory.read_at(0x8100, &mut read).unwrap();
            assert_eq!(read, [round + 1; 512]);
        }
        if round == 1 {
            // The driver starts over on the same connection.
            assert!(device.stop_queue(0).is_some() && device.stop_queue(1).is_some());
            device.reset();
            device.set_features(features);
            queues = [0, 0x2000].map(|gpa| DriverQueue::new(&memory, gpa, 64, features).unwrap());
            for (index, queue) in (0..).zip(&queues) {
                device.start_queue(queue.setup(index, 0).unwrap()).unwrap();
            }
        }
        if round == 2 {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
            eventually("loss", || handle.state() == State::Lost);
            daemon = spawn(&image, &socket).unwrap();
        }
    }
    assert_eq!(handle.losses(), 1);
    drop(device);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
