//! Served to a driver that is not ours: the virtio-driver crate.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::time::Instant;

use support::*;
use virtio_driver::{
    VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags,
};

#[test]
fn another_driver_reads_what_it_wrote() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4 << 20);
    let backend = Backend::start(dir.path(), &path, &[]);
    let features = (VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX).bits()
        | VirtioBlkFeatureFlags::FLUSH.bits()
        | VirtioBlkFeatureFlags::WRITE_ZEROES.bits();
    let transport = VhostUser::new(backend.socket.to_str().unwrap(), features).unwrap();
    let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
    let mut queue = VirtioBlkQueue::<u32>::setup_queues(&mut *transport, 1, 128).unwrap().remove(0);

    // Its data has to be in memory the backend was told of.
    let len = 1 << 20;
    let fd = nix::sys::memfd::memfd_create("data", nix::sys::memfd::MFdFlags::empty()).unwrap();
    nix::unistd::ftruncate(&fd, len as i64).unwrap();
    let (write, read) = shared(&fd, len).split_at_mut(len / 2);
    transport.map_mem_region(write.as_ptr() as usize, len, std::os::fd::AsRawFd::as_raw_fd(&fd), 0).unwrap();

    write.copy_from_slice(&pattern(11, len / 2));
    let wait = |queue: &mut VirtioBlkQueue<'_, u32>, transport: &VirtioBlkTransport, count: u32| {
        if queue.avail_notif_needed() {
            transport.get_submission_notifier(0).notify().unwrap();
        }
        let begun = Instant::now();
        let mut seen = 0;
        while seen < count {
            for completion in queue.completions() {
                assert_eq!(completion.ret, 0);
                seen += 1;
            }
            assert!(begun.elapsed() < PATIENCE);
        }
    };
    for (index, chunk) in write.chunks(64 << 10).enumerate() {
        queue.write((index * (64 << 10)) as u64, chunk, index as u32).unwrap();
    }
    wait(&mut queue, &*transport, 8);
    queue.flush(0).unwrap();
    wait(&mut queue, &*transport, 1);
    for (index, chunk) in read.chunks_mut(64 << 10).enumerate() {
        queue.read((index * (64 << 10)) as u64, chunk, index as u32).unwrap();
    }
    wait(&mut queue, &*transport, 8);
    assert!(read == write);
    queue.write_zeroes(0, 64 << 10, true, 0).unwrap();
    wait(&mut queue, &*transport, 1);
    queue.read(0, &mut read[..4096], 0).unwrap();
    wait(&mut queue, &*transport, 1);
    assert_eq!(read[..4096], [0; 4096]);
}

#[allow(unsafe_code)]
fn shared(fd: &impl std::os::fd::AsFd, len: usize) -> &'static mut [u8] {
    use nix::sys::mman::{MapFlags, ProtFlags, mmap};
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    let length = std::num::NonZeroUsize::new(len).unwrap();
    // SAFETY: a new mapping, of this length, that stays until the process ends.
    unsafe {
        let at = mmap(None, length, protection, MapFlags::MAP_SHARED, fd, 0).unwrap();
        std::slice::from_raw_parts_mut(at.as_ptr().cast(), len)
    }
}
