//! Who gets a machine's folder.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::run_dir::{RunDir, RunDirError, Running};

#[test]
fn a_folder_is_one_launchers_and_goes_with_it() {
    let base = tempfile::tempdir().unwrap();
    let base = base.path().join("strata");
    let name = "web".parse().unwrap();
    let first = RunDir::create(&base, &name).unwrap();
    assert_eq!(fs::metadata(&base).unwrap().permissions().mode() & 0o777, 0o700);
    let second = RunDir::create(&base, &name).unwrap_err();
    assert!(matches!(second, RunDirError::Taken { pid, .. } if pid == std::process::id().to_string()));
    let running = Running::all(&base).unwrap();
    assert_eq!((running.len(), running[0].name().as_str(), running[0].pid), (1, "web", std::process::id()));
    drop(first);
    assert!(fs::read_dir(&base).unwrap().next().is_none());
    assert!(Running::all(&base).unwrap().is_empty());
    RunDir::create(&base, &name).unwrap();
}

#[test]
fn what_a_dead_launcher_left_is_removed() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("web");
    fs::create_dir_all(folder.join("sub")).unwrap();
    for file in ["lock", "control.sock", "sub/x"] {
        fs::write(folder.join(file), "12345").unwrap();
    }
    assert!(Running::find(&folder).is_none());
    let run_dir = RunDir::create(base.path(), &"web".parse().unwrap()).unwrap();
    let names: Vec<_> =
        fs::read_dir(run_dir.path()).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(names, ["lock"]);
}

/// As `strata status` does while a machine is started again whose launcher was killed.
#[test]
fn who_looks_at_a_dead_launchers_lock_is_not_in_the_way() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("web");
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::SeqCst) {
                    let _ = Running::find(&folder);
                }
            });
        }
        let all = (0..300).all(|_| {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("lock"), dead.id().to_string()).unwrap();
            RunDir::create(base.path(), &"web".parse().unwrap()).is_ok()
        });
        done.store(true, std::sync::atomic::Ordering::SeqCst);
        assert!(all);
    });
}

/// A child that it forked and that has yet to become another program has its lock, too.
#[test]
fn a_lock_that_outlives_its_launcher_is_waited_for() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("web");
    fs::create_dir_all(&folder).unwrap();
    let mut dead = std::process::Command::new("true").spawn().unwrap();
    dead.wait().unwrap();
    fs::write(folder.join("lock"), dead.id().to_string()).unwrap();
    let held = Flock::lock(File::open(folder.join("lock")).unwrap(), FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(200));
            drop(held);
        });
        RunDir::create(base.path(), &"web".parse().unwrap()).unwrap();
    });
}

#[test]
fn many_at_once_get_it_one_after_another() {
    let base = tempfile::tempdir().unwrap();
    let name: strata_config::Name = "web".parse().unwrap();
    let owners = std::sync::atomic::AtomicU32::new(0);
    let had = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let Ok(_run_dir) = RunDir::create(base.path(), &name) else { continue };
                    use std::sync::atomic::Ordering::SeqCst;
                    assert_eq!(owners.fetch_add(1, SeqCst), 0, "two at once");
                    had.fetch_add(1, SeqCst);
                    owners.fetch_sub(1, SeqCst);
                }
            });
        }
    });
    assert!(had.into_inner() > 0);
    assert!(fs::read_dir(base.path()).unwrap().next().is_none());
}

#[test]
fn pid_files_are_listed_vmm_first() {
    let base = tempfile::tempdir().unwrap();
    let run_dir = RunDir::create(base.path(), &"web".parse().unwrap()).unwrap();
    for (id, pid) in [("disk0", 2), ("vmm", 3), ("net0", 4)] {
        run_dir.write_pid(id, pid).unwrap();
    }
    let running = Running::find(run_dir.path()).unwrap();
    let expected = [("vmm", 3), ("disk0", 2), ("net0", 4)].map(|(id, pid)| (id.to_owned(), pid));
    assert_eq!(running.processes(), expected);
}
