use std::fs::OpenOptions;
use std::io::Write;
use std::os::fd::IntoRawFd;

use super::*;

#[test]
fn descriptors_are_told_from_paths() {
    for (path, fd) in [
        ("/dev/fd/7", Some(7)),
        ("/proc/self/fd/12", Some(12)),
        ("/dev/fd/2", None),
        ("/dev/fd/x", None),
        ("/etc/machine.toml", None),
        ("dev/fd/7", None),
    ] {
        assert_eq!(descriptor(Path::new(path)), fd, "{path}");
    }
}

#[test]
fn a_descriptor_is_read_from_its_start() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"kernel = \"/k\"\ncpus = 3\n").unwrap();
    let fd = file.into_raw_fd();
    let path = format!("/dev/fd/{fd}");
    assert_eq!(read(Path::new(&path)).unwrap().cpus, 3);
}

#[test]
fn a_wrong_file_names_itself_and_its_fault() {
    let mut file =
        OpenOptions::new().read(true).write(true).open(tempfile::NamedTempFile::new().unwrap()).unwrap();
    file.write_all(b"kernel = \"/k\"\ncpus = 0\n").unwrap();
    let path = format!("/dev/fd/{}", file.into_raw_fd());
    let error = read(Path::new(&path)).unwrap_err();
    assert_eq!(error.to_string(), format!("machine file {path}"));
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("cpus"), "{cause}");
    let error = read(Path::new("/dev/fd/987654")).unwrap_err().to_string();
    assert_eq!(error, "cannot read the machine file from descriptor 987654");
}
