//! Opening a qcow2 image that is any bytes behind its magic: an error, or a disk whose every piece can be looked up.
#![no_main]

use std::io::{Seek, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use libfuzzer_sys::fuzz_target;
use strata_vhost_blk::image::{Cache, Format, ImageOptions};
use strata_vhost_blk::layers::Layers;
use strata_vhost_blk::layers::lane::{Ask, Lane};
use strata_virtio::memory::Memory;

fuzz_target!(|data: &[u8]| {
    static FILE: OnceLock<Mutex<tempfile::NamedTempFile>> = OnceLock::new();
    static MEMORY: OnceLock<Option<Arc<Memory>>> = OnceLock::new();
    let file = FILE.get_or_init(|| Mutex::new(tempfile::NamedTempFile::new().expect("a file")));
    let Some(memory) = MEMORY.get_or_init(|| strata_fuzz::memory(&[])) else { return };
    let Ok(mut file) = file.lock() else { return };
    let written = file.as_file().set_len(0).is_ok()
        && file.rewind().is_ok()
        && file.write_all(b"QFI\xfb").is_ok()
        && file.write_all(data).is_ok()
        // Room for clusters that tables may point to.
        && file.as_file().set_len(1 << 20).is_ok();
    assert!(written);
    let path: PathBuf = file.path().to_owned();
    let options = ImageOptions {
        path,
        read_only: data.len().is_multiple_of(2),
        format: Format::Qcow2,
        cache: Cache::Writeback,
    };
    let Ok((_files, layers)) = Layers::open(&options, 1) else { return };
    let size = layers.size();
    let Ok(mut lane) = Lane::spawn(Arc::new(layers)) else { return };
    for (token, offset) in (0..).zip([0, 4096, size / 2, size.saturating_sub(4096)]) {
        // SAFETY: no data goes with it.
        unsafe { lane.ask(token, Ask::Find { offset: offset & !511 }, Arc::clone(memory)) };
        let _ = lane.wait();
    }
});
