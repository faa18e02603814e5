use std::os::unix::fs::symlink;
use std::process::Command;

use super::*;

/// A program by one of our names whose parent is gone by the time this returns; its number.
fn orphan(dir: &Path) -> i32 {
    let script = "\"$1\" 600 >/dev/null 2>&1 & echo $!";
    let output = Command::new("sh").args(["-c", script, "sh"]).arg(dir.join("vmm-orphan")).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// What has not been adopted is anyone's: it stands for what another run has started.
#[test]
fn only_what_this_process_started_is_seen_whoever_is_its_parent_now() {
    let dir = tempfile::tempdir().unwrap();
    let sleep = ["/usr/bin/sleep", "/bin/sleep"].into_iter().find(|path| Path::new(path).exists()).unwrap();
    symlink(sleep, dir.path().join("vmm-orphan")).unwrap();
    let others = orphan(dir.path());
    adopt().unwrap();
    let own = orphan(dir.path());
    process::until("both to have become what they are", || {
        let named = |pid: i32| process::name_of(pid).is_some_and(|name| name == "vmm-orphan");
        Ok(named(others) && named(own))
    })
    .unwrap();
    let seen = ours();
    process::kill(own).unwrap();
    process::kill(others).unwrap();
    assert!(seen.contains(&own) && !seen.contains(&others), "{seen:?}, {own}, {others}");
    process::until("the end of it", || Ok(!ours().contains(&own))).unwrap();
}
