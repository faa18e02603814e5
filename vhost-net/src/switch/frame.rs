//! A frame on its way through the switch: what of it is ours, and what still lies in its sender's memory.
//!
//! ```text
//!   sender's memory:  | virtio-net header | addresses | [tag] type | rest ........................ |
//!                       \__ read once, checked, rewritten ________/  \__ copied straight across __/
//! ```
//! Everything a decision is made on is read once into memory of ours, and that is what the receivers get: a guest that
//! changes its frame meanwhile changes bytes nobody looked at. Places the header counts in bytes (`csum_start`,
//! `hdr_len`) are kept for the frame without its VLAN tag and moved when one is put in.
//!
//! Refuses what is no Ethernet frame, and headers that lie ([`crate::header`]).

use strata_virtio::chain::Chain;
use virtio_bindings::virtio_net as net;

use super::vlans::TAG;
use crate::guard::ENOUGH as KEPT;
use crate::header::{Allowed, ETHERNET, HEADER, Lie, MAX_FRAME};
use crate::mac::Mac;

/// Bytes that are always read: addresses, a tag, the type behind it. With a guard it is [`KEPT`].
pub const USUAL: usize = 18;
/// Room for what begins a frame on its way out: header, one tag, what is kept.
const OUT: usize = HEADER + 4 + KEPT;
/// Where a tag is in a frame.
const TAG_AT: usize = 12;
const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;

/// Where the frame goes on after what is kept.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// In a request's readable part, from here on.
    Guest(&'a Chain, usize),
    /// In our own memory.
    Own(&'a [u8]),
}

/// Why there is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Shorter than an Ethernet header, or than one with its tag.
    Short,
    /// Longer than any frame.
    Long,
    /// Its header says what cannot be.
    Lie(Lie),
}

/// One frame.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    header: [u8; HEADER],
    /// Its first bytes, with the tag.
    own: &'a [u8],
    tci: Option<u16>,
    /// Whether what follows is another tag.
    inner: bool,
    body: Body<'a>,
    /// Without the tag.
    len: usize,
}

impl<'a> Frame<'a> {
    /// The frame in a transmit request, of which `keep` bytes ([`USUAL`] to [`KEPT`]) are kept in `own`.
    ///
    /// # Errors
    /// There is none.
    #[inline]
    pub fn of_request(
        chain: &'a Chain,
        own: &'a mut [u8; HEADER + KEPT],
        keep: usize,
        allowed: Allowed,
    ) -> Result<Self, Unfit> {
        let total = chain.readable_len();
        if total < HEADER + ETHERNET {
            return Err(Unfit::Short);
        }
        if total > HEADER + MAX_FRAME {
            return Err(Unfit::Long);
        }
        let kept = total.min(HEADER + keep);
        let own = own.get_mut(..kept).ok_or(Unfit::Long)?;
        chain.copy_out(0, own).map_err(|_| Unfit::Short)?;
        let (header, own) = own.split_first_chunk::<HEADER>().ok_or(Unfit::Short)?;
        let header = allowed.check(header, total - HEADER).map_err(Unfit::Lie)?;
        Self::new(header, own, Body::Guest(chain, kept), total - HEADER)
    }

    /// The frame in our own memory, behind its header.
    ///
    /// # Errors
    /// There is none.
    pub fn of_bytes(bytes: &'a [u8], allowed: Allowed) -> Result<Self, Unfit> {
        let (header, frame) = bytes.split_first_chunk::<HEADER>().ok_or(Unfit::Short)?;
        if frame.len() < ETHERNET {
            return Err(Unfit::Short);
        }
        if frame.len() > MAX_FRAME {
            return Err(Unfit::Long);
        }
        let header = allowed.check(header, frame.len()).map_err(Unfit::Lie)?;
        let (own, body) = frame.split_at(frame.len().min(KEPT));
        Self::new(header, own, Body::Own(body), frame.len())
    }

    #[inline]
    fn new(mut header: [u8; HEADER], own: &'a [u8], body: Body<'a>, len: usize) -> Result<Self, Unfit> {
        let pair = |at: usize| match own.get(at..at + 2) {
            Some(&[a, b]) => Some([a, b]),
            _ => None,
        };
        if pair(TAG_AT) != Some(TAG) {
            return Ok(Self { header, own, tci: None, inner: false, body, len });
        }
        let tci = pair(TAG_AT + 2).map(u16::from_be_bytes).ok_or(Unfit::Short)?;
        let kind = pair(TAG_AT + 4).ok_or(Unfit::Short)?;
        shift(&mut header, -4)?;
        Ok(Self { header, own, tci: Some(tci), inner: kind == TAG, body, len: len - 4 })
    }

    fn mac(&self, at: usize) -> Mac {
        Mac::new(self.own.get(at..at + 6).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; 6]))
    }

    /// Where it goes.
    #[inline]
    #[must_use]
    pub fn destination(&self) -> Mac {
        self.mac(0)
    }

    /// Where it says it comes from.
    #[inline]
    #[must_use]
    pub fn source(&self) -> Mac {
        self.mac(6)
    }

    /// Its VLAN tag.
    #[inline]
    #[must_use]
    pub fn tci(&self) -> Option<u16> {
        self.tci
    }

    /// Whether a VLAN tag follows its first one, or would if it had a first one.
    #[inline]
    #[must_use]
    pub fn inner(&self) -> bool {
        self.inner
    }

    /// Its header, of a frame without a tag.
    #[inline]
    #[must_use]
    pub fn header(&self) -> &[u8; HEADER] {
        &self.header
    }

    /// Bytes of it, without a tag.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never: there is an Ethernet header.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Its first bytes as they came, tag included, for a guard.
    #[must_use]
    pub fn kept(&self) -> &[u8] {
        self.own
    }

    /// The frame as it goes out: with a tag of `vlan`, or none.
    ///
    /// # Errors
    /// The header would count past what it can.
    #[inline]
    pub fn out(&self, tag: Option<u16>) -> Result<Out<'a>, Unfit> {
        let mut out = Out { start: [0; OUT], kept: 0, body: self.body, len: HEADER + self.len };
        let mut header = self.header;
        if tag.is_some() {
            shift(&mut header, 4)?;
            out.len += 4;
        }
        out.add(&header);
        let (addresses, rest) = self.own.split_at_checked(TAG_AT).ok_or(Unfit::Short)?;
        out.add(addresses);
        if let Some(vlan) = tag {
            // The priority is the sender's, the VLAN is not.
            let tci = vlan | self.tci.unwrap_or(0) & 0xf000;
            out.add(&TAG);
            out.add(&tci.to_be_bytes());
        }
        out.add(rest.get(if self.tci.is_some() { 4 } else { 0 }..).unwrap_or_default());
        Ok(out)
    }
}

/// Moves the places a header counts from the frame's start.
#[inline]
fn shift(header: &mut [u8; HEADER], by: i16) -> Result<(), Unfit> {
    let [flags, gso, h0, h1, _, _, s0, s1, ..] = header;
    if *flags & NEEDS_CSUM != 0 {
        let start = u16::from_le_bytes([*s0, *s1]);
        // A sum that begins in the Ethernet header is nobody's.
        let lie = Unfit::Lie(Lie::ChecksumPlace { start, offset: 0, frame: 0 });
        let moved =
            start.checked_add_signed(by).filter(|moved| usize::from(*moved) >= ETHERNET).ok_or(lie)?;
        [*s0, *s1] = moved.to_le_bytes();
    }
    let length = u16::from_le_bytes([*h0, *h1]);
    if *gso != 0 && length != 0 {
        [*h0, *h1] = length.saturating_add_signed(by).to_le_bytes();
    }
    Ok(())
}

/// A frame as one port is to get it, header and all: its beginning in our memory, the rest where it lies.
#[derive(Debug, Clone)]
pub struct Out<'a> {
    start: [u8; OUT],
    kept: usize,
    body: Body<'a>,
    len: usize,
}

impl<'a> Out<'a> {
    /// One that is all ours already.
    #[must_use]
    pub fn of_bytes(bytes: &'a [u8]) -> Self {
        Self { start: [0; OUT], kept: 0, body: Body::Own(bytes), len: bytes.len() }
    }

    #[inline]
    fn add(&mut self, bytes: &[u8]) {
        if let Some(room) = self.start.get_mut(self.kept..self.kept + bytes.len()) {
            room.copy_from_slice(bytes);
            self.kept += bytes.len();
        }
    }

    /// Its beginning.
    #[inline]
    #[must_use]
    pub fn start(&self) -> &[u8] {
        self.start.get(..self.kept).unwrap_or_default()
    }

    /// Where it goes on.
    #[inline]
    #[must_use]
    pub fn body(&self) -> Body<'a> {
        self.body
    }

    /// Bytes in all, header included.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it in `bytes`; false if its sender has taken it away meanwhile, which cannot happen.
    pub fn gather(&self, bytes: &mut Vec<u8>) -> bool {
        bytes.clear();
        bytes.extend_from_slice(self.start());
        match self.body {
            Body::Own(body) => bytes.extend_from_slice(body),
            Body::Guest(chain, from) => {
                let at = bytes.len();
                bytes.resize(self.len, 0);
                let rest = bytes.get_mut(at..).unwrap_or_default();
                return chain.copy_out(from, rest).is_ok();
            }
        }
        bytes.len() == self.len
    }
}

#[cfg(test)]
#[path = "frame_test.rs"]
mod frame_test;
