//! `vhost-net --switch`: from the command line to the end. Everything that needs a right happens before the first
//! client is heard, in this order: sockets, uplink, sandbox, threads, lock.

use std::sync::Arc;

use anyhow::{Context, bail};
use nix::sys::signalfd::SignalFd;

use strata_sandbox::{Notify, Role, close_inherited, listeners, remove_at_end};
use strata_vhost_net::counted;
use strata_vhost_net::limit::Limit;
use strata_vhost_net::mac::Mac;
use strata_vhost_net::switch::uplink::Uplink;
use strata_vhost_net::switch::{MAX_PORTS, Port, Settings, Switch};
use strata_vhost_net::tap::Tap;
use strata_virtio::session::{Endpoint, serve};

use crate::options::Options;
use crate::switch_options::{PortWords, Socket};
use crate::{control, inherit, isolated, remove, termination};

/// Enough for a message and its answer; the default of 8 MiB is only address space, but counts where limits are.
const STACK: usize = 256 << 10;

/// Serves all ports until it is told to end.
pub(crate) fn run(options: &Options, name: &str) -> anyhow::Result<()> {
    let words = &options.switch.port;
    let all = words.len() + usize::from(options.switch.uplink.is_some());
    if all > MAX_PORTS {
        bail!("{all} ports; a switch has up to {MAX_PORTS}");
    }
    let passed = listeners()?;
    let kept: Vec<i32> = options.kept(None).into_iter().chain(passed.iter().copied()).collect();
    close_inherited(&kept);
    let notify = Notify::from_environment();
    let sandboxed = !options.no_sandbox;
    let endpoints = endpoints(words, &passed, sandboxed)?;
    let tap = tap(options)?;
    let control = control(options)?;
    let isolated = isolated(options)?;
    let stop = Arc::new(termination()?);
    let mut ports: Vec<Arc<Port>> = words.iter().map(|words| Arc::new(port(words))).collect();
    // Its ring is this process's own, so it is made on this side of `isolate`.
    let uplink = match tap {
        Some((tap, port)) => {
            ports.push(Arc::new(port));
            Some((ports.len() - 1, Uplink::new(tap, options.no_io_uring).context("making the uplink")?))
        }
        None => None,
    };
    let settings = Settings {
        name: name.to_owned(),
        ageing: options.switch.ageing,
        mtu: None,
        poll: options.tuning().poll,
        cpu: options.cpus.first().copied(),
    };
    let switch = Switch::start(settings, ports, uplink).context("starting the switch")?;
    if let Some(isolated) = isolated {
        isolated.lock()?;
    }
    if let Some(listener) = control {
        strata_ipc::blocking::spawn(listener, switch.service()).context("a thread for control")?;
    }
    let status = format!("switch {name}: {all} port(s)");
    tracing::info!("{status}");
    notify.ready(&status);
    attend(&switch, endpoints, &stop)?;
    notify.stopping("ending");
    report(&switch);
    for words in words {
        if let (false, Socket::Path(path)) = (sandboxed, &words.socket) {
            remove(path);
        }
    }
    Ok(())
}

/// A session per port, each on a thread, until all have ended.
fn attend(switch: &Switch, endpoints: Vec<Endpoint>, stop: &Arc<SignalFd>) -> anyhow::Result<()> {
    let mut threads = Vec::new();
    for (number, endpoint) in endpoints.into_iter().enumerate() {
        let Some((mut device, port)) = switch.device(number).zip(switch.ports().get(number).cloned()) else {
            continue;
        };
        let stop = Arc::clone(stop);
        let session = move || {
            if let Err(error) = serve(endpoint, &mut device, &*stop, port.change()) {
                // The others' guests have nothing to do with it.
                tracing::error!("{}: {error}; this port ends", port.name);
            }
        };
        let builder = std::thread::Builder::new().name(format!("port{number}")).stack_size(STACK);
        threads.push(builder.spawn(session).context("a thread for a port")?);
    }
    for thread in threads {
        if thread.join().is_err() {
            bail!("a port's thread has panicked");
        }
    }
    Ok(())
}

fn port(words: &PortWords) -> Port {
    let mut port = Port::new(&words.name, words.mac, words.vlans.clone());
    port.isolated = words.isolated;
    port.guard = words.guard.clone();
    port.from_guest = Limit::new(words.from_guest);
    port.to_guest = Limit::new(words.to_guest);
    port
}

/// The sockets of all ports, in their order.
fn endpoints(words: &[PortWords], passed: &[i32], sandboxed: bool) -> anyhow::Result<Vec<Endpoint>> {
    let mut passed = passed.iter().copied();
    let mut endpoints = Vec::with_capacity(words.len());
    for words in words {
        let endpoint = match &words.socket {
            Socket::Fd(fd) => Endpoint::inherit(*fd)?,
            Socket::Path(path) => {
                let endpoint = Endpoint::listen(path)?;
                if sandboxed {
                    remove_at_end(path, Role::Net)?;
                }
                endpoint
            }
            Socket::Passed => match passed.next() {
                Some(fd) => Endpoint::inherit(fd)?,
                None => bail!(
                    "port {} has no socket: give it fd= or socket-path=, or pass one (LISTEN_FDS)",
                    words.name
                ),
            },
        };
        endpoints.push(endpoint);
    }
    match passed.count() {
        0 => Ok(endpoints),
        more => bail!("{more} more sockets were passed (LISTEN_FDS) than ports ask for"),
    }
}

/// The uplink's tap, and the port it is.
fn tap(options: &Options) -> anyhow::Result<Option<(Tap, Port)>> {
    let Some(words) = &options.switch.uplink else { return Ok(None) };
    let tap = match &words.tap {
        Some(name) => Tap::open(name, 1, words.create)?,
        None => Tap::from_fds(inherit(&words.fd.into_iter().collect::<Vec<_>>())?)?,
    };
    let port = Port::new("uplink", Mac::for_tap(tap.name()), words.vlans.clone());
    Ok(Some((tap, port)))
}

/// One line per port with everything that was counted.
fn report(switch: &Switch) {
    for port in switch.ports() {
        if let Some(line) = counted::line(&port.stats.list()) {
            tracing::info!("port {}: {line}", port.name);
        }
    }
}
