//! The machine that the cases run: `web`, with a disk and a NIC on a bridge of networkd's, as in the examples.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Context as _;
use strata_rig::debian::Release;
use strata_tests::node::Node;
use strata_tests::process::until;
use strata_tests::{Context, guest, image};

/// The disk's image.
pub(super) const IMAGE: &str = "/var/lib/strata/web.img";
const CONSOLE: &str = "/var/log/strata/web.console";

/// The machine's.
pub(super) const UUID: &str = "6ba7b810-9dad-41d1-80b4-00c04fd430c8";

/// `/etc/strata/machines/web.toml`
const MACHINE: &str = r#"
kernel = "/var/lib/strata/vmlinuz"
initrd = "/var/lib/strata/initrd.img"
cmdline = "console=hvc0 quiet loglevel=4 panic=-1"
memory = "256M"
stop_timeout = 100
ready = "guest"
uuid = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
[credentials]
"test.text" = "hello there"
[credential_files]
"test.secret" = "/etc/strata/secret"
[backend]
hung_after = 6
[resources]
cpu_weight = 50
memory_max = "1G"
"#;
const DEVICES: &str = r#"
[[disk]]
path = "/var/lib/strata/web.img"
serial = "it is 100% web"
[[net]]
mac = "52:54:00:12:34:56"
"#;
/// What its NIC may be plugged into: a tap that networkd has made, or a port that is made for it.
pub(super) const TAP: &str = r#"tap = "tap-web""#;
pub(super) const PORT: &str = "bridge = \"br-strata\"\nvlan = 10";

/// Makes the tap of the examples, and nothing that it could be connected to.
pub(super) fn tap(node: &Node) -> anyhow::Result<()> {
    let tap = "10-tap-web.netdev";
    node.run(&["cp", &format!("/usr/share/doc/strata/examples/{tap}"), "/etc/systemd/network/"])?;
    node.run(&["systemctl", "start", "systemd-networkd"])?;
    until("networkd to make the tap", || Ok(node.path("/sys/class/net/tap-web").exists()))
}

/// Makes the bridge of the examples, as it is, and gives the host an address in the guest's VLAN.
pub(super) fn bridge(node: &Node) -> anyhow::Result<()> {
    let network = "/etc/systemd/network";
    node.run(&["sh", "-c", &format!("cp /usr/share/doc/strata/examples/20-br-strata.net* {network}/")])?;
    let own = node.path(network).join("20-br-strata.network.d");
    fs::create_dir_all(&own)?;
    let text = "[Network]\nAddress=10.77.0.1/24\n[BridgeVLAN]\nVLAN=10\nPVID=10\nEgressUntagged=10\n";
    fs::write(own.join("address.conf"), text).context("cannot give the bridge an address")?;
    node.run(&["systemctl", "enable", "--now", "systemd-networkd"])?;
    until("networkd to make the bridge", || {
        Ok(node.run(&["networkctl", "status", "br-strata"])?.contains("10.77.0.1"))
    })
}

/// As [`bridge`], with the tap of the examples plugged in.
pub(super) fn bridged_tap(node: &Node) -> anyhow::Result<()> {
    node.run(&["sh", "-c", "cp /usr/share/doc/strata/examples/10-tap-web.net* /etc/systemd/network/"])?;
    bridge(node)?;
    until("networkd to plug the tap in", || Ok(node.path("/sys/class/net/tap-web/brport").exists()))
}

/// Puts kernel, initramfs with `script`, image and machine file in place. The console goes to a file, the NIC's cable to
/// [`TAP`] or [`PORT`].
pub(super) fn install(context: &Context, node: &Node, script: &str, cable: &str) -> anyhow::Result<()> {
    let folder = node.path("/var/lib/strata");
    fs::copy(context.place.guest_vmlinuz(), folder.join("vmlinuz")).context("cannot copy the kernel")?;
    guest::initrd(&context.place, &folder.join("initrd.img"), script, &[])?;
    image::empty(&node.path(IMAGE), 16 << 20)?;
    node.run(&["sh", "-c", "chmod 644 /var/lib/strata/vmlinuz /var/lib/strata/initrd.img"])?;
    node.run(&["install", "-d", "-o", "strata-vm", "/var/log/strata"])?;
    // The account need not be let at an image that systemd opens.
    match node.release() {
        Release::Host => node.run(&["chown", "strata-blk:", IMAGE])?,
        Release::Trixie => node.run(&["chmod", "600", IMAGE])?,
    };
    let secret = node.path("/etc/strata/secret");
    fs::write(&secret, b"\0binary").context("cannot write the secret")?;
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600))?;
    node.machine("web", &format!("console = \"file={CONSOLE}\"\n{MACHINE}{DEVICES}{cable}\n"))
}

/// What the guest has said, over all its lives.
pub(super) struct Console {
    path: std::path::PathBuf,
}

impl Console {
    pub(super) fn of(node: &Node) -> Self {
        Self { path: node.path(CONSOLE) }
    }

    pub(super) fn text(&self) -> anyhow::Result<String> {
        match fs::read(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
            bytes => Ok(String::from_utf8_lossy(&bytes?).into_owned()),
        }
    }

    pub(super) fn count(&self, text: &str) -> anyhow::Result<usize> {
        Ok(self.text()?.matches(text).count())
    }
}
