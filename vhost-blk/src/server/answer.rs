//! The end of a request: its status byte, its place in the used ring, what is counted and what is logged.

use nix::errno::Errno;
use strata_virtio::limit::Throttle;

use super::Server;
use crate::disk::Disk;
use crate::request::{Answer, Fault, Op, Status};

static BAD_REQUEST: Throttle = Throttle::new(5, 60);
static FAILED_IO: Throttle = Throttle::new(5, 60);

/// Answers shown to the driver at once while more requests wait: a polling driver goes on meanwhile.
const SHOW: usize = 8;
/// Answers after which a call that the driver wants is not put off any longer.
const CALL: usize = 64;

impl Server {
    #[inline]
    pub(super) fn finish(&mut self, index: u16, status: Status) {
        self.free.push(index);
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return };
        match status {
            Status::Ok => self.tally.done(slot.request.op, slot.request.len),
            _ => self.tally.failed.add(1),
        }
        match slot.found {
            Some(found) => self.tally.latency.add(found.elapsed(), 1),
            None => self.untimed += 1,
        }
        if let Some(answer) = slot.request.answer.take() {
            self.answer(answer, status);
        }
    }

    #[cold]
    pub(super) fn refuse(&mut self, fault: Fault) {
        self.tally.refused.add(1);
        match fault {
            Fault::Unanswerable { head } => {
                if BAD_REQUEST.allow() {
                    tracing::warn!("{}: a request without room for a status", self.disk.name());
                }
                self.answered(head, 0);
            }
            Fault::Refused { answer, status, why } => {
                if BAD_REQUEST.allow() {
                    tracing::warn!("{}: request refused: {why}", self.disk.name());
                }
                self.answer(answer, status);
            }
        }
    }

    #[inline]
    fn answer(&mut self, answer: Answer, status: Status) {
        let (head, written) = answer.write(self.vring.queue().memory(), status);
        self.answered(head, written);
    }

    #[inline]
    fn answered(&mut self, head: u16, written: u32) {
        self.vring.push(head, written);
        self.unshown += 1;
    }

    #[inline]
    pub(super) fn show_some(&mut self) {
        if self.unshown >= SHOW {
            self.uncalled += self.unshown;
            self.unshown = 0;
            if self.uncalled >= CALL {
                self.flush();
            } else {
                self.vring.show();
            }
        }
    }

    #[inline]
    pub(super) fn flush(&mut self) {
        self.unshown = 0;
        self.uncalled = 0;
        self.vring.flush();
    }
}

/// Logs what the image has failed at.
#[cold]
pub(super) fn report(disk: &Disk, op: Op, errno: Errno, stop: bool) {
    if !FAILED_IO.allow() {
        return;
    }
    let what = match op {
        Op::Read { offset } => format!("reading at byte {offset}"),
        Op::Write { offset } => format!("writing at byte {offset}"),
        Op::Flush => "flushing".into(),
        Op::Discard => "discarding".into(),
        Op::WriteZeroes => "writing zeroes".into(),
        Op::GetId => "identifying".into(),
    };
    let then = if stop { "; the queue has stopped until it is resumed" } else { "" };
    if errno == Errno::ENODATA {
        tracing::error!("{}: {what}: the image is shorter than when it was opened{then}", disk.name());
    } else {
        tracing::error!("{}: {what} failed: {}{then}", disk.name(), std::io::Error::from(errno));
    }
}
