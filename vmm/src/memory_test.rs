use super::*;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn no_tmpfs(_size: u64) -> io::Result<OwnedFd> {
    Err(io::ErrorKind::Unsupported.into())
}

#[test]
fn memory_splits_around_the_hole_and_both_parts_are_one_file() {
    let ram = Ram::new(6 * GIB, false, None, no_tmpfs).unwrap();
    assert_eq!(ram.backing, Backing::Memfd);
    let regions: Vec<_> = ram.memory.regions().map(|r| (r.gpa(), r.size(), r.fd_offset())).collect();
    assert_eq!(regions, [(0, 3 * GIB, 0), (4 * GIB, 3 * GIB, 3 * GIB)]);
    ram.memory.write_obj(3 * GIB - 4, 7_u32).unwrap();
    ram.memory.write_obj(7 * GIB - 4, 8_u32).unwrap();
    assert!(ram.memory.write_obj(3 * GIB - 2, 0_u32).is_err());
    assert!(ram.memory.write_obj(7 * GIB, 0_u32).is_err());
    assert_eq!(ram.memory.user_to_gpa(USER_BASE + 4 * GIB), Some(4 * GIB));
}

#[test]
fn small_memory_is_one_region() {
    let ram = Ram::new(256 * MIB, true, None, no_tmpfs).unwrap();
    assert_eq!(ram.memory.regions().len(), 1);
}

#[test]
fn a_huge_tmpfs_is_mapped_where_huge_pages_fit() {
    let Ok(file) = strata_sandbox::private_tmpfs_huge(64 * MIB) else {
        eprintln!("skipped: a private tmpfs with huge=always needs root and a kernel that has it");
        return;
    };
    let ram = Ram::new(64 * MIB, false, None, |_| Ok(file)).unwrap();
    assert_eq!(ram.backing, Backing::HugeTmpfs);
    for region in ram.memory.regions() {
        assert_eq!((region.host() as u64 ^ region.gpa()) % LARGE_PAGE, 0);
    }
}

#[test]
fn a_folder_that_is_no_hugetlbfs_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let error = HugePages::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
    let error = HugePages::open(Path::new("/nonexistent")).unwrap_err().to_string();
    assert!(error.contains("cannot make a file in hugetlbfs"), "{error}");
}
