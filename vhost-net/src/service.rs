//! Control of a running card from the host: Varlink, interface `io.strata.Net`. Made by `main`, which gives it a
//! thread; it talks to the queues through the [`Card`] and the counters alone.
//!
//! Refuses what the driver there is cannot do, with the reason.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use strata_ipc::blocking::{Failure, Interface, Upgraded, parameters};

use crate::capture::{WHOLE, stream};
use crate::card::Card;
use crate::counted;
use crate::device::Net;
use crate::limit::{Limit, Rate, burst};
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
            "guard": self.guard(),
            "limits": { "tx": shown(&self.card.port().tx), "rx": shown(&self.card.port().rx) },
        })
    }

    fn guard(&self) -> Value {
        let guard = &self.card.port().guard;
        let addresses: Vec<String> = guard.addresses.iter().map(ToString::to_string).collect();
        json!({ "mac": guard.mac.is_some(), "addresses": addresses, "dhcp": guard.dhcp, "ra": guard.router })
    }

    fn set_limit(&self, given: Value) -> Result<Value, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct SetLimit {
            direction: String,
            bits: Option<u64>,
            packets: Option<u64>,
            burst: Option<u64>,
        }
        let SetLimit { direction, bits, packets, burst: wanted } = parameters(given, "direction")?;
        let port = self.card.port();
        let limit = match direction.as_str() {
            "tx" => &port.tx,
            "rx" => &port.rx,
            _ => {
                return Err(Failure::refused(format_args!("direction {direction:?}; tx and rx are allowed")));
            }
        };
        if bits == Some(0) || packets == Some(0) {
            return Err(Failure::refused("a limit of 0; to let nothing pass take the link down"));
        }
        let rate = match wanted {
            Some(wanted) => burst(wanted).ok_or_else(|| {
                Failure::refused(format_args!("a burst of {wanted} ms; 5 to 10000 are allowed"))
            })?,
            None => Rate::default().burst,
        };
        limit.set(Rate { bits, packets, burst: rate });
        tracing::info!("{}: {direction} limit {}", self.card.tap().name(), shown(limit));
        Ok(json!({}))
    }

    fn statistics(&self) -> Value {
        let pairs: Vec<Value> = self
            .pairs
            .iter()
            .enumerate()
            .map(|(pair, stats)| {
                let mut object = counted::object(stats.list());
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
            "SetLimit" => self.set_limit(given),
            "Capture" => Err(Failure::refused("a capture takes the connection over: call it with `upgrade`")),
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

    fn upgrade(&self, method: &str, given: Value) -> Result<Upgraded, Failure> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Capture {
            snaplen: Option<usize>,
        }
        if method != "Capture" {
            return Err(Failure::unknown(method));
        }
        let Capture { snaplen } = parameters(given, "snaplen")?;
        let source = self.card.port().captures.start(snaplen.unwrap_or(WHOLE)).map_err(Failure::refused)?;
        let name = self.card.tap().name().to_owned();
        Ok(Box::new(move |client| stream(&source, client, &name)))
    }
}

/// A limit as the interface has it.
fn shown(limit: &Limit) -> Value {
    let Rate { bits, packets, burst } = limit.get();
    json!({ "bits": bits, "packets": packets, "burst": burst.as_millis() as u64 })
}

#[cfg(test)]
#[path = "service_test.rs"]
mod service_test;
