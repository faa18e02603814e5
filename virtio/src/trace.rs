//! A hook at every access to memory shared with the other side, for tests: they record the order of accesses
//! that the production code really makes, and end it ("crash") before any one store. Outside tests it is nothing.

/// A shared field whose order against another matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Field {
    /// The driver's index.
    AvailIdx,
    /// The device's index.
    UsedIdx,
    /// What the device writes to ask for kicks: avail_event, or the used ring's flags.
    KickWish,
    /// What the driver writes to ask for calls: used_event, or the avail ring's flags.
    CallWish,
    /// A used element.
    Used,
    /// Anything in the inflight region.
    Inflight,
}

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Load(Field),
    Store(Field),
    Fence,
}

#[cfg(not(test))]
#[inline(always)]
pub(crate) fn note(_: Access) {}

#[cfg(test)]
pub(crate) use recorder::{crash_before, note, record};

#[cfg(test)]
mod recorder {
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

    use super::Access;

    thread_local! {
        static LOG: RefCell<Option<Vec<Access>>> = const { RefCell::new(None) };
        static STORES_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    }

    struct Crash;

    pub(crate) fn note(access: Access) {
        LOG.with_borrow_mut(|log| log.as_mut().into_iter().for_each(|log| log.push(access)));
        if matches!(access, Access::Store(_)) {
            match STORES_LEFT.get() {
                Some(0) => {
                    STORES_LEFT.set(None);
                    resume_unwind(Box::new(Crash));
                }
                Some(left) => STORES_LEFT.set(Some(left - 1)),
                None => {}
            }
        }
    }

    /// The accesses this thread makes while `run` runs.
    pub(crate) fn record(run: impl FnOnce()) -> Vec<Access> {
        LOG.set(Some(Vec::new()));
        run();
        LOG.take().unwrap()
    }

    /// Runs until just before store number `n` of this thread; `None` if that was reached.
    pub(crate) fn crash_before<T>(n: u32, run: impl FnOnce() -> T) -> Option<T> {
        STORES_LEFT.set(Some(n));
        let result = catch_unwind(AssertUnwindSafe(run));
        STORES_LEFT.set(None);
        match result {
            Ok(value) => Some(value),
            Err(why) if why.is::<Crash>() => None,
            Err(why) => resume_unwind(why),
        }
    }
}
