//! What a control message means: a function from a call to its reply.

use std::io;
use std::sync::atomic::Ordering;

use serde::Deserialize;
use serde_json::{Value, json};
use strata_virtio::session::ConfigChange;

use crate::disk::Disk;
use crate::image::SECTOR;
use crate::rate::Rates;
use crate::tally::{QueueCounts, prometheus};

const DESCRIPTION: &str = include_str!("../io.strata.Disk.varlink");
/// The part of Varlink's own interface that every service has.
const SERVICE: &str = "interface org.varlink.service

method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)

error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
";

#[derive(Deserialize)]
struct Call {
    method: String,
    #[serde(default)]
    parameters: Value,
    #[serde(default)]
    oneway: bool,
}

/// An error reply: its name and its parameters.
struct Failure(&'static str, Value);

fn refused(reason: impl std::fmt::Display) -> Failure {
    Failure("io.strata.Disk.Refused", json!({ "reason": reason.to_string() }))
}

fn parameters<T: for<'a> Deserialize<'a>>(value: Value, name: &str) -> Result<T, Failure> {
    let value = if value.is_null() { json!({}) } else { value };
    let invalid = || Failure("org.varlink.service.InvalidParameter", json!({ "parameter": name }));
    // A list would do for a structure, too.
    if !value.is_object() {
        return Err(invalid());
    }
    serde_json::from_value(value).map_err(|_| invalid())
}

/// Answers one message, without its final zero byte. `None`: no answer is wanted.
pub(super) fn answer(message: &[u8], disk: &Disk, change: &ConfigChange) -> io::Result<Option<Vec<u8>>> {
    let call: Call =
        serde_json::from_slice(message).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let oneway = call.oneway;
    let reply = match handle(call, disk, change) {
        Ok(parameters) => json!({ "parameters": parameters }),
        Err(Failure(error, parameters)) => json!({ "error": error, "parameters": parameters }),
    };
    let mut bytes = serde_json::to_vec(&reply)?;
    bytes.push(0);
    Ok((!oneway).then_some(bytes))
}

fn handle(call: Call, disk: &Disk, change: &ConfigChange) -> Result<Value, Failure> {
    let counts = || -> Vec<QueueCounts> {
        disk.tallies.iter().enumerate().map(|(queue, tally)| tally.snapshot(queue)).collect()
    };
    match call.method.as_str() {
        "io.strata.Disk.GetStatus" => Ok(status(disk)),
        "io.strata.Disk.GetStatistics" => Ok(json!({ "queues": counts() })),
        "io.strata.Disk.GetMetrics" => Ok(json!({ "text": prometheus(&disk.name().to_string(), &counts()) })),
        "io.strata.Disk.Resize" => {
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Resize {
                bytes: u64,
            }
            let resize: Resize = parameters(call.parameters, "bytes")?;
            let bytes = disk.grow(resize.bytes).map_err(|error| match std::error::Error::source(&error) {
                Some(cause) => refused(format!("{error}: {cause}")),
                None => refused(error),
            })?;
            let told = change.notify();
            tracing::info!(
                "{}: {bytes} bytes from now on{}",
                disk.name(),
                if told { "" } else { "; no frontend listens" }
            );
            Ok(json!({}))
        }
        "io.strata.Disk.SetRates" => {
            #[derive(Deserialize)]
            #[serde(deny_unknown_fields)]
            struct SetRates {
                rates: Rates,
            }
            let set: SetRates = parameters(call.parameters, "rates")?;
            disk.limiter.set(&set.rates);
            Ok(json!({}))
        }
        "io.strata.Disk.Resume" => {
            disk.resumes.fetch_add(1, Ordering::Release);
            Ok(json!({}))
        }
        "org.varlink.service.GetInfo" => Ok(json!({
            "vendor": "Strata",
            "product": "vhost-blk",
            "version": env!("CARGO_PKG_VERSION"),
            "url": "",
            "interfaces": ["org.varlink.service", "io.strata.Disk"],
        })),
        "org.varlink.service.GetInterfaceDescription" => {
            #[derive(Deserialize)]
            struct Interface {
                interface: String,
            }
            let wanted: Interface = parameters(call.parameters, "interface")?;
            match wanted.interface.as_str() {
                "io.strata.Disk" => Ok(json!({ "description": DESCRIPTION })),
                "org.varlink.service" => Ok(json!({ "description": SERVICE })),
                other => Err(Failure("org.varlink.service.InterfaceNotFound", json!({ "interface": other }))),
            }
        }
        other => Err(unknown(other)),
    }
}

fn unknown(method: &str) -> Failure {
    match method.rsplit_once('.') {
        Some(("io.strata.Disk" | "org.varlink.service", _)) => {
            Failure("org.varlink.service.MethodNotFound", json!({ "method": method }))
        }
        Some((interface, _)) => {
            Failure("org.varlink.service.InterfaceNotFound", json!({ "interface": interface }))
        }
        None => Failure("org.varlink.service.MethodNotFound", json!({ "method": method })),
    }
}

fn status(disk: &Disk) -> Value {
    let image = &disk.image;
    json!({
        "path": disk.name().to_string(),
        "bytes": disk.limits().capacity * SECTOR,
        "block": disk.geometry.logical_block,
        "format": if disk.layers.is_some() { "qcow2" } else { "raw" },
        "read_only": image.read_only(),
        "direct": image.direct().is_some(),
        "write_through": disk.write_through.load(Ordering::Relaxed),
        "halted": disk.halted.load(Ordering::Relaxed) > 0,
        "rates": disk.limiter.rates(),
    })
}
