//! Sockets of the host that an inmate is given.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use strata_sandbox::{Role, Root, audit};

use crate::Case;
use crate::start::{Inmate, PLAIN, Stage, User, can_chroot, command, in_chroot, run, users};

pub(crate) const CASES: &[Case] = &[
    ("binds::a_socket_in_a_private_directory_can_be_reached_and_reached_again", reached_and_reached_again),
    ("binds::a_socket_can_be_reached_from_a_chroot", reached_from_a_chroot),
    ("binds::a_single_socket_can_be_given", a_single_socket_can_be_given),
    ("binds::what_cannot_be_reached_is_an_error_that_says_so", unreachable_is_an_error),
];

/// A directory like a run directory: its user's, mode 0700.
fn run_dir(user: User) -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/run").or_else(|_| tempfile::tempdir()).unwrap();
    give(dir.path(), user, 0o700);
    dir
}

fn give(path: &Path, user: User, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    if user == User::Plain {
        chown(path, Some(PLAIN), Some(PLAIN)).unwrap();
    }
}

fn listen(path: &Path, user: User) -> UnixListener {
    let listener = UnixListener::bind(path).unwrap();
    give(path, user, 0o600);
    listener
}

fn heard(listener: &UnixListener) {
    let (mut peer, _) = listener.accept().unwrap();
    let mut byte = [0];
    peer.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x");
}

fn connect(user: User, bind: &Path, socket: &Path) -> Inmate {
    let (bind, socket) = (bind.to_str().unwrap(), socket.to_str().unwrap());
    connected(command(user, Role::Vmm, Stage::Locked, &["connect", bind, socket]))
}

fn connected(mut command: Command) -> Inmate {
    let mut child = command.spawn().unwrap();
    let said = std::io::BufReader::new(child.stdout.take().unwrap());
    Inmate { child, said }
}

fn reached_and_reached_again() {
    for user in users() {
        let dir = run_dir(user);
        let socket = dir.path().join("disk0.sock");
        let listener = listen(&socket, user);
        let mut inmate = connect(user, dir.path(), &socket);
        assert_eq!(inmate.line(), "Ok(Ok(()))", "{user:?}");
        heard(&listener);
        let report = audit(inmate.pid()).unwrap();
        assert!(report.is_locked(), "{report:?}");
        assert_eq!(report.root, Root::Empty { binds: vec![dir.path().to_owned()] });
        // The backend comes back with a new socket of the same name.
        drop(listener);
        std::fs::remove_file(&socket).unwrap();
        let listener = listen(&socket, user);
        inmate.child.stdin.as_mut().unwrap().write_all(b".").unwrap();
        assert_eq!(inmate.line(), "Ok(Ok(()))", "{user:?}");
        heard(&listener);
        assert!(inmate.finish().success());
    }
}

fn reached_from_a_chroot() {
    if !can_chroot() {
        return;
    }
    let dir = run_dir(User::Same);
    let socket = dir.path().join("disk0.sock");
    let listener = listen(&socket, User::Same);
    let act = ["connect", dir.path().to_str().unwrap(), socket.to_str().unwrap()];
    let (command, _root) = in_chroot(command(User::Same, Role::Vmm, Stage::Locked, &act));
    let mut inmate = connected(command);
    assert_eq!(inmate.line(), "Ok(Ok(()))");
    heard(&listener);
    assert!(inmate.finish().success());
}

fn a_single_socket_can_be_given() {
    for user in users() {
        let dir = run_dir(user);
        let (given, other) = (dir.path().join("given.sock"), dir.path().join("other.sock"));
        let listener = listen(&given, user);
        let _other = listen(&other, user);
        let mut inmate = connect(user, &given, &given);
        assert_eq!(inmate.line(), "Ok(Ok(()))", "{user:?}");
        heard(&listener);
        assert!(inmate.finish().success());
        let mut inmate = connect(user, &given, &other);
        assert!(inmate.line().contains("NotFound"), "{user:?}: the neighbour can be reached");
        assert!(inmate.finish().success());
    }
}

fn unreachable_is_an_error() {
    let missing = PathBuf::from("/run/strata-jail-missing");
    let say = |user, path: &Path| {
        let path = path.to_str().unwrap();
        run(command(user, Role::Vmm, Stage::Locked, &["connect", path, path]))
    };
    let ended = say(User::Same, &missing);
    assert!(
        ended.status.code() == Some(99) && ended.error.contains("strata-jail-missing"),
        "{}",
        ended.describe()
    );
    if users().contains(&User::Plain) {
        let dir = run_dir(User::Same);
        let ended = say(User::Plain, dir.path());
        assert!(
            ended.status.code() == Some(99) && ended.error.contains("of no use to uid"),
            "{}",
            ended.describe()
        );
    }
}
