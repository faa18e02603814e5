//! Files: where relative paths point, what flags override, and that the published schema is current.

use std::path::{Path, PathBuf};

use crate::{DiskEntry, Machine, MachineFile, json_schema};

#[test]
fn a_files_paths_are_relative_to_it_and_its_name_is_the_machines() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("web.toml");
    let text = "kernel = \"boot/vmlinuz\"\nconsole = \"file=log\"\n[[disk]]\npath = \"/abs.img\"\n[[net]]\nsocket = \"n.sock\"";
    std::fs::write(&path, text).unwrap();
    let file = MachineFile::from_file(&path).unwrap();
    assert_eq!(file.name.as_deref(), Some("web"));
    assert_eq!(file.kernel, Some(folder.path().join("boot/vmlinuz")));
    assert_eq!(file.console, Some(format!("file={}", folder.path().join("log").display())));
    assert_eq!(file.disk[0].path.as_deref(), Some(Path::new("/abs.img")));
    assert_eq!(file.net[0].socket, Some(folder.path().join("n.sock")));
    let odd = folder.path().join("Not A Name.toml");
    std::fs::write(&odd, text).unwrap();
    assert_eq!(MachineFile::from_file(&odd).unwrap().name, None);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = MachineFile::from_file(Path::new("/nowhere/m.toml")).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the machine file /nowhere/m.toml");
}

#[test]
fn flags_win() {
    let disk = |path: &str, id: Option<&str>| DiskEntry {
        path: Some(path.into()),
        id: id.map(str::to_owned),
        ..DiskEntry::default()
    };
    let mut file = MachineFile {
        name: Some("file".into()),
        kernel: Some("/file".into()),
        cpus: Some(2),
        disk: vec![disk("/root", Some("root")), disk("/data", None)],
        ..MachineFile::default()
    };
    file.overlay(MachineFile {
        kernel: Some("/flag".into()),
        memory: Some("1G".into()),
        no_reboot: Some(true),
        disk: vec![disk("/extra", None), disk("/other-root", Some("root"))],
        ..MachineFile::default()
    });
    assert_eq!((file.name.as_deref(), file.cpus, file.no_reboot), (Some("file"), Some(2), Some(true)));
    assert_eq!(file.kernel, Some(PathBuf::from("/flag")));
    let paths: Vec<_> = file.disk.iter().filter_map(|disk| disk.path.as_deref()?.to_str()).collect();
    assert_eq!(paths, ["/other-root", "/data", "/extra"]);
    assert_eq!(Machine::try_from(file).unwrap().memory.size, 1 << 30);
}

#[test]
fn the_published_schema_is_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/machine.schema.json");
    let current = format!("{}\n", serde_json::to_string_pretty(&json_schema()).unwrap());
    if std::env::var_os("STRATA_WRITE_SCHEMA").is_some() {
        std::fs::write(&path, &current).unwrap();
    }
    let published = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == current,
        "run STRATA_WRITE_SCHEMA=1 cargo test -p strata-config and commit {}",
        path.display()
    );
}

#[test]
fn the_schema_has_every_key_and_explains_it() {
    let schema = json_schema();
    let keys = schema["properties"].as_object().unwrap();
    let all: Machine = "uuid = '6ba7b810-9dad-41d1-80b4-00c04fd430c8'\ncredentials.a = ''\ncredential_files.b = '/b'\nresources.cpu_weight = 1\nkernel = \"/k\"\ninitrd = \"/i\"\nhugetlbfs = \"/h\"\n[[disk]]\npath = \"/a\"\n[[net]]\ntap = \"t\"\n[[device]]\nsocket = \"/s\"\ntype = 4".parse().unwrap();
    let written = serde_json::to_value(all).unwrap();
    let written = written.as_object().unwrap();
    assert_eq!(written.keys().collect::<Vec<_>>(), keys.keys().collect::<Vec<_>>());
    assert!(
        keys.values().all(|key| key["description"].as_str().is_some_and(|text| text.len() > 10)),
        "{schema:#}"
    );
    assert_eq!(schema["additionalProperties"], false);
}
