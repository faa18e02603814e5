//! What a machine is.
//!
//! Owns the machine file: its keys ([`MachineFile`], as written in TOML, JSON or command-line flags), the
//! rules they obey, and the checked [`Machine`] the other rooms work with. The launcher reads and merges, the
//! vmm reads what the launcher hands it, both through the same code. Refuses: unknown keys (naming the
//! nearest), values outside what is allowed (naming key, value and range), names that could leave a folder.
//!
//! ```text
//!  machine.toml ─┐
//!  JSON         ─┼─> MachineFile ──check──> Machine ──Serialize──> JSON for the vmm
//!  flags        ─┘   (as written)          (cannot be invalid)
//! ```
//!
//! Nothing here looks at the host: whether a kernel exists or a tap is there is for those who open them.

mod backend;
mod change;
mod check;
mod compact;
mod cpu_list;
mod entry;
mod error;
mod file;
mod identity;
mod kind;
mod lab;
mod mac;
mod machine;
mod name;
mod net;
mod node;
mod rate;
mod service;
mod serving;
mod size;
mod switch;
mod vcpu;
mod write;

#[cfg(test)]
mod check_test;
#[cfg(test)]
mod file_test;
#[cfg(test)]
mod size_test;

pub use backend::{Backend, BackendEntry, WhenLost};
pub use cpu_list::CpuList;
pub use entry::{DeviceEntry, DiskEntry};
pub use error::{ConfigError, nearest};
pub use file::{MachineFile, json_schema};
pub use identity::Uuid;
pub use kind::{device_id_of, device_name_of, known_device_types};
pub use lab::Lab;
pub use mac::Mac;
pub use machine::{Console, Disk, DiskSource, Format, GenericDevice, Machine, Memory, Serial};
pub use name::{DeviceId, Name};
pub use net::{Cable, List, Net, NetEntry, NetGuard, NetLimit, NetSource, OwnNet, Vlans};
pub use rate::Rate;
pub use service::{CredentialSource, Credentials, Ready, Resources, ResourcesEntry};
pub use serving::{Cache, Engine, OnError, Serving};
pub use size::{NumberOrText, Size};
pub use switch::{Port, PortEntry, PortVlans, SWITCHES, Switch, SwitchFile, UplinkEntry, port_socket};
pub use vcpu::{Halt, Profile, Topology, Vcpu, VcpuEntry};
