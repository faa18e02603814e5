use super::*;
use crate::{Machine, MachineFile};

fn machine(keys: &str) -> Result<Machine, ConfigError> {
    format!("kernel = \"/k\"\n{keys}").parse()
}

#[test]
fn by_default_vcpus_are_cores_of_one_socket_and_wander() {
    let machine = machine("cpus = 3").unwrap();
    assert_eq!(machine.profile, Profile::Auto);
    let topology = Topology { sockets: 1, cores: 3, threads: 1 };
    assert_eq!(machine.vcpu, Vcpu { nested: true, halt: Halt::Host, pin: vec![], topology });
}

#[test]
fn everything_can_be_said() {
    let keys = "profile = \"nested\"\n[vcpu]\ncount = 8\npin = \"2-5,8,10-12\"\nhalt = \"poll\"\nnested = false\n\
                sockets = 2\nthreads = 2";
    let machine = machine(keys).unwrap();
    assert_eq!((machine.cpus, machine.profile), (8, Profile::Nested));
    let topology = Topology { sockets: 2, cores: 2, threads: 2 };
    let pin = vec![2, 3, 4, 5, 8, 10, 11, 12];
    assert_eq!(machine.vcpu, Vcpu { nested: false, halt: Halt::Poll, pin, topology });
    // And survives being handed to the vmm.
    let json = serde_json::to_string(&machine).unwrap();
    assert_eq!(json.parse::<Machine>().unwrap(), machine);
}

#[test]
fn what_is_not_said_follows_from_the_rest() {
    for (keys, expected) in [
        ("cpus = 8\n[vcpu]\nthreads = 2", (1, 4, 2)),
        ("cpus = 8\n[vcpu]\ncores = 2", (4, 2, 1)),
        ("cpus = 8\n[vcpu]\ncores = 2\nthreads = 2", (2, 2, 2)),
        ("cpus = 6\n[vcpu]\nsockets = 2\ncores = 3", (2, 3, 1)),
    ] {
        let Topology { sockets, cores, threads } = machine(keys).unwrap().vcpu.topology;
        assert_eq!((sockets, cores, threads), expected, "{keys}");
    }
}

#[test]
fn ids_have_a_field_for_each_level() {
    let ids = |sockets, cores, threads| {
        let topology = Topology { sockets, cores, threads };
        (0..sockets * cores * threads).map(|index| topology.apic_id(index)).collect::<Vec<_>>()
    };
    assert_eq!(ids(1, 4, 1), [0, 1, 2, 3]);
    assert_eq!(ids(2, 3, 1), [0, 1, 2, 4, 5, 6]);
    assert_eq!(ids(1, 2, 2), [0, 1, 2, 3]);
    assert_eq!(ids(2, 1, 3), [0, 1, 2, 4, 5, 6]);
    assert_eq!(ids(255, 1, 1).last(), Some(&254));
}

#[test]
fn refusals_say_what_is_allowed() {
    for (keys, expected) in [
        ("profile = \"fast\"", r#"profile = "fast": must be auto, nested or bare"#),
        ("cpus = 2\n[vcpu]\ncount = 3", "cpus, vcpu.count: 2 and 3 vCPUs; keep one of the two"),
        ("[vcpu]\ncount = 0", "vcpu.count = 0: must be 1 to 255"),
        ("[vcpu]\nhalt = \"spin\"", r#"vcpu.halt = "spin": must be poll, host or guest"#),
        ("[vcpu]\nhalt = \"guest\"", r#"vcpu.halt = "guest": needs `pin`"#),
        ("cpus = 2\n[vcpu]\npin = [1]", "vcpu.pin = [1]: 1 host CPUs for 2 vCPUs"),
        ("cpus = 2\n[vcpu]\npin = \"1,1\"", r#"vcpu.pin = "1,1": each vCPU needs a host CPU of its own"#),
        ("[vcpu]\npin = \"4-\"", r#"vcpu.pin = "4-": must be CPU numbers below 8192"#),
        ("[vcpu]\npin = \"+4\"", r#"vcpu.pin = "+4": must be CPU numbers"#),
        ("[vcpu]\npin = \"0-99999999999\"", "must be CPU numbers below 8192"),
        ("[vcpu]\npin = [-1]", "vcpu.pin = [-1]: must be CPU numbers"),
        ("[vcpu]\npin = true", "vcpu.pin = true: must be a list of CPU numbers"),
        ("cpus = 4\n[vcpu]\nthreads = 3", "vcpu.sockets, cores, threads = 1, 1, 3: their product must be"),
        ("cpus = 240\n[vcpu]\ncores = 3", "need APIC ids above 254"),
        ("[vcpu]\nsockets = 0", "vcpu.sockets = 0: must be 1 to 255"),
    ] {
        let text = machine(keys).expect_err(keys).to_string();
        assert!(text.contains(expected), "{keys}\n got: {text}\nwant: {expected}");
    }
}

#[test]
fn a_flag_wins_over_the_file_whichever_key_it_uses() {
    let over = |file: &str, flags: MachineFile| {
        let mut file = MachineFile::from_toml(&format!("kernel = \"/k\"\n{file}")).unwrap();
        file.overlay(flags);
        Machine::try_from(file).unwrap().cpus
    };
    let count = |text| MachineFile { vcpu: VcpuEntry::from_flag(text).unwrap(), ..MachineFile::default() };
    assert_eq!(over("cpus = 2", count("count=4")), 4);
    assert_eq!(over("[vcpu]\ncount = 2", MachineFile { cpus: Some(5), ..MachineFile::default() }), 5);
    let flag = VcpuEntry::from_flag("pin=0-1,halt=guest").unwrap();
    assert_eq!(flag.pin, Some(CpuList::Text("0-1".into())));
    assert_eq!(VcpuEntry::from_flag("pin=3,,5").unwrap().pin, Some(CpuList::Text("3,5".into())));
}
