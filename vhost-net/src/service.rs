//! Control of a running card from the host: Varlink, interface `io.strata.Net`. Made by `main`, which gives it a
//! thread; it talks to the queues through the [`Card`] and the counters alone.
//!
//! Refuses what the driver there is cannot do, with the reason.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use strata_ipc::blocking::{Failure, Interface, parameters};

use crate::card::Card;
use crate::device::Net;
use crate::stats::{PairStats, prometheus};

/// One card, as the host sees it.
#[derive(Debug)]
pub struct Nic {
    card: Arc<Card>,
    pairs: Vec<PairStats>,
}

impl Nic {
    /// Of a device.
    #[must_use]
    pub fn new(device: &Net) -> Self {
        Self { card: Arc::clone(device.card()), pairs: device.stats().to_vec() }
    }

    fn status(&self) -> Value {
        let space = self.card.space();
        json!({
            "tap": self.card.tap().name(),
            "tap_present": self.card.tap().alive(),
            "mac": space.mac.to_string(),
            "link": space.link,
            "mtu": space.mtu,
            "pairs": space.pairs,
            "active_pairs": self.card.active_pairs(),
            "features": format!("{:#x}", self.card.features()),
        })
    }

    fn statistics(&self) -> Value {
        let pairs: Vec<Value> = self
            .pairs
            .iter()
            .enumerate()
            .map(|(pair, stats)| {
                let mut object: serde_json::Map<String, Value> =
                    stats.list().into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect();
                object.insert("pair".to_owned(), json!(pair));
                Value::Object(object)
            })
            .collect();
        json!({ "pairs": pairs })
    }
}

impl Interface for Nic {
    fn name(&self) -> &'static str {
        "io.strata.Net"
    }

    fn description(&self) -> &'static str {
        include_str!("io.strata.Net.varlink")
    }

    fn product(&self) -> &'static str {
        "vhost-net"
    }

    fn call(&self, method: &str, given: Value) -> Result<Value, Failure> {
        match method {
            "GetStatus" => Ok(self.status()),
            "GetStatistics" => Ok(self.statistics()),
            "GetMetrics" => Ok(json!({ "text": prometheus(self.card.tap().name(), &self.pairs) })),
            "SetLink" => {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct SetLink {
                    up: bool,
                }
                let SetLink { up } = parameters(given, "up")?;
                self.card.set_link(up);
                tracing::info!("{}: link {}", self.card.tap().name(), if up { "up" } else { "down" });
                Ok(json!({}))
            }
            "Announce" => {
                if self.card.announce() {
                    return Ok(json!({}));
                }
                Err(Failure::refused(
                    "no driver can be asked: it does not know VIRTIO_NET_F_GUEST_ANNOUNCE, its link is down, or \
                     its frontend does not listen",
                ))
            }
            _ => Err(Failure::unknown(method)),
        }
    }
}

#[cfg(test)]
#[path = "service_test.rs"]
mod service_test;
