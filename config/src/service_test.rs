use super::*;
use crate::{Machine, MachineFile};

fn machine(text: &str) -> Result<Machine, ConfigError> {
    format!("kernel = '/k'\nmemory = '256M'\n{text}").parse()
}

fn refused(text: &str) -> String {
    machine(text).unwrap_err().to_string()
}

#[test]
fn all_of_it_survives_being_written() {
    let text = "ready = 'guest'\nuuid = '6ba7b810-9dad-41d1-80b4-00c04fd430c8'\n\
        [credentials]\n'motd.welcome' = 'hello = there'\n[credential_files]\nsecret = '/s'\n\
        [resources]\ncpu_weight = 50\ncpu_quota = 250\nmemory_max = '1G'\nio_weight = 200\n";
    let first = machine(text).unwrap();
    assert_eq!(first.ready, Ready::Guest);
    assert_eq!(first.credentials["secret"], CredentialSource::File("/s".into()));
    assert_eq!(first.resources.memory_max, Some(1 << 30));
    let json = serde_json::to_string(&first).unwrap();
    assert_eq!(json.parse::<Machine>().unwrap(), first);
    let plain = machine("").unwrap();
    assert_eq!((plain.ready, plain.uuid, plain.credentials.len()), (Ready::Vmm, None, 0));
    assert_eq!(plain.resources, Resources::default());
}

#[test]
fn what_is_refused_says_what_is_allowed() {
    assert_eq!(refused("ready = 'soon'"), r#"ready = "soon": must be vmm or guest"#);
    assert!(refused("uuid = 'x'").contains("must be a UUID"));
    assert!(refused("[credentials]\n'a/b' = ''").contains("must be 1 to 255"));
    assert!(refused("[credentials]\na = \"x\\u0000\"").contains("NUL"));
    assert!(refused("[credentials]\na = ''\n[credential_files]\na = '/a'").contains("keep one"));
    assert_eq!(refused("[resources]\ncpu_weight = 0"), "resources.cpu_weight = 0: must be 1 to 10000");
    let small = refused("[resources]\nmemory_max = '300M'");
    assert!(small.contains("must be at least 320M"), "{small}");
}

#[test]
fn a_drop_in_changes_one_resource_and_adds_a_credential() {
    let mut file = MachineFile::parse(
        "kernel = '/k'\n[credentials]\na = '1'\nb = '1'\n[resources]\ncpu_weight = 1\nio_weight = 2\n",
    )
    .unwrap();
    file.overlay(
        MachineFile::parse("[credentials]\nb = '2'\nc = '2'\n[resources]\nio_weight = 3\n").unwrap(),
    );
    let machine = Machine::try_from(file).unwrap();
    assert_eq!((machine.resources.cpu_weight, machine.resources.io_weight), (Some(1), Some(3)));
    let texts: Vec<_> = machine.credentials.values().collect();
    let text = |text: &str| CredentialSource::Text(text.to_owned());
    assert_eq!(texts, [&text("1"), &text("2"), &text("2")]);
}
