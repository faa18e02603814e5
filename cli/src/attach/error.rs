//! Why a NIC cannot be plugged in, and what to do about it.

use std::io;

/// Why a NIC cannot be plugged in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttachError {
    #[error("{id}: {key} = {name}: no such interface{advice}")]
    Missing { id: String, key: &'static str, name: String, advice: &'static str },
    #[error(
        "{id}: bridge = {name}: that interface is no bridge; make one with `ip link add NAME type bridge`"
    )]
    NotABridge { id: String, name: String },
    #[error(
        "{id}: {name} does not filter VLANs: `ip link set {name} type bridge vlan_filtering 1`, or leave out `vlan` and `trunk`"
    )]
    NoVlans { id: String, name: String },
    #[error(
        "{id}: there is an interface {name} already, which is not this NIC's; `ip link del {name}` if nothing needs it"
    )]
    Taken { id: String, name: String },
    #[error("{id}: the tap {name} is in use by another process")]
    Busy { id: String, name: String },
    #[error("{id}: {name} cannot be opened as a tap with {pairs} queue pair(s): {why}")]
    Mismatch { id: String, name: String, pairs: u16, why: &'static str },
    #[error(
        "{id}: tap = {name} has an MTU of {has}, not {wanted}: `ip link set {name} mtu {wanted}`, or leave out `mtu`"
    )]
    Mtu { id: String, name: String, has: u32, wanted: u16 },
    #[error("{id}: no permission to {what}: {advice}")]
    Permission { id: String, what: String, advice: &'static str },
    #[error("{id}: cannot {what}")]
    System {
        id: String,
        what: String,
        #[source]
        source: io::Error,
    },
}
