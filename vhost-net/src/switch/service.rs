//! Control of a running switch from the host: Varlink, interface `io.strata.Switch`. Made by `main`, which gives it a
//! thread. Reads counters, asks the switch's thread for the table, and plugs cables in and out.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use strata_ipc::blocking::{Failure, Interface, parameters};
use strata_virtio::worker::WorkerStats;

use super::order::{Order, Orders};
use super::stats::prometheus;
use super::vlans::Vlans;
use super::{Port, Settings};
use crate::counted;

/// A switch, as the host sees it.
#[derive(Debug)]
pub struct Service {
    settings: Settings,
    ports: Vec<Arc<Port>>,
    orders: Orders,
    stats: Arc<WorkerStats>,
}

impl Service {
    pub(super) fn new(
        settings: Settings,
        ports: Vec<Arc<Port>>,
        orders: Orders,
        stats: Arc<WorkerStats>,
    ) -> Self {
        Self { settings, ports, orders, stats }
    }

    fn status(&self) -> Value {
        let ports: Vec<Value> = self.ports.iter().map(|port| describe(port)).collect();
        json!({
            "name": self.settings.name,
            "ageing": self.settings.ageing,
            "mtu": self.settings.mtu.unwrap_or(0),
            "ports": ports,
        })
    }

    fn statistics(&self) -> Value {
        let ports: Vec<Value> = self
            .ports
            .iter()
            .map(|port| json!({ "port": port.name, "counters": counted::object(port.stats.list()) }))
            .collect();
        json!({
            "poll_hits": self.stats.poll_hits.get(),
            "poll_misses": self.stats.poll_misses.get(),
            "sleeps": self.stats.sleeps.get(),
            "ports": ports,
        })
    }

    fn table(&self) -> Result<Value, Failure> {
        let rows = self.orders.ask(|done| Order::Rows { done });
        let rows = rows.ok_or_else(|| Failure::refused("the switch's thread has ended"))?;
        let name = |port: u16| self.ports.get(usize::from(port)).map_or("", |port| port.name.as_str());
        let rows: Vec<Value> = rows
            .iter()
            .map(|row| json!({ "vlan": row.vlan, "mac": row.mac.to_string(), "port": name(row.port), "age": row.age }))
            .collect();
        Ok(json!({ "addresses": rows }))
    }

    fn set_link(&self, given: Value) -> Result<Value, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct SetLink {
            port: String,
            up: bool,
        }
        let SetLink { port: name, up } = parameters(given, "port")?;
        let Some(number) = self.ports.iter().position(|port| port.name == name) else {
            return Err(Failure::refused(format_args!("there is no port {name}")));
        };
        if let Some(port) = self.ports.get(number) {
            port.set_link(up);
        }
        if !up {
            self.orders.give(Order::Forget { port: number });
        }
        tracing::info!("{name}: link {}", if up { "up" } else { "down" });
        Ok(json!({}))
    }
}

fn describe(port: &Port) -> Value {
    let (vlan, trunk) = match &port.vlans {
        Vlans::Access(vlan) => (Some(*vlan), Vec::new()),
        Vlans::Trunk { native, carried } => {
            (*native, carried.iter().filter(|vlan| Some(*vlan) != *native).collect())
        }
    };
    json!({
        "name": port.name,
        "mac": port.mac.to_string(),
        "vlan": vlan,
        "trunk": trunk,
        "isolated": port.isolated,
        "link": port.link(),
        "connected": port.is_connected(),
        "features": format!("{:#x}", port.features()),
    })
}

impl Interface for Service {
    fn name(&self) -> &'static str {
        "io.strata.Switch"
    }

    fn description(&self) -> &'static str {
        include_str!("../io.strata.Switch.varlink")
    }

    fn product(&self) -> &'static str {
        "vhost-net"
    }

    fn call(&self, method: &str, given: Value) -> Result<Value, Failure> {
        match method {
            "GetStatus" => Ok(self.status()),
            "GetStatistics" => Ok(self.statistics()),
            "GetAddresses" => self.table(),
            "GetMetrics" => {
                let ports: Vec<_> =
                    self.ports.iter().map(|port| (port.name.clone(), Arc::clone(&port.stats))).collect();
                Ok(json!({ "text": prometheus(&self.settings.name, &ports) }))
            }
            "SetLink" => self.set_link(given),
            _ => Err(Failure::unknown(method)),
        }
    }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod service_test;
