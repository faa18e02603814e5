use std::fs::OpenOptions;
use std::os::unix::fs::symlink;

use super::*;

fn options(path: &Path) -> ImageOptions {
    ImageOptions { path: path.to_owned(), read_only: false, format: Format::Auto, cache: Cache::Auto }
}

fn image(dir: &tempfile::TempDir, bytes: u64) -> PathBuf {
    let path = dir.path().join("disk.img");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

#[test]
fn a_plain_file() {
    let dir = tempfile::tempdir().unwrap();
    let image = Image::open(&options(&image(&dir, 1 << 20))).unwrap();
    assert_eq!(image.geometry().capacity, 2048);
    assert!(image.geometry().logical_block >= 512);
    assert!(image.geometry().physical_block >= image.geometry().logical_block);
    assert!(matches!(image.kind(), Kind::File | Kind::MemoryFile));
    assert!(image.flushes());
}

#[test]
fn a_size_that_is_no_whole_number_of_sectors_is_rounded_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, (1 << 20) + 700);
    let opened = Image::open(&ImageOptions { cache: Cache::Writeback, ..options(&path) }).unwrap();
    assert_eq!(opened.geometry().capacity, 2049);
}

#[test]
fn what_cannot_be_a_disk_is_said_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing.img");
    let tiny = dir.path().join("tiny.img");
    std::fs::write(&tiny, [0; 100]).unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let dangling = dir.path().join("dangling");
    symlink(&missing, &dangling).unwrap();
    for (path, expected) in [
        (missing.as_path(), "does not exist"),
        (dangling.as_path(), "does not exist"),
        (dir.path(), "is a directory"),
        (&tiny, "100 bytes"),
        (&fifo, "neither a file nor a block device"),
        (Path::new("/dev/null"), "neither a file nor a block device"),
    ] {
        let message = Image::open(&options(path)).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(message.contains(path.to_str().unwrap()), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn a_qcow2_header_is_not_guessed_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, 1 << 20);
    std::fs::write(&path, [b"QFI\xfb".as_slice(), &[0; 4096]].concat()).unwrap();
    assert!(matches!(Image::open(&options(&path)), Err(ImageError::LooksLikeQcow2 { .. })));
    Image::open(&ImageOptions { format: Format::Raw, ..options(&path) }).unwrap();
}

#[test]
fn one_writer_or_many_readers() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, 1 << 20);
    let reading = ImageOptions { read_only: true, ..options(&path) };

    let writer = Image::open(&options(&path)).unwrap();
    for second in [&options(&path), &reading] {
        assert!(matches!(Image::open(second), Err(ImageError::InUse { .. })));
    }
    drop(writer);

    let first = Image::open(&reading).unwrap();
    let second = Image::open(&reading).unwrap();
    assert!(matches!(Image::open(&options(&path)), Err(ImageError::InUse { .. })));
    drop((first, second));
    Image::open(&options(&path)).unwrap();
}

#[test]
fn a_lock_of_another_kind_is_respected() {
    use nix::fcntl::{FcntlArg, fcntl};
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, 1 << 20);
    let reading = ImageOptions { read_only: true, ..options(&path) };
    let lock = |start, len| {
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        let range = libc::flock {
            l_type: libc::F_RDLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: len,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range)).unwrap();
        file
    };
    // QEMU writing: a read lock on byte 101.
    let qemu = lock(101, 1);
    assert!(matches!(Image::open(&options(&path)), Err(ImageError::InUse { .. })));
    assert!(matches!(Image::open(&reading), Err(ImageError::InUse { .. })));
    drop(qemu);
    // QEMU reading, and a reader that locks the whole file: readers agree, a writer does not.
    for other in [lock(100, 1), lock(0, 0)] {
        assert!(matches!(Image::open(&options(&path)), Err(ImageError::InUse { .. })));
        Image::open(&reading).unwrap();
        drop(other);
    }
}

#[test]
fn the_holder_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, 1 << 20);
    // Another process: one that inherits the locked descriptor and sleeps. A lock belongs to the open file.
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    lock::acquire(&file, &path, false).unwrap();
    let mut child =
        std::process::Command::new("sleep").arg("1000").stdin(file.try_clone().unwrap()).spawn().unwrap();
    drop(file);
    let error = Image::open(&options(&path)).unwrap_err().to_string();
    child.kill().unwrap();
    child.wait().unwrap();
    // The name may still be that of the process before it executed another program.
    assert!(error.contains(&format!("(pid {})", child.id())), "{error}");
}

#[test]
fn cache_modes() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, 1 << 20);
    let with = |cache| Image::open(&ImageOptions { cache, ..options(&path) }).unwrap();
    assert!(with(Cache::Writeback).direct().is_none());
    let unsafe_image = with(Cache::Unsafe);
    assert!(unsafe_image.direct().is_none() && !unsafe_image.flushes());
    drop(unsafe_image);
    let auto = with(Cache::Auto);
    if auto.kind() == Kind::File && auto.direct().is_some() {
        assert!(auto.geometry().offset_align >= 512);
    }
}
