use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use strata_config::Machine;

use super::systemd::Systemd;
use super::{dropin, generate, machines};

fn texts(toml: &str) -> Vec<(String, String)> {
    texts_for(toml, Systemd::default())
}

fn texts_for(toml: &str, systemd: Systemd) -> Vec<(String, String)> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("web.toml"), toml).unwrap();
    let machine = machines::read(dir.path(), &"web".parse().unwrap()).unwrap();
    let files = dropin::of(&machine, systemd).unwrap();
    files.into_iter().map(|(path, text)| (path.display().to_string(), text)).collect()
}

fn text<'a>(files: &'a [(String, String)], name: &str) -> &'a str {
    &files.iter().find(|(path, _)| path.starts_with(name)).unwrap_or_else(|| panic!("no {name}: {files:?}")).1
}

#[test]
fn a_disk_and_a_nic_become_units_of_their_machine() {
    let files = texts(
        "kernel = '/boot/vmlinuz'\nstop_timeout = 5\n[[disk]]\npath = '/srv/a b.img'\nserial = 'S'\n[[net]]\ntap = 'tap0'\n",
    );
    assert_eq!(files.len(), 8, "{files:?}");
    let vm = text(&files, "strata-vm@web.service.d/");
    assert!(vm.contains("Requires=vhost-blk@web-disk0.socket\n"), "{vm}");
    assert!(vm.contains("After=vhost-net@web-net0.socket vhost-net@web-net0.service\n"), "{vm}");
    assert!(vm.contains("TimeoutStopSec=20\n"), "{vm}");
    let socket = text(&files, "vhost-blk@web-disk0.socket.d/");
    assert!(socket.contains("ListenStream=\nListenStream=/run/strata/web/disk0.sock\n"), "{socket}");
    let service = text(&files, "vhost-blk@web-disk0.service.d/");
    assert!(service.contains("PartOf=strata-vm@web.service\n"), "{service}");
    assert!(service.contains("\"--blk-file\" \"/srv/a b.img\""), "{service}");
    assert!(service.contains("ReadWritePaths=\"/srv/a b.img\"\n"), "{service}");
    assert!(service.contains("WatchdogSec=20000ms\n"), "{service}");
}

#[test]
fn a_nic_comes_after_what_it_is_plugged_into() {
    let files = texts(
        "kernel = '/k'\n[[net]]\nbridge = 'br0'\nvlan = 7\n[[net]]\nmacvtap = 'eth0'\n[[net]]\ntap = 'tap0'\n\
         [[net]]\nsocket = '/run/x'\n",
    );
    for (id, interface, what) in [
        ("net0", "vm-web-net0", "cable of NIC net0 (vm-web-net0 on bridge br0)"),
        ("net1", "vm-web-net1", "cable of NIC net1 (macvtap vm-web-net1 on eth0)"),
        ("net2", "tap0", "cable of NIC net2 (tap tap0)"),
    ] {
        let unit = format!("strata-attach@web-{id}.service");
        let vm = text(&files, "strata-vm@web.service.d/");
        let pulled = format!("Wants={unit}\nAfter={unit}\nAssertPathExists=/sys/class/net/{interface}\n");
        assert!(vm.contains(&pulled), "{vm}");
        let backend = text(&files, &format!("vhost-net@web-{id}.service.d/"));
        assert!(backend.contains(&format!("Requires={unit}\nAfter={unit}\n[Service]\n")), "{backend}");
        assert!(backend.contains(&format!("\"--tap\" \"{interface}\"")), "{backend}");
        // The node of a macvtap, and no other's.
        assert_eq!(backend.contains("DeviceAllow=/dev/tap"), id == "net1", "{backend}");
        let attach = text(&files, &unit);
        assert!(attach.contains(what) && attach.contains("PartOf=strata-vm@web.service\n"), "{attach}");
        let start = format!("ExecStart=/usr/bin/strata unit web --attach {id}\n");
        assert!(attach.contains(&start), "{attach}");
        // Nobody with rights is started for a tap that is there.
        assert_eq!(attach.contains("ConditionPathExists=!/sys/class/net/tap0\n"), id == "net2", "{attach}");
        assert_eq!(attach.contains("@chown"), id == "net1", "{attach}");
    }
    assert!(!files.iter().any(|(path, _)| path.contains("web-net3")), "{files:?}");
}

#[test]
fn a_systemd_that_opens_files_opens_raw_images_alone() {
    let toml = "kernel = '/k'\n[[disk]]\npath = '/srv/a b:%é.img'\n[[disk]]\npath = '/srv/r'\nreadonly = true\n\
        [[disk]]\npath = '/srv/q'\nformat = 'qcow2'\n[[disk]]\npath = '/dev/vg/d'\n";
    let files = texts_for(toml, Systemd { opens_files: true });
    let service = |disk: usize| text(&files, &format!("vhost-blk@web-disk{disk}.service.d/"));
    for line in [
        r"OpenFile=/srv/a\x20b\x3a\x25\xc3\xa9.img:image",
        r"OpenFile=/srv/a\x20b\x3a\x25\xc3\xa9.img:direct",
        "InaccessiblePaths=-/var/lib/strata",
    ] {
        assert!(service(0).contains(&format!("{line}\n")), "{}", service(0));
    }
    assert!(
        service(0).contains(r#""--image-fd" "5" "--direct-fd" "6""#)
            && !service(0).contains("ReadWritePaths")
    );
    assert!(service(1).contains("OpenFile=/srv/r:image:read-only\nOpenFile=/srv/r:direct:read-only\n"));
    for disk in [2, 3] {
        assert!(
            !service(disk).contains("OpenFile") && !service(disk).contains("--image-fd"),
            "{}",
            service(disk)
        );
        assert!(!service(disk).contains("InaccessiblePaths"), "{}", service(disk));
    }
}

#[test]
fn a_backend_is_watched_for_as_long_as_the_machine_file_says() {
    for (hung_after, watchdog) in [("'1500ms'", "1500ms"), ("'off'", "0ms")] {
        let files =
            texts(&format!("kernel = '/k'\nbackend.hung_after = {hung_after}\n[[disk]]\npath = '/d'\n"));
        let service = text(&files, "vhost-blk@web-disk0.service.d/");
        assert!(service.contains(&format!("WatchdogSec={watchdog}\n")), "{service}");
    }
}

#[test]
fn resources_go_onto_the_slice_and_credential_files_to_the_vmm_alone() {
    let files = texts(
        "kernel = '/k'\nmemory = '256M'\nready = 'guest'\n[credentials]\nmotd = 'hi'\n\
         [credential_files]\nkey = '/etc/100%'\n[resources]\ncpu_weight = 50\ncpu_quota = 250\nmemory_max = '1G'\n",
    );
    let slice = text(&files, "machine-strata-web.slice.d/");
    assert!(slice.ends_with("[Slice]\nCPUWeight=50\nCPUQuota=250%\nMemoryMax=1073741824\n"), "{slice}");
    let vm = text(&files, "strata-vm@web.service.d/");
    assert!(vm.contains("LoadCredential=guest.key:/etc/100%%\n"), "{vm}");
    assert!(!vm.contains("motd"), "{vm}");
    assert!(vm.contains("TimeoutStartSec=600\n"), "{vm}");
    assert!(text(&files, "strata/web.json").contains("\"motd\": \"hi\""));
}

#[test]
fn what_systemd_would_expand_is_escaped() {
    let files = texts("kernel = '/k'\n[[disk]]\npath = '/srv/100%$x\"y\\z.img'\nreadonly = true\n");
    let service = text(&files, "vhost-blk@web-disk0.service.d/");
    assert!(service.contains(r#""/srv/100%%$$x\"y\\z.img""#), "{service}");
    assert!(!service.contains("ReadWritePaths"), "{service}");
}

#[test]
fn a_block_device_is_allowed_and_nothing_else() {
    let files = texts("kernel = '/k'\n[[disk]]\npath = '/dev/vg/web'\n");
    let service = text(&files, "vhost-blk@web-disk0.service.d/");
    assert!(service.contains("PrivateDevices=no\nDeviceAllow=/dev/vg/web rw\n"), "{service}");
}

#[test]
fn drop_ins_lie_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("web.toml"), "name = 'other'\nkernel = '/k'\ncpus = 1\n").unwrap();
    std::fs::create_dir(dir.path().join("web.toml.d")).unwrap();
    std::fs::write(dir.path().join("web.toml.d/10-cpus.toml"), "cpus = 3\n").unwrap();
    let machine = machines::read(dir.path(), &"web".parse().unwrap()).unwrap();
    assert_eq!((machine.cpus, machine.name.as_str()), (3, "web"));
}

fn unit_of(folder: &Path, name: &str) -> String {
    std::fs::read_to_string(folder.join(format!("strata-vm@{name}.service.d/50-machine.conf"))).unwrap()
}

#[test]
fn a_wrong_file_costs_its_own_machine_only() {
    let dir = tempfile::tempdir().unwrap();
    let (machines, out) = (dir.path().join("machines"), dir.path().join("out"));
    std::fs::create_dir(&machines).unwrap();
    std::fs::write(machines.join("bad.toml"), "kernel = '/k'\ncpus = 100%\n").unwrap();
    std::fs::write(machines.join("good.toml"), "kernel = '/k'\n").unwrap();
    // Two machines whose devices would share a unit.
    std::fs::write(machines.join("a.toml"), "kernel = '/k'\n[[disk]]\npath = '/d'\nid = 'b-c'\n").unwrap();
    std::fs::write(machines.join("a-b.toml"), "kernel = '/k'\n[[disk]]\npath = '/d'\nid = 'c'\n").unwrap();
    generate(&machines, &out, Systemd::default()).unwrap();
    let good = out.join("strata/good.json");
    // It may hold credentials.
    assert_eq!(std::fs::metadata(&good).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(Machine::from_file(&good).unwrap().uuid.is_some());
    assert!(!out.join("strata/bad.json").exists());
    assert!(unit_of(&out, "bad").contains("Description=Strata virtual machine bad ("));
    assert_eq!(unit_of(&out, "bad").lines().count(), 2);
    assert!(out.join("strata/a.json").is_file() != out.join("strata/a-b.json").is_file());
    // No folder of machine files is no error: the package may be there before the first machine.
    generate(&dir.path().join("none"), &out, Systemd::default()).unwrap();
}
