//! Facts out of trees that look like /proc and /sys.

use std::fs;

use super::facts::{Cgroup, Sandbox};
use super::gather::{Root, kernel};
use super::probe::read;

fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let root = Root(folder.path().to_owned());
    (folder, root)
}

#[test]
fn a_module_is_the_one_that_is_loaded() {
    let (_folder, root) = tree(&[
        ("sys/module/kvm_amd/parameters/nested", "1\n"),
        ("sys/module/kvm_amd/parameters/npt", "N\n"),
    ]);
    let module = root.module().unwrap();
    assert_eq!((module.name, module.nested, module.paging), ("kvm_amd", Some(true), Some(false)));
    let (_folder, root) = tree(&[("sys/module/kvm_intel/parameters/nested", "Y\n")]);
    let module = root.module().unwrap();
    assert_eq!((module.name, module.nested, module.paging), ("kvm_intel", Some(true), None));
    let (_folder, root) = tree(&[("sys/module/kvm/parameters/halt_poll_ns", "200000\n")]);
    assert!(root.module().is_none());
    assert_eq!(root.number("sys/module/kvm/parameters/halt_poll_ns"), Some(200_000));
}

#[test]
fn huge_pages_are_read_from_their_three_places() {
    let (_folder, root) = tree(&[
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "3\n"),
        (
            "sys/kernel/mm/transparent_hugepage/shmem_enabled",
            "always within_size [advise] never deny force\n",
        ),
        ("proc/self/mounts", "proc /proc proc rw 0 0\nnone /dev/hugepages hugetlbfs rw 0 0\n"),
    ]);
    let pages = root.pages();
    assert_eq!(pages.huge, Some((8, 3)));
    assert_eq!(pages.shmem.as_deref(), Some("advise"));
    assert_eq!(pages.mounts, [std::path::PathBuf::from("/dev/hugepages")]);
}

#[test]
fn control_groups_are_told_apart() {
    let (_folder, root) = tree(&[("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")]);
    assert_eq!(root.cgroup(), Cgroup::V2 { controllers: true });
    let (_folder, root) = tree(&[("sys/fs/cgroup/cgroup.controllers", "cpuset cpu\n")]);
    assert_eq!(root.cgroup(), Cgroup::V2 { controllers: false });
    let (_folder, root) = tree(&[("sys/fs/cgroup/memory/tasks", "")]);
    assert_eq!(root.cgroup(), Cgroup::V1);
    let (_folder, root) = tree(&[]);
    assert_eq!(root.cgroup(), Cgroup::None);
}

#[test]
fn numbers_of_memory_users_and_kernels() {
    let (_folder, root) = tree(&[
        ("proc/meminfo", "MemTotal:       2048 kB\nMemFree:  1 kB\nMemAvailable:   1024 kB\n"),
        ("proc/sys/user/max_user_namespaces", "7\n"),
    ]);
    let memory = root.memory();
    assert_eq!((memory.total, memory.available), (2 << 20, 1 << 20));
    let users = root.users();
    assert_eq!((users.most, users.clone, users.apparmor), (Some(7), None, None));
    for (release, version) in
        [("6.1.0-56-cloud-amd64", (6, 1)), ("5.10.0", (5, 10)), ("7-rc1", (7, 0)), ("", (0, 0))]
    {
        assert_eq!(kernel(release).version, version, "{release}");
    }
}

#[test]
fn the_probes_words_are_understood() {
    let huge = |sandbox| match sandbox {
        Sandbox::Works { huge } => huge,
        other => panic!("{other:?}"),
    };
    let why = |sandbox| match sandbox {
        Sandbox::Refused(why) => why,
        other => panic!("{other:?}"),
    };
    assert_eq!(huge(read("isolated\nhuge\nlocked\n", None)), Ok(()));
    assert_eq!(huge(read("isolated\nsmall refused\nlocked\n", None)), Err("refused".to_owned()));
    assert_eq!(why(read("failed cannot unshare\n", None)), "cannot unshare");
    assert!(
        why(read("isolated\nhuge\n", Some(31)))
            .ends_with("ended with signal 31 on entering its system call filter")
    );
    assert!(why(read("", None)).ends_with("on entering its namespaces"));
}
