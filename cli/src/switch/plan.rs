//! The process of a switch: a listening socket per port, kept by the launcher, and the command line. The arguments are
//! the seam to vhost-net; its `--help` says what they mean.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use strata_config::{NetLimit, Port, PortVlans, Switch};

use super::folder::control;
use crate::child::Program;
use crate::plan::guards;
use crate::programs::{ProgramMissing, find};

/// Why a switch's process cannot be prepared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    #[error(transparent)]
    Program(#[from] ProgramMissing),
    #[error("cannot make the socket {}", path.display())]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// The process, with its sockets in `folder`: one that is started again finds its clients there.
pub(super) fn program(switch: &Switch, folder: &Path) -> Result<Program, PlanError> {
    let mut args = vec!["--switch".to_owned(), switch.name.to_string()];
    args.extend(["--ageing".to_owned(), switch.ageing.to_string()]);
    let mut descriptors = Vec::new();
    for port in &switch.ports {
        let path = folder.join("ports").join(port.name.as_str());
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.and_then(|()| crate::owner::give(&path))
            .map_err(|source| PlanError::Socket { path: path.clone(), source })?;
        let listener = listen(&path.join("sock"))?;
        args.extend(["--port".to_owned(), words(port, listener.as_raw_fd())]);
        descriptors.push(listener);
    }
    if let Some((tap, port)) = &switch.uplink {
        args.extend(["--uplink".to_owned(), format!("tap={tap}{}", vlans(port))]);
    }
    let listener = listen(&control(folder))?;
    args.extend(["--control-fd".to_owned(), listener.as_raw_fd().to_string()]);
    descriptors.push(listener);
    if !switch.sandbox {
        args.push("--no-sandbox".to_owned());
    }
    Ok(Program { id: switch.name.to_string(), path: find("vhost-net")?, version: None, args, descriptors })
}

fn listen(path: &Path) -> Result<Arc<OwnedFd>, PlanError> {
    let failed = |source| PlanError::Socket { path: path.to_owned(), source };
    // What a launcher that was killed has left.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
    crate::owner::give(path).map_err(failed)?;
    Ok(Arc::new(listener.into()))
}

/// A port as `--port` takes it.
fn words(port: &Port, fd: i32) -> String {
    let mut words = format!("name={},fd={fd},mac={}{}", port.name, port.mac, vlans(&port.vlans));
    if port.isolated {
        words.push_str(",isolated");
    }
    let addresses: Vec<String> = port.guard.addresses.iter().map(ToString::to_string).collect();
    for (key, values) in [("guard", guards(&port.guard).join("+")), ("allow-ip", addresses.join("+"))] {
        if !values.is_empty() {
            words.push_str(&format!(",{key}={values}"));
        }
    }
    limit(&mut words, "tx", &port.tx);
    limit(&mut words, "rx", &port.rx);
    words
}

fn vlans(vlans: &PortVlans) -> String {
    let mut words = vlans.untagged.map_or_else(String::new, |vlan| format!(",vlan={vlan}"));
    if !vlans.tagged.is_empty() {
        let tagged: Vec<String> = vlans.tagged.iter().map(u16::to_string).collect();
        words.push_str(&format!(",trunk={}", tagged.join("+")));
    }
    words
}

fn limit(words: &mut String, way: &str, limit: &NetLimit) {
    let rates = [("bits", limit.rate.map(|rate| rate.0)), ("packets", limit.packets.map(|rate| rate.0))];
    let burst = limit.burst.map(|burst| u64::try_from(burst.as_millis()).unwrap_or(u64::MAX));
    for (key, value) in rates.into_iter().chain([("burst", burst)]) {
        if let Some(value) = value {
            words.push_str(&format!(",{way}-{key}={value}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_becomes_words_that_vhost_net_takes() {
        let file = "[[port]]\nname = \"a\"\nmac = \"02:00:00:00:00:01\"\n[[port]]\nname = \"b\"\nvlan = 1\n\
                    trunk = [20, 10]\nisolated = true\nguard_ra = true\nip = [\"192.0.2.7\", \"2001:db8::/64\"]\ntx_rate = \"10M\"\ntx_burst = \"50ms\"\n\
                    rx_packets = 7";
        let switch = Switch::parse(file).unwrap();
        assert_eq!(words(&switch.ports[0], 5), "name=a,fd=5,mac=02:00:00:00:00:01,vlan=1");
        let mac = switch.ports[1].mac;
        assert_eq!(
            words(&switch.ports[1], 6),
            format!(
                "name=b,fd=6,mac={mac},vlan=1,trunk=10+20,isolated,guard=mac+ra,\
                 allow-ip=192.0.2.7/32+2001:db8::/64,tx-bits=10000000,tx-burst=50,rx-packets=7"
            )
        );
    }
}
