//! Which VLANs a port belongs to, and what tags mean on it (IEEE 802.1Q). Pure; asked for every frame.
//!
//! Refuses, by saying nothing: frames that carry another VLAN than the port's. An access port takes no tag but the
//! priority tag (VLAN 0), so a guest on it cannot name a VLAN, neither with one tag nor with one inside another.

/// The lowest and the highest VLAN there is; 0 means "no VLAN", 4095 is reserved.
pub const ALLOWED: std::ops::RangeInclusive<u16> = 1..=4094;
/// The VLAN of a port that names none.
pub const DEFAULT: u16 = 1;
/// EtherType of a customer's VLAN tag.
pub const TAG: [u8; 2] = [0x81, 0x00];

/// A set of VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set(Box<[u64; 64]>);

impl Set {
    /// Of these; what is not [`ALLOWED`] is left out.
    #[must_use]
    pub fn new(vlans: impl IntoIterator<Item = u16>) -> Self {
        let mut words = Box::new([0; 64]);
        for vlan in vlans.into_iter().filter(|vlan| ALLOWED.contains(vlan)) {
            if let Some(word) = words.get_mut(usize::from(vlan / 64)) {
                *word |= 1 << (vlan % 64);
            }
        }
        Self(words)
    }

    /// Whether it has this one.
    #[inline]
    #[must_use]
    pub fn contains(&self, vlan: u16) -> bool {
        self.0.get(usize::from(vlan / 64)).is_some_and(|word| word & (1 << (vlan % 64)) != 0)
    }

    /// All of them, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        ALLOWED.filter(|vlan| self.contains(*vlan))
    }
}

/// A port's VLANs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vlans {
    /// One, of which the guest sees no tag.
    Access(u16),
    /// Several, told apart by tags.
    Trunk {
        /// The VLAN of frames without a tag; `None`: there are no such frames.
        native: Option<u16>,
        /// All of them, the native one included.
        carried: Set,
    },
}

impl Vlans {
    /// The VLAN of a frame that comes in with the tag `tci`, of which one more tag follows if `inner`; `None` if it may
    /// not come in.
    #[inline]
    #[must_use]
    pub fn of(&self, tci: Option<u16>, inner: bool) -> Option<u16> {
        let vlan = tci.map_or(0, |tci| tci & 0xfff);
        match self {
            // A tag behind a priority tag would be the outer one once that is taken off.
            Self::Access(own) => (vlan == 0 && !inner).then_some(*own),
            Self::Trunk { native, .. } if vlan == 0 => native.filter(|_| !inner),
            Self::Trunk { carried, .. } => carried.contains(vlan).then_some(vlan),
        }
    }

    /// Whether frames of `vlan` go out here.
    #[inline]
    #[must_use]
    pub fn carry(&self, vlan: u16) -> bool {
        match self {
            Self::Access(own) => *own == vlan,
            Self::Trunk { carried, .. } => carried.contains(vlan),
        }
    }

    /// Whether a frame of `vlan` goes out with a tag. One that has another tag inside keeps its own on a trunk's native
    /// VLAN: without it the inner one would say where it belongs.
    #[inline]
    #[must_use]
    pub fn tagged(&self, vlan: u16, inner: bool) -> bool {
        match self {
            Self::Access(_) => false,
            Self::Trunk { native, .. } => *native != Some(vlan) || inner,
        }
    }
}

#[cfg(test)]
#[path = "vlans_test.rs"]
mod vlans_test;
