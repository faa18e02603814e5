use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Cache, Format, Given, Image, ImageError, ImageOptions};

fn options(path: &Path) -> ImageOptions {
    ImageOptions { path: path.to_owned(), read_only: false, format: Format::Auto, cache: Cache::Auto }
}

fn open(path: &Path, write: bool) -> File {
    OpenOptions::new().read(true).write(write).open(path).unwrap()
}

fn image(dir: &tempfile::TempDir, name: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(1 << 20).unwrap();
    path
}

fn given(path: &Path, write: bool) -> Given {
    Given { buffered: open(path, write), direct: open(path, write) }
}

#[test]
fn it_is_used_as_one_that_was_opened_by_its_path_and_needs_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "a");
    let by_path = Image::open(&options(&path)).unwrap();
    let (geometry, direct) = (*by_path.geometry(), by_path.direct().is_some());
    drop(by_path);
    let files = given(&path, true);
    // Nobody could open it any more.
    std::fs::remove_file(&path).unwrap();
    let image = Image::given(files, &options(&path)).unwrap();
    assert_eq!(
        (image.geometry().bytes, image.geometry().offset_align),
        (geometry.bytes, geometry.offset_align)
    );
    assert_eq!(image.direct().is_some(), direct);
    // The one for the page cache is not direct: it takes any bytes.
    image.write_at(b"abc", 5).unwrap();
    let mut read = [0; 3];
    image.read_at(&mut read, 5).unwrap();
    assert_eq!(&read, b"abc");
    assert_eq!(image.grow(2 << 20).unwrap(), 2 << 20);
}

#[test]
fn it_is_locked_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(&dir, "a");
    let first = Image::given(given(&path, true), &options(&path)).unwrap();
    let again = Image::given(given(&path, true), &options(&path));
    assert!(matches!(again, Err(ImageError::InUse { .. })), "{again:?}");
    assert!(matches!(Image::open(&options(&path)), Err(ImageError::InUse { .. })));
    drop(first);
    let reading = ImageOptions { read_only: true, ..options(&path) };
    let readers =
        [given(&path, false), given(&path, true)].map(|files| Image::given(files, &reading).unwrap());
    assert!(matches!(Image::open(&options(&path)), Err(ImageError::InUse { .. })));
    drop(readers);
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (image(&dir, "a"), image(&dir, "b"));
    let refused = |files: Given, part: &str| {
        let error = Image::given(files, &options(&path)).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    refused(given(&path, false), "cannot be written");
    refused(Given { buffered: open(&path, true), direct: open(&path, false) }, "cannot be written");
    refused(Given { buffered: open(&path, true), direct: open(&other, true) }, "different files");
    refused(given(Path::new("/dev/null"), true), "regular file");
    let writing = || OpenOptions::new().write(true).open(&path).unwrap();
    refused(Given { buffered: writing(), direct: writing() }, "cannot be read");
    // As by its path: what looks like qcow2 is not taken for raw bytes.
    open(&path, true).write_all_at(b"QFI\xfb", 0).unwrap();
    refused(given(&path, true), "qcow2");
}

#[test]
fn numbers_that_are_not_open_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = open(&image(&dir, "a"), true);
    assert!(Given::inherit(file.as_raw_fd(), file.as_raw_fd()).is_err());
    assert!(Given::inherit(-1, i32::MAX).is_err());
    assert!(Given::inherit(i32::MAX, -1).is_err());
}
