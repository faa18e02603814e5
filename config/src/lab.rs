//! A lab: switches and the machines on them, in one file.
//!
//! ```toml
//! defaults = { kernel = "vmlinuz", initrd = "initrd.img", memory = "128M" }
//! machine = [
//!   { name = "web", net = [{ switch = "lan", vlan = 10 }] },
//!   { name = "db", net = [{ switch = "lan", vlan = 20 }] },
//! ]
//! ```
//! A machine's NIC says what its port is like; the switch gets such a port. Keys of `defaults` hold for every machine
//! that does not give them, with its name for each `{name}`. Refuses what machines and switches refuse, saying where,
//! and names that two have.

use std::path::Path;

use serde::Deserialize;

use crate::error::ConfigError;
use crate::file::MachineFile;
use crate::mac::Mac;
use crate::machine::Machine;
use crate::name::Name;
use crate::node::Node;
use crate::switch::{PortEntry, Switch, SwitchFile, port_keys, port_socket};

/// Switches and machines that can be made, as far as one can tell without looking at the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lab {
    /// Those that machines name, and those that have a table of their own.
    pub switches: Vec<Switch>,
    /// In the file's order. Their NICs at a switch are sockets by now.
    pub machines: Vec<Machine>,
}

type Checked<T> = Result<T, ConfigError>;
type Table = Vec<(String, Node)>;

impl Lab {
    /// Reads and checks a file, TOML or JSON. Relative paths are relative to its folder; `base` is where this user's
    /// machines have their folders.
    ///
    /// # Errors
    /// [`ConfigError`] naming key, value and what is allowed.
    pub fn from_file(path: &Path, base: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let folder = std::path::absolute(path).map_err(read)?;
        Self::check(Node::from_file(path)?, folder.parent().unwrap_or(Path::new("/")), base)
    }

    /// Checks a text, as a file in `folder`.
    ///
    /// # Errors
    /// As [`Lab::from_file`].
    pub fn parse(text: &str, folder: &Path, base: &Path) -> Result<Self, ConfigError> {
        Self::check(Node::parse(text)?, folder, base)
    }

    fn check(node: Node, folder: &Path, base: &Path) -> Checked<Self> {
        let mut keys = table(node)?;
        let defaults = take(&mut keys, "defaults").map_or(Ok(Table::new()), table);
        let defaults = defaults.map_err(|error| error.inside("defaults"))?;
        let mut switches = named(take(&mut keys, "switch"))?;
        let machines = take(&mut keys, "machine").map_or(Ok(Vec::new()), list);
        let machines = machines.map_err(|error| error.inside("machine"))?;
        if let Some((key, _)) = keys.into_iter().next() {
            return Err(unknown(&key, &["defaults", "switch", "machine"]));
        }
        let mut lab = Self { switches: Vec::new(), machines: Vec::new() };
        for (index, node) in machines.into_iter().enumerate() {
            let machine = machine(node, &defaults, &mut switches, folder, base);
            let machine = machine.map_err(|error| error.inside(&format!("machine[{index}]")))?;
            if lab.machines.iter().any(|other| other.name == machine.name) {
                let key = format!("machine[{index}].name");
                let allowed = "another machine has it; names must differ";
                return Err(ConfigError::text(key, machine.name.as_str(), allowed));
            }
            lab.machines.push(machine);
        }
        if lab.machines.is_empty() {
            let what = "a lab has a [[machine]] for each guest".to_owned();
            return Err(ConfigError::Missing { key: "machine".to_owned(), what });
        }
        for file in switches {
            let place = format!("switch.{}", file.name.as_deref().unwrap_or_default());
            lab.switches.push(Switch::try_from(file).map_err(|error| error.inside(&place))?);
        }
        Ok(lab)
    }
}

/// The tables under `switch`, by their names.
fn named(node: Option<Node>) -> Checked<Vec<SwitchFile>> {
    let tables = node.map_or(Ok(Table::new()), table).map_err(|error| error.inside("switch"))?;
    let file = |(name, node): (String, Node)| {
        let mut file =
            SwitchFile::deserialize(node).map_err(|error| error.inside(&format!("switch.{name}")))?;
        if file.name.as_ref().is_some_and(|own| *own != name) {
            return Err(ConfigError::text(
                format!("switch.{name}.name"),
                &name,
                "its table has the name already",
            ));
        }
        file.name = Some(name);
        Ok(file)
    };
    tables.into_iter().map(file).collect()
}

fn machine(
    node: Node,
    defaults: &Table,
    switches: &mut Vec<SwitchFile>,
    folder: &Path,
    base: &Path,
) -> Checked<Machine> {
    let mut keys = table(node)?;
    let name = match keys.iter().find(|(key, _)| key == "name") {
        Some((_, Node::Text(name))) => name.clone(),
        _ => {
            let what = "each machine of a lab has one".to_owned();
            return Err(ConfigError::Missing { key: "name".to_owned(), what });
        }
    };
    let checked: Name = name.parse().map_err(|allowed| ConfigError::text("name", &name, allowed))?;
    for (key, value) in defaults {
        if !keys.iter().any(|(own, _)| own == key) {
            keys.push((key.clone(), filled(value, &name)));
        }
    }
    if let Some((_, Node::List(nets))) = keys.iter_mut().find(|(key, _)| key == "net") {
        for (index, net) in nets.iter_mut().enumerate() {
            let Node::Table(net) = net else { continue };
            plug(net, index, &checked, switches, base)
                .map_err(|error| error.inside(&format!("net[{index}]")))?;
        }
    }
    let mut file = MachineFile::deserialize(Node::Table(keys))?;
    file.resolve(folder);
    file.try_into()
}

/// Makes a port for a NIC at a switch, and of the NIC one behind that port's socket.
fn plug(
    net: &mut Table,
    index: usize,
    machine: &Name,
    switches: &mut Vec<SwitchFile>,
    base: &Path,
) -> Checked<()> {
    let Some(Node::Text(switch)) = take(net, "switch") else { return Ok(()) };
    switch.parse::<Name>().map_err(|allowed| ConfigError::text("switch", &switch, allowed))?;
    let file = match switches.iter_mut().position(|file| file.name.as_ref() == Some(&switch)) {
        Some(at) => switches.get_mut(at),
        None => {
            switches.push(SwitchFile { name: Some(switch.clone()), ..SwitchFile::default() });
            switches.last_mut()
        }
    };
    let Some(file) = file else { return Ok(()) };
    let given = match take(net, "port") {
        Some(Node::Text(port)) => Some(port),
        _ => None,
    };
    let taken = |name: &str| file.port.iter().any(|port| port.name.as_deref() == Some(name));
    let port = given.clone().unwrap_or_else(|| match taken(machine.as_str()) {
        false => machine.to_string(),
        true => format!("{machine}-net{index}"),
    });
    let keys: Vec<&str> = port_keys().filter(|key| net.iter().any(|(own, _)| own == key)).collect();
    if given.is_some_and(|port| taken(&port)) {
        if let Some(key) = keys.first() {
            let reason = format!("`{key}` is the port's, and switch.{switch} says what port {port} is like");
            return Err(ConfigError::Conflict { path: String::new(), reason });
        }
    } else {
        let own: Table = keys.iter().filter_map(|key| Some(((*key).to_owned(), take(net, key)?))).collect();
        let mut entry = PortEntry::deserialize(Node::Table(own))?;
        entry.mac.get_or_insert_with(|| Mac::generated(machine, index).to_string());
        entry.name = Some(port.clone());
        file.port.push(entry);
    }
    let socket = port_socket(base, &switch, &port);
    net.push(("socket".to_owned(), Node::Text(socket.display().to_string())));
    Ok(())
}

/// A default's value for one machine.
fn filled(node: &Node, name: &str) -> Node {
    match node {
        Node::Text(text) => Node::Text(text.replace("{name}", name)),
        Node::List(nodes) => Node::List(nodes.iter().map(|node| filled(node, name)).collect()),
        Node::Table(keys) => {
            Node::Table(keys.iter().map(|(key, node)| (key.clone(), filled(node, name))).collect())
        }
        other => other.clone(),
    }
}

fn take(table: &mut Table, key: &str) -> Option<Node> {
    let at = table.iter().position(|(other, _)| other == key)?;
    Some(table.remove(at).1)
}

fn table(node: Node) -> Checked<Table> {
    match node {
        Node::Table(keys) => Ok(keys),
        _ => Err(ConfigError::Conflict { path: String::new(), reason: "must be a table of keys".to_owned() }),
    }
}

fn list(node: Node) -> Checked<Vec<Node>> {
    match node {
        Node::List(nodes) => Ok(nodes),
        _ => Err(ConfigError::Conflict { path: String::new(), reason: "must be a list".to_owned() }),
    }
}

fn unknown(key: &str, allowed: &'static [&'static str]) -> ConfigError {
    serde::de::Error::unknown_field(key, allowed)
}

#[cfg(test)]
#[path = "lab_test.rs"]
mod lab_test;
