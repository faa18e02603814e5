use super::*;

fn machine(text: &str) -> Machine {
    format!("kernel = \"/k\"\ncpus = 2\n{text}").parse().unwrap()
}

#[test]
fn own_backends_are_in_the_machines_folder_and_others_where_they_say() {
    let run_dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let real = |folder: &Path| folder.canonicalize().unwrap();
    let machine = machine(&format!(
        r#"
        [[disk]]
        path = "/img"
        [[disk]]
        socket = "{0}/blk.sock"
        queues = 3
        [[net]]
        tap = "tap0"
        mac = "52:54:00:12:34:56"
        [[net]]
        socket = "/tmp/net.sock"
        [[device]]
        socket = "{0}/rng.sock"
        type = "rng"
        "#,
        elsewhere.path().display()
    ));
    let (all, visible) = settings(&machine, &Place::new(&machine, run_dir.path()).unwrap()).unwrap();
    let seen: Vec<_> = all.iter().map(|s| (s.id.as_str(), s.path.clone(), s.kind.name(), s.queues)).collect();
    let (own, other) = (real(run_dir.path()), real(elsewhere.path()));
    assert_eq!(
        seen,
        [
            ("disk0", own.join("disk0.sock"), "blk", Some(2)),
            ("disk1", other.join("blk.sock"), "blk", Some(3)),
            ("net0", own.join("net0.sock"), "net", Some(1)),
            ("net1", real(Path::new("/tmp")).join("net.sock"), "net", None),
            ("dev0", other.join("rng.sock"), "rng", None),
        ]
    );
    assert!(matches!(all[2].kind, Kind::Net { mac: Some([0x52, 0x54, 0, 0x12, 0x34, 0x56]) }));
    // A folder of one's own is shown whole, once; of a crowded one only the socket.
    assert_eq!(visible, [own, other, PathBuf::from("/tmp/net.sock")]);
}

#[test]
fn of_the_folder_that_holds_the_machines_only_the_socket_is_shown() {
    let base = tempfile::tempdir().unwrap();
    let run_dir = base.path().join("web");
    std::fs::create_dir(&run_dir).unwrap();
    let base = base.path().canonicalize().unwrap();
    let machine = machine(&format!("[[disk]]\nsocket = \"{}/blk.sock\"", base.display()));
    let (_, visible) = settings(&machine, &Place::new(&machine, &run_dir).unwrap()).unwrap();
    assert_eq!(visible, [base.join("web"), base.join("blk.sock")]);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let error = Place::new(&machine(""), Path::new("/nonexistent/run")).unwrap_err().to_string();
    assert_eq!(error, "cannot find the folder /nonexistent/run");
}
