//! Where which address was last seen: learnt from source addresses, forgotten with age. Owned by the switch's thread.
//!
//! Bounded per port, so that a guest that invents addresses pushes out nobody's but its own: beyond the bound nothing
//! more is learnt from that port until something ages, and frames to what was not learnt are flooded. The hash is keyed
//! at random, so nobody can choose addresses that collide.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use crate::mac::Mac;

/// Addresses a port may have at most.
pub const PER_PORT: u32 = 256;

/// A VLAN and an address in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key(u64);

impl Key {
    #[inline]
    fn new(vlan: u16, mac: Mac) -> Self {
        let [a, b, c, d, e, f] = mac.bytes();
        let [v, w] = vlan.to_be_bytes();
        Self(u64::from_be_bytes([v, w, a, b, c, d, e, f]))
    }

    fn parts(self) -> (u16, Mac) {
        let [v, w, a, b, c, d, e, f] = self.0.to_be_bytes();
        (u16::from_be_bytes([v, w]), Mac::new([a, b, c, d, e, f]))
    }
}

impl std::hash::Hash for Key {
    #[inline]
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// Multiplies by a secret and folds: enough against who does not know it and never sees a hash.
#[derive(Debug, Clone)]
struct Keyed {
    add: u64,
    times: u64,
}

#[derive(Debug)]
struct Fold {
    key: Keyed,
    value: u64,
}

impl BuildHasher for Keyed {
    type Hasher = Fold;

    #[inline]
    fn build_hasher(&self) -> Fold {
        Fold { key: self.clone(), value: 0 }
    }
}

impl Hasher for Fold {
    #[inline]
    fn write_u64(&mut self, value: u64) {
        let wide = u128::from(value ^ self.value ^ self.key.add) * u128::from(self.key.times);
        self.value = (wide as u64) ^ ((wide >> 64) as u64);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.value
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    port: u16,
    seen: u32,
}

/// What learning an address came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learnt {
    /// It was known there.
    Known,
    /// It is new.
    New,
    /// It was at another port before.
    Moved,
    /// The port has as many as it may have.
    Full,
}

/// One line of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// VLAN.
    pub vlan: u16,
    /// Address.
    pub mac: Mac,
    /// Number of the port.
    pub port: u16,
    /// Seconds since a frame came from it.
    pub age: u32,
}

/// The table. Times are whole seconds of any clock that only goes forward.
#[derive(Debug)]
pub struct Table {
    entries: HashMap<Key, Entry, Keyed>,
    /// Entries of each port.
    counts: Vec<u32>,
    ageing: u32,
    swept: u32,
}

impl Table {
    /// An empty one for `ports` ports, whose entries live `ageing` seconds after they were last seen.
    #[must_use]
    pub fn new(ports: usize, ageing: u32) -> Self {
        let secret = RandomState::new();
        let key = Keyed { add: secret.hash_one(0), times: secret.hash_one(1) | 1 };
        Self { entries: HashMap::with_hasher(key), counts: vec![0; ports], ageing, swept: 0 }
    }

    /// A frame came from `mac` at `port`.
    #[inline]
    pub fn learn(&mut self, vlan: u16, mac: Mac, port: u16, now: u32) -> Learnt {
        let key = Key::new(vlan, mac);
        match self.entries.get_mut(&key) {
            Some(entry) if entry.port == port => {
                entry.seen = now;
                Learnt::Known
            }
            _ => self.enter(key, port, now),
        }
    }

    #[cold]
    fn enter(&mut self, key: Key, port: u16, now: u32) -> Learnt {
        if self.count(port) >= PER_PORT {
            self.sweep(now);
            if self.count(port) >= PER_PORT {
                return Learnt::Full;
            }
        }
        let before = self.entries.insert(key, Entry { port, seen: now });
        self.add(port, 1);
        match before {
            None => Learnt::New,
            Some(before) => {
                self.add(before.port, u32::MAX);
                Learnt::Moved
            }
        }
    }

    fn count(&self, port: u16) -> u32 {
        self.counts.get(usize::from(port)).copied().unwrap_or(u32::MAX)
    }

    fn add(&mut self, port: u16, number: u32) {
        if let Some(count) = self.counts.get_mut(usize::from(port)) {
            *count = count.wrapping_add(number);
        }
    }

    /// The port `mac` was seen at, if it was not too long ago.
    #[inline]
    #[must_use]
    pub fn find(&self, vlan: u16, mac: Mac, now: u32) -> Option<u16> {
        let entry = self.entries.get(&Key::new(vlan, mac))?;
        (now.saturating_sub(entry.seen) <= self.ageing).then_some(entry.port)
    }

    /// Removes what is too old, at most once a second.
    pub fn sweep(&mut self, now: u32) {
        if now == self.swept {
            return;
        }
        self.swept = now;
        let (counts, ageing) = (&mut self.counts, self.ageing);
        self.entries.retain(|_, entry| {
            let keep = now.saturating_sub(entry.seen) <= ageing;
            if !keep && let Some(count) = counts.get_mut(usize::from(entry.port)) {
                *count = count.saturating_sub(1);
            }
            keep
        });
    }

    /// Forgets everything learnt at `port`.
    pub fn forget(&mut self, port: u16) {
        self.entries.retain(|_, entry| entry.port != port);
        if let Some(count) = self.counts.get_mut(usize::from(port)) {
            *count = 0;
        }
    }

    /// All that is known and not too old, by VLAN and address.
    #[must_use]
    pub fn rows(&self, now: u32) -> Vec<Row> {
        let mut rows: Vec<Row> = self
            .entries
            .iter()
            .map(|(key, entry)| {
                let (vlan, mac) = key.parts();
                Row { vlan, mac, port: entry.port, age: now.saturating_sub(entry.seen) }
            })
            .filter(|row| row.age <= self.ageing)
            .collect();
        rows.sort_by_key(|row| (row.vlan, row.mac.bytes()));
        rows
    }
}

#[cfg(test)]
#[path = "table_test.rs"]
mod table_test;
