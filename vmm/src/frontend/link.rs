//! The state of a device whose other half is in another process: the connection, if there is one, and all that
//! a returning backend has to be told.
//!
//! Shared by the [`super::Frontend`] (called by the PCI transport, on vCPU threads) and the monitor thread,
//! under one lock. Every request has a time limit, so the lock is held for a bounded time.
//!
//! ```text
//!   Connected --connection fails, backend closes--> Lost --backend of the same shape returns--> Connected
//!      | start_queue: asks the backend                | start_queue: noted, done at the return
//!      | stop_queue: backend drains                   | stop_queue: answered from the ring's used index
//! ```

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use strata_virtio::device::{QueueSetup, QueueState};
use strata_virtio::limit::Throttle;
use strata_virtio::memory::Memory;
use strata_virtio::vring::signal;
use vhost::vhost_user::message::FrontendReq as Req;

use super::kind::{Kind, Offer, OfferError};
use super::last;
use super::seen::Seen;
use super::session::{self, Inflight, RingAddresses, Session, SessionError};
use super::stall::Stalls;

static EVENTS: Throttle = Throttle::new(20, 60);

/// A ring the driver runs, with all a backend needs to serve it.
#[derive(Debug)]
struct Ring {
    size: u16,
    at: RingAddresses,
    kick: OwnedFd,
    call: OwnedFd,
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: String,
    pub(super) kind: Kind,
    memory: Arc<Memory>,
    /// Written by the backend when it finds a ring broken.
    err: Arc<OwnedFd>,
    pub(super) session: Option<Session>,
    /// Counts connections, so that news of an old one is not taken for news of this one.
    pub(super) connection: u64,
    pub(super) seen: Arc<Seen>,
    /// What the guest was shown.
    pub(super) offer: Offer,
    /// What its driver accepted.
    accepted: Option<u64>,
    rings: Vec<Option<Ring>>,
    inflight: Option<Inflight>,
    /// Bytes of the configuration that the driver has changed, and what they were.
    written: BTreeMap<u32, (u8, u8)>,
    stalls: Stalls,
    /// A connection that was given up by us: until its backend has closed it too, that one may be at work in the
    /// guest's memory.
    parting: Option<Arc<OwnedFd>>,
}

impl Link {
    pub(super) fn new(
        (id, kind): (String, Kind),
        (session, offer): (Session, Offer),
        memory: Arc<Memory>,
        err: Arc<OwnedFd>,
        seen: Arc<Seen>,
    ) -> Self {
        let rings = (0..offer.queues).map(|_| None).collect();
        Self {
            id,
            kind,
            memory,
            err,
            session: Some(session),
            connection: 1,
            seen,
            offer,
            accepted: None,
            rings,
            inflight: None,
            written: BTreeMap::new(),
            stalls: Stalls::default(),
            parting: None,
        }
    }

    /// Runs a request on the connection, if there is one; a connection that fails is lost. `None`: lost, before
    /// or now.
    fn ask<T>(
        &mut self,
        request: impl FnOnce(&mut Self, &mut Session) -> Result<T, SessionError>,
    ) -> Option<Result<T, SessionError>> {
        let mut session = self.session.take()?;
        match request(self, &mut session) {
            Err(error) if !error.is_refusal() => {
                self.lose(session, &error.to_string());
                None
            }
            result => {
                self.session = Some(session);
                Some(result)
            }
        }
    }

    fn lose(&mut self, session: Session, why: &str) {
        self.parting = session.part();
        self.seen.lost();
        self.seen.stalled(None);
        self.stalls = Stalls::default();
        if EVENTS.allow() {
            tracing::warn!(device = self.id, why, "the backend is lost; the guest waits until one returns");
        }
    }

    /// The backend has gone, seen from outside; only if `connection` is still the one.
    pub(super) fn hang_up(&mut self, connection: u64) {
        if self.connection == connection
            && let Some(session) = self.session.take()
        {
            self.lose(session, "it closed the connection");
        }
    }

    /// Ends the connection: the backend is to have nothing to do with the device any more.
    pub(super) fn part(&mut self) {
        if let Some(session) = self.session.take() {
            self.lose(session, "the device is to go");
        }
    }

    /// Answers what the driver waits for with errors: nobody else will.
    pub(super) fn answer_with_errors(&mut self) {
        if self.session.is_some() {
            return;
        }
        self.await_parting();
        // Once: afterwards nothing is in flight any more, and a backend that comes after all begins with a new region.
        let region = self.inflight.take().and_then(|region| last::copy(&region));
        for index in 0..self.offer.queues {
            self.end_ring(index, region.as_ref());
        }
    }

    /// Answers what waits in one ring, if the device is of a kind whose errors are known.
    fn end_ring(&self, index: u16, region: Option<&strata_virtio::inflight::Inflight>) {
        let Some(Some(ring)) = self.rings.get(usize::from(index)) else { return };
        if !self.kind.answers(index, self.offer.queues) {
            return;
        }
        let (features, memory) = (self.accepted.unwrap_or_default(), &self.memory);
        let last =
            last::Ring { index, size: ring.size, at: ring.at, call: ring.call.as_fd(), features, memory };
        if let Err(error) = last.answer(self.used_index(ring), region)
            && EVENTS.allow()
        {
            let error = crate::pci::causes(&error);
            tracing::warn!(device = self.id, queue = index, error, "requests cannot be answered with errors");
        }
    }

    /// The driver's features are settled.
    pub(super) fn set_features(&mut self, features: u64) {
        self.accepted = Some(features);
        let result = self.ask(|this, session| this.introduce(session));
        if let Some(Err(error)) = result
            && EVENTS.allow()
        {
            tracing::warn!(device = self.id, %error, "the backend does not take the driver's features");
        }
    }

    /// Features and memory: what a backend needs before rings.
    fn introduce(&mut self, session: &mut Session) -> Result<(), SessionError> {
        if let Some(accepted) = self.accepted {
            session.set_features(accepted)?;
            session.set_memory(&self.memory)?;
        }
        Ok(())
    }

    /// The driver starts a ring. `Err`: the backend refuses it. While the backend is lost, it waits.
    pub(super) fn start(&mut self, setup: QueueSetup) -> Result<(), SessionError> {
        let request = "the ring's eventfds";
        let (Some(kick), Some(call)) = (setup.kick, setup.call) else {
            return Err(SessionError::Refused { request });
        };
        let index = setup.index;
        let at = RingAddresses { desc: setup.desc, avail: setup.avail, used: setup.used };
        let ring = Ring { size: setup.size, at, kick, call };
        let result = self.ask(|this, session| {
            this.prepare_inflight(session)?;
            this.hand_over(session, index, &ring, setup.base)
        });
        match result {
            Some(Err(error)) => Err(error),
            Some(Ok(())) | None => {
                if let Some(slot) = self.rings.get_mut(usize::from(index)) {
                    *slot = Some(ring);
                }
                Ok(())
            }
        }
    }

    /// Has the inflight region made before the first ring runs.
    fn prepare_inflight(&mut self, session: &mut Session) -> Result<(), SessionError> {
        if self.inflight.is_none() {
            self.inflight = self.make_inflight(session)?;
        }
        Ok(())
    }

    fn make_inflight(&self, session: &mut Session) -> Result<Option<Inflight>, SessionError> {
        if !session.tracks_inflight() {
            return Ok(None);
        }
        // The rings' sizes, by which some backends make the region, have been told when they were tried out.
        let depth = self.offer.sizes.iter().copied().max().unwrap_or(1);
        let region = session.get_inflight(self.offer.queues, depth)?;
        session.set_inflight(&region)?;
        Ok(Some(region))
    }

    fn hand_over(
        &self,
        session: &mut Session,
        index: u16,
        ring: &Ring,
        base: u16,
    ) -> Result<(), SessionError> {
        session.set_vring_num(index, ring.size)?;
        session.set_vring_addresses(index, ring.at)?;
        session.set_vring_base(index, base)?;
        session.set_vring_fd(Req::SET_VRING_CALL, index, ring.call.as_fd())?;
        session.set_vring_fd(Req::SET_VRING_ERR, index, self.err.as_fd())?;
        session.set_vring_fd(Req::SET_VRING_KICK, index, ring.kick.as_fd())?;
        session.enable(index, true)
    }

    /// The driver stops a ring. A lost backend has nothing to say any more; what it had finished is in the ring.
    pub(super) fn stop(&mut self, index: u16) -> Option<QueueState> {
        let ring = self.rings.get_mut(usize::from(index))?.take()?;
        let drained = self.ask(|_, session| {
            session.enable(index, false)?;
            session.get_vring_base(index)
        });
        let base = match drained {
            Some(Ok(base)) => base,
            Some(Err(_)) => self.used_index(&ring),
            // The driver may use its memory for something else from here on.
            None => {
                self.await_parting();
                self.used_index(&ring)
            }
        };
        Some(QueueState { base })
    }

    /// Waits until a backend that was given up has closed its end, as long as one may take to drain a ring.
    fn await_parting(&mut self) {
        if let Some(socket) = self.parting.take()
            && !session::has_parted(&socket)
            && EVENTS.allow()
        {
            tracing::warn!(
                device = self.id,
                "a backend that was given up has not closed its connection in time"
            );
        }
    }

    /// Back to the start: the driver will shake hands anew. All rings are stopped.
    pub(super) fn reset(&mut self) {
        self.accepted = None;
        // Its contents belong to rings that are no more.
        self.inflight = None;
        for (at, (_, original)) in std::mem::take(&mut self.written) {
            self.put_config(at, &[original]);
        }
    }

    /// Where a backend that died has got to. Never the avail index, which would skip what was in flight.
    fn used_index(&self, ring: &Ring) -> u16 {
        self.memory.read_obj::<[u8; 2]>(ring.at.used.wrapping_add(2)).map_or(0, u16::from_le_bytes)
    }

    /// Looks whether a ring stands, says so, and kicks it: a backend that is awake shows it.
    pub(super) fn look(&mut self) {
        if self.session.is_none() {
            return;
        }
        let index = |at: u64| self.memory.read_obj::<[u8; 2]>(at).map_or(0, u16::from_le_bytes);
        let rings = (0..).zip(&self.rings).filter_map(|(queue, ring)| {
            let RingAddresses { avail, used, .. } =
                ring.as_ref().filter(|_| self.kind.answers(queue, self.offer.queues))?.at;
            Some((queue, index(avail.wrapping_add(2)), index(used.wrapping_add(2))))
        });
        let stall = self.stalls.look(rings, Instant::now());
        self.seen.stalled(stall);
        if let Some(stall) = stall
            && let Some(Some(ring)) = self.rings.get(usize::from(stall.queue))
        {
            signal(&ring.kick);
        }
    }

    /// A write of the driver's to the configuration.
    pub(super) fn write_config(&mut self, offset: u32, data: &[u8]) {
        if !self.session.as_ref().is_none_or(Session::has_config) {
            return;
        }
        for (at, byte) in (offset..).zip(data) {
            if let Some(old) = self.offer.config.get(at as usize) {
                let original = self.written.get(&at).map_or(*old, |(_, original)| *original);
                self.written.insert(at, (*byte, original));
            }
        }
        self.put_config(offset, data);
    }

    /// Writes to the backend, and takes over what it made of that.
    fn put_config(&mut self, offset: u32, data: &[u8]) {
        let result = self.ask(|this, session| {
            session.set_config(offset, data)?;
            Ok(this.kind.refresh(session, &this.offer))
        });
        match result {
            Some(Ok(Ok(config))) => self.offer.config = config,
            // Lost: replayed at the return, shown until then.
            None => {
                for (slot, byte) in self.offer.config.iter_mut().skip(offset as usize).zip(data) {
                    *slot = *byte;
                }
            }
            // Refused: nothing has changed, and nothing is to be replayed.
            Some(_) => (offset..).zip(data).for_each(|(at, _)| {
                self.written.remove(&at);
            }),
        }
    }

    /// The backend says that its configuration has changed: reads it again; true if it has.
    pub(super) fn refresh(&mut self) -> bool {
        let fresh = self.ask(|this, session| match this.kind.refresh(session, &this.offer) {
            Ok(config) => Ok(Some(config)),
            Err(OfferError::Session(error)) => Err(error),
            Err(_) => Ok(None),
        });
        match fresh {
            Some(Ok(Some(config))) if config != self.offer.config => {
                self.offer.config = config;
                true
            }
            _ => false,
        }
    }

    /// Takes a returning backend into service, from where its predecessor stopped.
    ///
    /// `Err`: it is not of the same shape, or failed on the way; nothing has changed.
    pub(super) fn adopt(&mut self, mut session: Session, offer: &Offer) -> Result<(), OfferError> {
        self.kind.compare(&self.offer, offer, self.accepted)?;
        self.introduce(&mut session)?;
        if session.has_config() {
            for (at, (byte, _)) in &self.written {
                session.set_config(*at, &[*byte])?;
            }
        }
        let running = || (0..).zip(&self.rings).filter_map(|(index, ring)| Some((index, ring.as_ref()?)));
        if let Some(region) = &self.inflight {
            for (index, ring) in running() {
                session.set_vring_num(index, ring.size)?;
            }
            session.set_inflight(region)?;
        }
        // The driver may have begun anew while nobody was there.
        let fresh = match &self.inflight {
            None if running().next().is_some() => self.make_inflight(&mut session)?,
            _ => None,
        };
        for (index, ring) in running() {
            self.hand_over(&mut session, index, ring, self.used_index(ring))?;
        }
        for (_, ring) in running() {
            // The driver may have kicked the one that died, and may wait for an answer whose call died with it.
            signal(&ring.kick);
            signal(&ring.call);
        }
        self.inflight = fresh.or(self.inflight.take());
        self.parting = None;
        self.connection += 1;
        self.session = Some(session);
        self.seen.back();
        // Features, queues and the configuration's fixed parts are as before; its volatile ones may be news.
        Ok(())
    }
}
