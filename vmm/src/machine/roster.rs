//! The devices that other processes serve, as everybody may see them: those that are there, those that are on their way.
//!
//! Written by the machine's owner alone; the control socket reads it under a short lock. Which slot a device has is the
//! bus's to decide (`pci/hotplug.rs`) and noted here.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::frontend::{Handle, Kind, State};

/// One device.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its id.
    pub id: String,
    /// Its slot on the bus; `None` before it is there.
    pub slot: Option<u8>,
    /// The guest has been asked to let go of it.
    pub leaving: bool,
    /// Who serves it.
    pub backend: Backend,
}

/// Who serves a device.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Somebody has answered.
    There(Handle),
    /// Nobody has yet.
    Coming {
        /// What it is to be.
        kind: Kind,
        /// Which attempt it is: what comes of another one is not for this device.
        attempt: u64,
        /// Why it will not do.
        trouble: Option<String>,
    },
}

impl Member {
    /// A device whose backend is there.
    #[must_use]
    pub fn served(handle: Handle) -> Self {
        let id = handle.id().to_owned();
        Self { id, slot: None, leaving: false, backend: Backend::There(handle) }
    }

    /// The backend, once it is there.
    #[must_use]
    pub fn handle(&self) -> Option<&Handle> {
        match &self.backend {
            Backend::There(handle) => Some(handle),
            Backend::Coming { .. } => None,
        }
    }
}

/// All of them: in the machine file's order, then in the order in which they came.
#[derive(Debug, Default)]
pub struct Roster(Mutex<Vec<Member>>);

impl Roster {
    fn members(&self) -> MutexGuard<'_, Vec<Member>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As they are now.
    #[must_use]
    pub fn all(&self) -> Vec<Member> {
        self.members().clone()
    }

    /// The one of this id.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<Member> {
        self.members().iter().find(|member| member.id == id).cloned()
    }

    /// Whether one waits for its backend, and is to stay.
    #[must_use]
    pub fn is_one_lost(&self) -> bool {
        let members = self.members();
        let mut staying = members.iter().filter(|member| !member.leaving).filter_map(Member::handle);
        staying.any(|handle| handle.state() == State::Lost)
    }

    /// One more.
    pub fn add(&self, member: Member) {
        self.members().push(member);
    }

    pub(super) fn remove(&self, id: &str) {
        self.members().retain(|member| member.id != id);
    }

    /// Changes the one of this id, if it is there.
    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut Member)) {
        if let Some(member) = self.members().iter_mut().find(|member| member.id == id) {
            change(member);
        }
    }
}
