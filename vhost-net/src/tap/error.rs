//! Why a tap cannot be used, and what to do about it.

use std::io;
use std::path::PathBuf;

use super::MAX_PAIRS;

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name is empty or longer than the kernel's 15 bytes.
    #[error("{0:?} is no interface name: 1 to 15 bytes without / and spaces are allowed")]
    Name(String),
    /// There is no such interface.
    #[error(
        "the tap {0} does not exist: make it with `ip tuntap add dev {0} mode tap{1}`, or ask for --create-tap"
    )]
    Missing(String, &'static str),
    /// Another process holds it.
    #[error("the tap {0} is in use by another process")]
    Busy(String),
    /// It belongs to another user and we may not administer the network.
    #[error("no permission to open the tap {0}: it must belong to this user (`ip tuntap add ... user NAME`)")]
    Permission(String),
    /// The interface exists and is something else, or differs in its number of queues.
    #[error("{name} cannot be opened as a tap with {queues}: it is no tap, or was made {other}")]
    Mismatch {
        /// Its name.
        name: String,
        /// What was asked for.
        queues: &'static str,
        /// The way it was perhaps made instead.
        other: &'static str,
    },
    /// No pairs, or more than the kernel has.
    #[error("{0} queue pairs; 1 to {MAX_PAIRS} are allowed")]
    Pairs(usize),
    /// A macvtap's node is missing, another's, or not for us.
    #[error("the macvtap {name} cannot be opened by {}", node.display())]
    Node {
        /// The macvtap.
        name: String,
        /// Its node.
        node: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A descriptor that is no tap.
    #[error("descriptor {index} given as a tap is none")]
    NotATap {
        /// Its place in the list.
        index: usize,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A tap without what frames need.
    #[error("descriptor {index} is a tap without {missing}; open it with IFF_TAP | IFF_NO_PI | IFF_VNET_HDR")]
    Flags {
        /// Its place in the list.
        index: usize,
        /// The flag that is not set, or must not be.
        missing: &'static str,
    },
    /// Descriptors of different taps.
    #[error("descriptors of two taps were given, {first} and {second}")]
    Different {
        /// The first one's name.
        first: String,
        /// The other one's name.
        second: String,
    },
    /// The system refused.
    #[error("the tap cannot be {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}
