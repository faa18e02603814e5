//! Labs: what ten lines become, and the words each mistake is refused with.

use super::*;
use crate::net::NetSource;

const LAB: &str = r#"
defaults = { kernel = "vmlinuz", memory = "128M", cmdline = "console=hvc0 host={name}", disk = [{ path = "{name}.img" }] }
switch.lan.ageing = 60
machine = [
  { name = "web", net = [{ switch = "lan", vlan = 10 }] },
  { name = "db", net = [{ switch = "lan", vlan = 20, isolated = true, tx_rate = "10M" }], memory = "256M" },
  { name = "gw", net = [{ switch = "lan", trunk = [10, 20] }, { switch = "wan" }, { switch = "lan" }], disk = [] },
]
"#;

fn lab(text: &str) -> Result<Lab, ConfigError> {
    Lab::parse(text, Path::new("/labs"), Path::new("/run/strata"))
}

fn socket(machine: &Machine, at: usize) -> String {
    match &machine.nets[at].source {
        NetSource::Socket(path) => path.display().to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_few_lines_are_switches_and_machines() {
    let lab = lab(LAB).unwrap();
    let [lan, wan] = lab.switches.as_slice() else { panic!("two switches") };
    assert_eq!((lan.name.as_str(), lan.ageing, wan.name.as_str()), ("lan", 60, "wan"));
    let ports = |switch: &Switch| switch.ports.iter().map(|port| port.name.to_string()).collect::<Vec<_>>();
    assert_eq!(
        (ports(lan), ports(wan)),
        (["web", "db", "gw", "gw-net2"].map(str::to_owned).into(), vec!["gw".into()])
    );
    assert_eq!(lan.ports[0].vlans.untagged, Some(10));
    assert!(lan.ports[1].isolated && lan.ports[1].tx.rate.is_some());
    assert_eq!((lan.ports[2].vlans.untagged, lan.ports[2].vlans.tagged.as_slice()), (None, &[10, 20][..]));
    let [web, db, gw] = lab.machines.as_slice() else { panic!("three machines") };
    assert_eq!(web.kernel, Path::new("/labs/vmlinuz"));
    assert_eq!(web.cmdline, "console=hvc0 host=web");
    assert_eq!((web.memory.size >> 20, db.memory.size >> 20), (128, 256));
    assert_eq!((web.disks.len(), gw.disks.len()), (1, 0));
    assert!(format!("{:?}", db.disks[0].source).contains("/labs/db.img"));
    assert_eq!(socket(web, 0), "/run/strata/.switches/lan/ports/web/sock");
    assert_eq!(socket(gw, 2), "/run/strata/.switches/lan/ports/gw-net2/sock");
    assert_eq!(lan.ports[0].mac, Mac::generated(&web.name, 0), "as if it were on a tap");
}

#[test]
fn ports_may_be_the_switchs_own() {
    let given = "defaults = { kernel = \"k\" }\n[[switch.lan.port]]\nname = \"door\"\nvlan = 7\n\
                 [[machine]]\nname = \"a\"\nnet = [{ switch = \"lan\", port = \"door\" }]";
    let lab = lab(given).unwrap();
    assert_eq!((lab.switches[0].ports.len(), lab.switches[0].ports[0].vlans.untagged), (1, Some(7)));
    assert!(socket(&lab.machines[0], 0).ends_with("/lan/ports/door/sock"));
}

#[test]
fn mistakes_are_told_where_and_why() {
    let one = |keys: &str| format!("defaults = {{ kernel = \"k\" }}\n[[machine]]\nname = \"a\"\n{keys}");
    for (text, expected) in [
        (String::new(), "machine is missing"),
        ("machine = [{ kernel = \"k\" }]".to_owned(), "machine[0].name is missing"),
        ("machine = [{ name = \"a\" }]".to_owned(), "machine[0].kernel is missing"),
        (one("cpus = 0"), "machine[0].cpus = 0"),
        (one("cpsu = 1"), "machine[0]: unknown key `cpsu`, did you mean `cpus`?"),
        (one("net = [{ switch = \"a/b\" }]"), "machine[0].net[0].switch = \"a/b\""),
        (one("net = [{ switch = \"s\", vlan = 5000 }]"), "switch.s.port[0].vlan = 5000"),
        (one("net = [{ switch = \"s\", vlna = 1 }]"), "machine[0].net[0]: unknown key `vlna`"),
        (one("[[machine]]\nname = \"a\""), "machine[1].name = \"a\": another machine has it"),
        (format!("switches = 1\n{}", one("")), "unknown key `switches`, did you mean `switch`?"),
        (format!("switch = 1\n{}", one("")), "switch: must be a table"),
        (format!("switch.s = {{ agein = 1 }}\n{}", one("")), "switch.s: unknown key `agein`"),
    ] {
        let error = lab(&text).expect_err(&text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
    let twice = "defaults = { kernel = \"k\" }\n[[switch.lan.port]]\nname = \"door\"\n[[machine]]\nname = \"a\"\n\
                 net = [{ switch = \"lan\", port = \"door\", vlan = 7 }]";
    assert!(lab(twice).unwrap_err().to_string().contains("`vlan` is the port's"));
}
