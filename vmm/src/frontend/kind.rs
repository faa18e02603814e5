//! What kinds of devices come over vhost-user, and what of a backend's offer reaches the guest.
//!
//! Pure: an [`Offer`] is made from a connection's answers, and compared with an earlier one when a backend
//! returns. Refuses backends that offer less than the machine file asks for.

use strata_virtio::limit::Throttle;
use strata_virtio::spec::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};

use super::feature;
use super::session::{Session, SessionError};
use super::wire::WireError;

/// Features of the transport and the rings that we and every backend agree on; of the device types' own bits
/// (virtio 1.2 section 2.2) all go through. Left out among others: packed rings, an IOMMU, notification data.
const RING: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;
const TYPE: u64 = 0xff_ffff | !0 << 50;

/// VIRTIO_BLK_F_MQ.
const BLK_MQ: u64 = 1 << 12;
/// Of `struct virtio_blk_config`: where `num_queues` and `writeback` are, and what ends before zoned devices.
const BLK_NUM_QUEUES: usize = 34;
const BLK_WRITEBACK: usize = 32;
const BLK_CONFIG: u32 = 60;

const NET_MAC: u64 = 1 << 5;
const NET_CTRL_VQ: u64 = 1 << 17;
const NET_MQ: u64 = 1 << 22;
/// What needs a control queue, or a configuration space of the backend's.
const NET_CONTROL: u64 = 1 << 2 // CTRL_GUEST_OFFLOADS
    | 1 << 3 // MTU
    | 1 << 16 // STATUS
    | 0x7f << 17 // CTRL_VQ .. CTRL_MAC_ADDR, MQ among them
    | 1 << 53 // NOTF_COAL
    | 1 << 57 // HASH_REPORT
    | 1 << 60 // RSS
    | 1 << 63; // SPEED_DUPLEX
const NET_STATUS_AT: usize = 6;
const NET_PAIRS_AT: usize = 8;
const NET_CONFIG: u32 = 12;
/// Of the control queue.
const NET_CONTROL_RING: u16 = 64;

/// The most queues anyone needs: the protocol counts them in a byte.
const QUEUES_MAX: u64 = 256;

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk.
    Blk,
    /// A network card; the address if the machine file gives one.
    Net {
        /// What the guest is to see as its hardware address.
        mac: Option<[u8; 6]>,
    },
    /// Any other, by its virtio device ID.
    Other {
        /// Device ID (virtio 1.2 section 5).
        device_id: u16,
    },
}

/// Why a backend's offer is not good enough.
#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    /// The connection failed or a request was refused.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// No modern device.
    #[error("the backend does not offer VIRTIO_F_VERSION_1 (features {0:#x})")]
    Legacy(u64),
    /// A disk without a configuration.
    #[error("the backend has no configuration space (protocol feature CONFIG), so a disk has no size")]
    NoConfig,
    /// Fewer queues than asked for.
    #[error("{asked} queues are asked for; the backend offers {offered}")]
    Queues {
        /// By the machine file.
        asked: u64,
        /// By the backend.
        offered: u64,
    },
    /// The backend hung up when it was told of a ring.
    #[error("the backend closed the connection at a ring of {size} descriptors")]
    Ring {
        /// Descriptors of the ring.
        size: u16,
    },
    /// A backend of another shape has come back.
    #[error("the backend that returned {0}")]
    Differs(String),
}

/// What a backend offers, as the guest is to see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) features: u64,
    pub(super) queues: u16,
    /// The largest ring of each queue; empty until it has been tried out.
    pub(super) sizes: Vec<u16>,
    pub(super) config: Vec<u8>,
    pub(super) inflight: bool,
}

impl Kind {
    /// Device ID (virtio 1.2 section 5).
    #[must_use]
    pub fn device_id(self) -> u16 {
        match self {
            Self::Net { .. } => 1,
            Self::Blk => 2,
            Self::Other { device_id } => device_id,
        }
    }

    /// A word for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.device_id() {
            1 => "net",
            2 => "blk",
            3 => "console",
            4 => "rng",
            8 => "scsi",
            16 => "gpu",
            18 => "input",
            19 => "vsock",
            20 => "crypto",
            25 => "sound",
            26 => "fs",
            27 => "pmem",
            34 => "i2c",
            41 => "gpio",
            _ => "other",
        }
    }

    /// Bytes of configuration to ask for; the sizes backends insist on.
    fn config_size(self) -> u32 {
        match self.device_id() {
            1 => NET_CONFIG,
            2 => BLK_CONFIG,
            3 => 12,
            8 => 36,
            16 => 16,
            18 => 136,
            19 | 41 => 8,
            20 => 56,
            25 => 12,
            26 => 40,
            27 => 16,
            _ => 0,
        }
    }

    /// Whether requests on this queue, of so many, are answered as soon as they can be; in others, buffers wait for
    /// something to come (a network card receives on even queues, its control queue is the last of an odd number).
    pub(super) fn answers(self, queue: u16, queues: u16) -> bool {
        match self {
            Self::Blk => true,
            Self::Net { .. } => queue % 2 == 1 || (queues % 2 == 1 && queue + 1 == queues),
            Self::Other { .. } => false,
        }
    }

    /// How many queues a device of this type has that says nothing about it.
    fn usual_queues(self) -> u64 {
        match self.device_id() {
            1 | 3 | 16 | 18 | 26 | 41 => 2,
            8 | 19 => 3,
            25 => 4,
            _ => 1,
        }
    }

    /// Puts together what the guest is to see. `asked`: queues, or pairs of a network card; `size`: of the largest
    /// ring a guest may make.
    pub(super) fn offer(
        self,
        session: &mut Session,
        asked: Option<u16>,
        size: u16,
    ) -> Result<Offer, OfferError> {
        let features = session.features() & (RING | TYPE);
        if features & F_VERSION_1 == 0 {
            return Err(OfferError::Legacy(session.features()));
        }
        let config = self.read_config(session)?;
        let inflight = session.tracks_inflight();
        let offered = session.queues();
        let asked = asked.map(u64::from);
        let mut offer = Offer { features, queues: 0, sizes: Vec::new(), config, inflight };
        match self {
            Self::Blk => offer.blk(offered, asked)?,
            Self::Net { mac } => offer.net(offered, asked, mac, session.has_config())?,
            Self::Other { .. } => {
                let most = offered.unwrap_or(QUEUES_MAX);
                let queues = asked.or(offered).unwrap_or_else(|| self.usual_queues());
                offer.queues = enough(queues, most)?;
            }
        }
        for index in 0..offer.queues {
            // An odd number of queues is pairs and a control queue, which never has more than a few requests.
            let control = matches!(self, Self::Net { .. }) && index + 1 == offer.queues && index % 2 == 0;
            let size = if control { size.min(NET_CONTROL_RING) } else { size };
            offer.sizes.push(largest_ring(session, index, size)?);
        }
        Ok(offer)
    }

    /// The configuration space, empty if there is none to be had.
    fn read_config(self, session: &mut Session) -> Result<Vec<u8>, OfferError> {
        let size = self.config_size();
        if !session.has_config() || size == 0 {
            return if self == Self::Blk { Err(OfferError::NoConfig) } else { Ok(Vec::new()) };
        }
        match session.get_config(size) {
            Ok(config) => Ok(config),
            Err(error) if error.is_refusal() && self != Self::Blk => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads the configuration again, on a connection whose offer was `before`.
    pub(super) fn refresh(self, session: &mut Session, before: &Offer) -> Result<Vec<u8>, OfferError> {
        let mut config = self.read_config(session)?;
        config.resize(before.config.len(), 0);
        // What the offer decided stays.
        let decided = match self {
            Self::Blk => BLK_NUM_QUEUES..BLK_NUM_QUEUES + 2,
            Self::Net { mac } if mac.is_some() => 0..6,
            _ => 0..0,
        };
        if let (Some(new), Some(old)) = (config.get_mut(decided.clone()), before.config.get(decided)) {
            new.copy_from_slice(old);
        }
        Ok(config)
    }

    /// Whether `now` can stand in for `before`, whose driver accepted `accepted`.
    pub(super) fn compare(
        self,
        before: &Offer,
        now: &Offer,
        accepted: Option<u64>,
    ) -> Result<(), OfferError> {
        let needed = accepted.unwrap_or(before.features);
        let missing = needed & !now.features;
        let differs = if missing != 0 {
            format!("lacks features that the guest uses: {}", feature::names(self, missing))
        } else if now.queues < before.queues {
            format!("has {} queues, not {}", now.queues, before.queues)
        } else if let Some(index) = before.sizes.iter().zip(&now.sizes).position(|(old, new)| new < old) {
            format!("takes smaller rings than the former one, in queue {index}")
        } else if before.inflight && !now.inflight {
            "does not track requests in flight (protocol feature INFLIGHT_SHMFD), the former one did".into()
        } else if let Some(text) = self.config_differs(&before.config, &now.config) {
            text
        } else {
            return Ok(());
        };
        Err(OfferError::Differs(differs))
    }

    fn config_differs(self, before: &[u8], now: &[u8]) -> Option<String> {
        let skipped = match self {
            // The driver's own to change.
            Self::Blk => BLK_WRITEBACK..BLK_WRITEBACK + 1,
            // The link may be down for a while.
            Self::Net { .. } => NET_STATUS_AT..NET_STATUS_AT + 2,
            Self::Other { .. } => 0..0,
        };
        let at = |config: &[u8], index: usize| config.get(index).copied();
        let first = (0..before.len().max(now.len()))
            .find(|index| !skipped.contains(index) && at(before, *index) != at(now, *index))?;
        let sectors = |config: &[u8]| config.first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
        Some(match (self, sectors(before), sectors(now)) {
            (Self::Blk, Some(old), Some(new)) if old != new => {
                format!("has a capacity of {new} sectors, not {old}")
            }
            _ => format!("has another configuration, from byte {first}"),
        })
    }
}

impl Offer {
    fn blk(&mut self, offered: Option<u64>, asked: Option<u64>) -> Result<(), OfferError> {
        let said = self.config.get(BLK_NUM_QUEUES..BLK_NUM_QUEUES + 2);
        let said = said.and_then(|bytes| bytes.try_into().ok()).map_or(1, u16::from_le_bytes);
        let mq = self.features & BLK_MQ != 0;
        let most = offered.unwrap_or(1).min(if mq { said.into() } else { 1 });
        self.queues = enough(asked.unwrap_or(1), most)?;
        if let Some(field) = self.config.get_mut(BLK_NUM_QUEUES..BLK_NUM_QUEUES + 2) {
            field.copy_from_slice(&self.queues.to_le_bytes());
        }
        Ok(())
    }

    fn net(
        &mut self,
        offered: Option<u64>,
        asked: Option<u64>,
        mac: Option<[u8; 6]>,
        has_config: bool,
    ) -> Result<(), OfferError> {
        if !has_config || self.config.is_empty() {
            // A backend in QEMU's style: the frontend has the configuration, and would have the control queue.
            self.features &= !NET_CONTROL;
            self.features &= !NET_MAC;
            self.config = vec![0; NET_CONFIG as usize];
        }
        if let (Some(mac), Some(field)) = (mac, self.config.get_mut(..6)) {
            field.copy_from_slice(&mac);
            self.features |= NET_MAC;
        }
        let said = self.config.get(NET_PAIRS_AT..NET_PAIRS_AT + 2);
        let said = said.and_then(|bytes| bytes.try_into().ok()).map_or(1, u16::from_le_bytes);
        let pairs = if self.features & NET_MQ != 0 { u64::from(said.max(1)) } else { 1 };
        if asked.is_some_and(|asked| asked > pairs) {
            return Err(OfferError::Queues { asked: asked.unwrap_or(1), offered: pairs });
        }
        // The control queue sits behind all pairs the device has (virtio 1.2 section 5.1.2), so all are shown.
        let control = u64::from(self.features & NET_CTRL_VQ != 0);
        let queues = 2 * pairs + control;
        self.queues = enough(queues, offered.unwrap_or(queues).max(2))?;
        Ok(())
    }
}

/// The largest ring the backend takes. The protocol has no question for that, so it is tried, downwards.
fn largest_ring(session: &mut Session, index: u16, most: u16) -> Result<u16, OfferError> {
    let mut size = most;
    loop {
        match session.set_vring_num(index, size) {
            Ok(()) => return Ok(size),
            Err(error) if error.is_refusal() && size > 1 => size /= 2,
            Err(SessionError::Wire(WireError::Closed)) => return Err(OfferError::Ring { size }),
            Err(error) => return Err(error.into()),
        }
    }
}

fn enough(asked: u64, offered: u64) -> Result<u16, OfferError> {
    match u16::try_from(asked) {
        Ok(queues) if queues > 0 && asked <= offered.min(QUEUES_MAX) => Ok(queues),
        _ => Err(OfferError::Queues { asked, offered: offered.min(QUEUES_MAX) }),
    }
}

/// Says once in a while that a disk's crash may cost requests.
pub(super) fn warn_untracked(id: &str, kind: Kind, inflight: bool) {
    static UNTRACKED: Throttle = Throttle::new(5, 60);
    if kind == Kind::Blk && !inflight && UNTRACKED.allow() {
        tracing::warn!(
            device = id,
            "the backend does not track requests in flight (INFLIGHT_SHMFD): if it dies, some may be lost"
        );
    }
}

#[cfg(test)]
#[path = "kind_test.rs"]
mod kind_test;
