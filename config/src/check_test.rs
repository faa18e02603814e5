//! Every rule and the words it is refused with; and that a checked machine survives being written and read.

use std::time::Duration;

use crate::{
    Cable, ConfigError, Console, DeviceEntry, Disk, DiskEntry, DiskSource, Format, Mac, Machine, MachineFile,
    NetEntry,
};

fn machine(keys: &str) -> Result<Machine, ConfigError> {
    // Top-level keys must come before tables in TOML.
    format!("kernel = \"/k\"\n{keys}").parse()
}

fn refusal(keys: &str) -> String {
    machine(keys).expect_err(keys).to_string()
}

#[test]
fn a_kernel_is_all_it_needs() {
    let machine = machine("").unwrap();
    assert_eq!(machine.name.as_str(), "machine");
    assert_eq!((machine.cpus, machine.memory.size), (1, 512 << 20));
    assert_eq!(machine.cmdline, "console=hvc0");
    assert_eq!((machine.console, machine.serial), (Console::Stdio, Console::Off));
    assert!(machine.sandbox && machine.vcpu.nested && !machine.no_reboot && !machine.memory.prefault);
    assert_eq!(machine.stop_timeout, Duration::from_secs(30));
    assert!(machine.disks.is_empty() && machine.nets.is_empty() && machine.devices.is_empty());
}

#[test]
fn all_keys_are_read() {
    let machine: Machine = r#"
        name = "web-1.test_a"
        kernel = "/boot/vmlinuz"
        initrd = "/boot/initrd"
        cmdline = "root=/dev/vda console=hvc0"
        cpus = 4
        memory = "6G"
        console = "file=/tmp/log"
        serial = "pty"
        no_reboot = true
        sandbox = false
        stop_timeout = "500ms"
        hugetlbfs = "/dev/hugepages"
        prefault = true
        [vcpu]
        nested = false
        [[disk]]
        path = "/img"
        format = "qcow2"
        readonly = true
        serial = "ABC 123"
        queues = 3
        id = "root"
        [[disk]]
        socket = "/run/blk.sock"
        [[net]]
        tap = "tap0"
        mac = "52:54:00:12:34:56"
        queues = 2
        [[net]]
        socket = "/run/net.sock"
        [[device]]
        socket = "/run/rng.sock"
        type = "rng"
        [[device]]
        socket = "/run/fs.sock"
        type = 26
        queues = 2
        id = "share"
    "#
    .parse()
    .unwrap();
    assert_eq!(machine.name.as_str(), "web-1.test_a");
    assert_eq!(machine.memory.hugetlbfs.as_deref(), Some("/dev/hugepages".as_ref()));
    assert_eq!(
        (machine.console.clone(), machine.serial.clone()),
        (Console::File("/tmp/log".into()), Console::Pty)
    );
    assert!(machine.no_reboot && !machine.sandbox && machine.memory.prefault && !machine.vcpu.nested);
    assert_eq!(machine.stop_timeout, Duration::from_millis(500));
    let [root, other] = machine.disks.as_slice() else { panic!("{:?}", machine.disks) };
    assert_eq!(root.id.as_str(), "root");
    let DiskSource::File { path, format, readonly, serial, .. } = &root.source else { panic!("{root:?}") };
    assert_eq!(
        (path.to_str(), *format, *readonly, serial.as_deref()),
        (Some("/img"), Some(Format::Qcow2), true, Some("ABC 123"))
    );
    assert_eq!((machine.disk_queues(root), other.id.as_str()), (3, "disk1"));
    assert_eq!(other.source, DiskSource::Socket("/run/blk.sock".into()));
    let mac = "52:54:00:12:34:56".parse().unwrap();
    let own = machine.nets[0].source.own().unwrap();
    assert_eq!((&own.cable, own.mac), (&Cable::Tap("tap0".into()), mac));
    assert_eq!((machine.net_queues(&machine.nets[0]), machine.nets[1].id.as_str()), (2, "net1"));
    let devices: Vec<_> = machine.devices.iter().map(|d| (d.id.as_str(), d.device_id, d.queues)).collect();
    assert_eq!(devices, [("dev0", 4, None), ("share", 26, Some(2))]);
}

#[test]
fn what_is_refused_says_key_value_and_what_is_allowed() {
    for (keys, expected) in [
        (
            "name = \"Web\"",
            r#"name = "Web": must be 1 to 64 characters of a-z, 0-9, `-`, `_` and `.`, starting with a letter or digit"#,
        ),
        ("name = \"../x\"", r#"name = "../x": must be 1 to 64"#),
        ("name = \".x\"", r#"name = ".x": must be 1 to 64"#),
        ("name = \"\"", r#"name = "": must be 1 to 64"#),
        ("cpus = 0", "cpus = 0: must be 1 to 255"),
        ("cpus = 256", "cpus = 256: must be 1 to 255"),
        ("cpus = -1", "cpus = -1: must be 1 to 255"),
        ("cpus = \"four\"", r#"cpus = "four": must be a whole number"#),
        ("cpus = 1.5", "cpus = 1.5: must be a whole number"),
        ("memory = \"16M\"", r#"memory = "16M": must be 32M to 16T and a multiple of 2M"#),
        ("memory = 513", "memory = 513: must be 32M to 16T and a multiple of 2M"),
        ("memory = \"1GB\"", r#"memory = "1GB": must be a whole number with K, M, G or T (or KiB"#),
        ("memory = true", "memory = true: must be a whole number or text"),
        ("initrd = \"\"", r#"initrd = "": must be a path"#),
        ("cmdline = \"a\\nb\"", r#"cmdline = "a\nb": must be one line without NUL"#),
        ("console = \"tty\"", r#"console = "tty": must be stdio, off, pty or file=PATH"#),
        ("serial = \"file=\"", r#"serial = "file=": must be stdio, off, pty or file=PATH"#),
        ("console = \"stdio\"\nserial = \"stdio\"", r#"serial = "stdio": the console has stdio"#),
        ("sandbox = 1", "sandbox = 1: must be true or false"),
        (
            "stop_timeout = \"2h\"",
            r#"stop_timeout = "2h": must be seconds, or a whole number with ms, s or m, such as 30s"#,
        ),
        ("stop_timeout = 3601", "stop_timeout = 3601: must be at most 60m"),
        ("vcpu = 4", "vcpu = 4: must be a table of keys"),
        ("disk = \"img\"", r#"disk = "img": must be a list"#),
        ("[[disk]]", "disk[0]: needs `path` or `socket`"),
        (
            "[[disk]]\npath = \"/a\"\nsocket = \"/b\"",
            "disk[0]: `path` and `socket` exclude one another; keep one",
        ),
        (
            "[[disk]]\nsocket = \"/b\"\nreadonly = true",
            "disk[0]: `readonly` does not go with `socket`: set it where that backend is started",
        ),
        ("[[disk]]\npath = \"/a\"\nformat = \"vmdk\"", r#"disk[0].format = "vmdk": must be raw or qcow2"#),
        (
            "[[disk]]\npath = \"/a\"\nserial = \"123456789012345678901\"",
            r#"disk[0].serial = "123456789012345678901": must be 1 to 20 printable ASCII characters"#,
        ),
        ("[[disk]]\npath = \"/a\"\nserial = \"ä\"", r#"disk[0].serial = "ä": must be"#),
        ("[[disk]]\npath = \"/a\"\nqueues = 65", "disk[0].queues = 65: must be 1 to 64"),
        (
            "[[disk]]\npath = \"/a\"\n[[disk]]\npath = \"/b\"\nid = \"disk0\"",
            r#"disk[1].id = "disk0": another device has it; ids must differ"#,
        ),
        ("[[disk]]\npath = \"/a\"\nid = \"vmm\"", r#"disk[0].id = "vmm": is taken by Strata's own files"#),
        ("[[disk]]\npath = \"/a\"\nid = \"a/b\"", r#"disk[0].id = "a/b": must be 1 to 32"#),
        ("[[net]]", "net[0]: needs `tap`, `bridge`, `macvtap`, `switch` or `socket`"),
        (
            "[[net]]\ntap = \"tap0\"\nmac = \"01:00:00:00:00:00\"",
            r#"net[0].mac = "01:00:00:00:00:00": must be a unicast address"#,
        ),
        (
            "[[net]]\ntap = \"tap0\"\nmac = \"2:0:0:0:0:0\"",
            r#"net[0].mac = "2:0:0:0:0:0": must be six bytes in hexadecimal, such as 02:00:00:aa:bb:cc"#,
        ),
        ("[[net]]\ntap = \"a-name-too-long-for-linux\"", "must be an interface name: 1 to 15 characters"),
        ("[[net]]\ntap = \"../x\"", "must be an interface name"),
        ("[[net]]\nsocket = \"/s\"\nmac = \"02:00:00:00:00:01\"", "net[0]: `mac` does not go with `socket`"),
        (
            "[[device]]\ntype = \"rng\"",
            "device[0].socket is missing: the socket of a running vhost-user backend",
        ),
        ("[[device]]\nsocket = \"/s\"", "device[0].type is missing: the virtio device type"),
        (
            "[[device]]\nsocket = \"/s\"\ntype = \"vsok\"",
            r#"device[0].type = "vsok": must be 1 to 63 or one of net, block, console, rng"#,
        ),
        ("[[device]]\nsocket = \"/s\"\ntype = \"vsok\"", "(did you mean vsock?)"),
        ("[[device]]\nsocket = \"/s\"\ntype = 64", "device[0].type = 64: must be 1 to 63"),
        ("[[device]]\nsocket = \"\"\ntype = 4", r#"device[0].socket = "": must be a path"#),
    ] {
        let text = refusal(keys);
        assert!(text.contains(expected), "{keys}\n got: {text}\nwant: {expected}");
    }
    let long = refusal(&format!("[[device]]\nsocket = \"/{}\"\ntype = 4", "x".repeat(107)));
    assert!(long.contains("a socket's path has at most 107 bytes"), "{long}");
    let long = refusal(&format!("cmdline = \"{}\"", "x".repeat(2048)));
    assert!(long.contains("cmdline = 2048 bytes: Linux takes at most 2047"), "{long}");
    let many = refusal(&"[[disk]]\npath = \"/a\"\n".repeat(31));
    assert!(many.contains("31 devices; a machine has room for 30"), "{many}");
    let none = "".parse::<Machine>().unwrap_err().to_string();
    assert_eq!(none, "kernel is missing: give a bzImage or vmlinux with --kernel FILE or kernel = \"FILE\"");
}

#[test]
fn unknown_keys_name_the_nearest() {
    for (keys, expected) in [
        ("kernal = \"/k\"", "unknown key `kernal`, did you mean `kernel`?; the keys are: name, kernel,"),
        ("no-reboot = true", "unknown key `no-reboot`, did you mean `no_reboot`?"),
        ("zzzzzz = 1", "unknown key `zzzzzz`; the keys are: name, kernel,"),
        (
            "[[disk]]\npth = \"/a\"",
            "disk[0]: unknown key `pth`, did you mean `path`?; its keys are: path, socket,",
        ),
        ("[vcpu]\nnestd = true", "vcpu: unknown key `nestd`, did you mean `nested`?"),
    ] {
        let text = refusal(keys);
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_swapped_letter_is_one_mistake_and_a_strange_word_has_no_nearest() {
    use crate::nearest;
    assert_eq!(nearest("rgn", &["net", "rng", "fs"]), Some("rng"));
    assert_eq!(nearest("kenrel", &["kernel", "name"]), Some("kernel"));
    assert_eq!(nearest("", &["kernel"]), None);
    assert_eq!(nearest("zzz", &["fs", "rng"]), None);
}

#[test]
fn syntax_errors_say_where() {
    let text = refusal("cpus = = 3");
    assert!(text.starts_with("not valid TOML: ") && text.contains("line 2"), "{text}");
    let text = "{\"kernel\": \"/k\",}".parse::<Machine>().unwrap_err().to_string();
    assert!(text.starts_with("not valid JSON: ") && text.contains("line 1 column 17"), "{text}");
    let text = r#"{"kernel": "/k", "kernel": "/l"}"#.parse::<Machine>().unwrap_err().to_string();
    assert!(text.contains("key `kernel` is given twice"), "{text}");
}

#[test]
fn flags_are_read_by_the_same_rules() {
    let disk = DiskEntry::from_flag("path=/a,,b.img,format=raw,readonly,serial=S=1,queues=2").unwrap();
    let expected = DiskEntry {
        path: Some("/a,b.img".into()),
        format: Some("raw".into()),
        readonly: Some(true),
        serial: Some("S=1".into()),
        queues: Some(2),
        ..DiskEntry::default()
    };
    assert_eq!(disk, expected);
    assert_eq!(DiskEntry::from_flag("path=/a,readonly=off").unwrap().readonly, Some(false));
    assert_eq!(NetEntry::from_flag("tap=007").unwrap().tap.as_deref(), Some("007"));
    assert_eq!(DeviceEntry::from_flag("socket=/s,type=4").unwrap().kind.unwrap().to_string(), "\"4\"");
    for (flag, expected) in [
        ("path=/a,queues=many", r#"queues = "many": must be a whole number"#),
        ("path=/a,readonly=maybe", r#"readonly = "maybe": must be true or false"#),
        ("path=/a,pathe=/b", "unknown key `pathe`, did you mean `path`?"),
        ("/a.img", "unknown key `/a.img`; the keys are: path, socket"),
        ("path=/a,path=/b", r#""path=/a,path=/b": key `path` is given twice"#),
        ("path=", r#""path=": `path=` has no value"#),
        ("=x", r#""=x": a key is missing; write key=value[,key=value...]"#),
        ("", r#""": a key is missing"#),
    ] {
        let text = DiskEntry::from_flag(flag).expect_err(flag).to_string();
        assert!(text.contains(expected), "{flag}\n got: {text}\nwant: {expected}");
    }
}

#[test]
fn the_serial_port_takes_stdio_from_the_console() {
    let machine = machine("serial = \"stdio\"").unwrap();
    assert_eq!((machine.console, machine.serial), (Console::Off, Console::Stdio));
    assert_eq!(machine.cmdline, "console=ttyS0");
}

#[test]
fn generated_addresses_are_stable_and_differ() {
    let addresses = |name: &str| -> Vec<Mac> {
        let machine: Machine =
            format!("name = \"{name}\"\nkernel = \"/k\"\n{}", "[[net]]\ntap = \"t\"\n".repeat(8))
                .parse()
                .unwrap();
        let of = |net: &crate::Net| net.source.own().unwrap().mac;
        machine.nets.iter().map(of).collect()
    };
    let mut all: Vec<Mac> = ["a", "b", "web"].into_iter().flat_map(addresses).collect();
    assert_eq!(addresses("web"), all[16..]);
    assert_eq!(all[0].to_string(), "02:38:61:89:84:15");
    // Locally administered, unicast.
    assert!(all.iter().all(|mac| mac.bytes()[0] == 0x02));
    all.sort_by_key(|mac| mac.bytes());
    all.dedup();
    assert_eq!(all.len(), 24);
}

#[test]
fn what_the_launcher_writes_the_vmm_reads() {
    let numbers = (1_u64..400).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 8);
    for n in numbers {
        let pick =
            |shift: u64, choices: &[&'static str]| choices[(n >> shift) as usize % choices.len()].to_owned();
        let mut file = MachineFile {
            name: Some(format!("m{n}")),
            kernel: Some(format!("/k {n} \u{fc}\"\\").into()),
            cpus: Some(1 + (n % 255) as i64),
            memory: Some(crate::NumberOrText::Number(32 + 2 * (n % 100_000) as i64)),
            console: Some(pick(3, &["off", "pty", "stdio", "file=/x=y,z"])),
            serial: Some(pick(5, &["off", "pty", "file=/s"])),
            stop_timeout: Some(pick(7, &["1", "5ms", "60m", "1001ms"]).as_str().into()),
            sandbox: Some(n & 1 == 0),
            ..MachineFile::default()
        };
        for i in 0..(n >> 9) % 4 {
            let queues = (i % 2 == 0).then_some(1 + (n % 64) as i64);
            let disk = DiskEntry {
                path: Some("/d".into()),
                readonly: Some(n & 2 == 0),
                queues,
                ..DiskEntry::default()
            };
            let socket = DiskEntry { socket: Some("/s".into()), queues, ..DiskEntry::default() };
            file.disk.extend([disk, socket]);
            file.net.push(NetEntry { tap: Some(format!("t{i}")), ..NetEntry::default() });
            let kind = Some(crate::NumberOrText::Number(1 + (n % 63) as i64));
            file.device.push(DeviceEntry { socket: Some("/x".into()), kind, ..DeviceEntry::default() });
        }
        let machine = Machine::try_from(file).unwrap();
        let json = serde_json::to_string(&machine).unwrap();
        assert_eq!(json.parse::<Machine>().unwrap(), machine, "{json}");
        assert_eq!(serde_json::from_str::<Machine>(&json).unwrap(), machine, "{json}");
        let toml = toml::to_string(&machine).unwrap();
        assert_eq!(toml.parse::<Machine>().unwrap(), machine, "{toml}");
    }
}

#[test]
fn an_image_gets_a_queue_per_cpu_up_to_eight() {
    for (cpus, queues) in [(1, 1), (4, 4), (16, 8)] {
        let machine = machine(&format!("cpus = {cpus}\n[[disk]]\npath = \"/a\"")).unwrap();
        let disk: &Disk = &machine.disks[0];
        assert_eq!(machine.disk_queues(disk), queues);
    }
}
