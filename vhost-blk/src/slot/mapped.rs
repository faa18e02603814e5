//! A request on layers: what lies in one of the files goes there, piece by piece; the rest is for the lane.

use nix::errno::Errno;
use strata_virtio::memory::IoSlice;

use super::{Next, Outcome, Slot, path};
use crate::disk::Disk;
use crate::engine::Job;
use crate::layers::lane::{Ask, zero};
use crate::layers::{Mapper, Place};
use crate::request::{Op, Status};

impl Slot {
    pub(super) fn next_mapped<'a>(&'a mut self, disk: &Disk, mapper: &Mapper, durable: bool) -> Next<'a> {
        if self.ended {
            return Next::End(Status::Ok);
        }
        let (at, write) = loop {
            let (offset, write) = match self.request.op {
                Op::Read { offset } => (offset, false),
                Op::Write { offset } => (offset, true),
                _ => return self.next_of_lane(disk, durable),
            };
            if self.rest().is_empty() {
                // What the lane has allocated is in tables of its own.
                return if write && durable {
                    self.next_of_lane(disk, durable)
                } else {
                    Next::End(Status::Ok)
                };
            }
            let at = offset + self.done;
            let (place, room) = mapper.find(at);
            match place {
                Some(Place::File { node, offset, writable }) if !self.by_lane && (writable || !write) => {
                    if let Some(image) = disk.files.get(node) {
                        self.cut(room);
                        let data = self.cut.as_slice();
                        let path = path(image, node, offset, data);
                        return Next::Job(match write {
                            false => Job::Read { offset, data, path },
                            true => Job::Write { offset, data, path, durable: false },
                        });
                    }
                }
                // Perhaps it may be written where it lies.
                None if write && !self.by_lane => return Next::Ask(Ask::Find { offset: at }),
                Some(Place::Zero) if !write => {
                    self.cut(room);
                    let len = self.cut.iter().map(IoSlice::len).sum();
                    zero(&self.cut);
                    self.consume(len);
                    continue;
                }
                _ => {}
            }
            if !write {
                self.cut(room);
            }
            break (at, write);
        };
        Next::Ask(match write {
            false => Ask::Read { offset: at, data: self.cut.clone(), look_up: !self.by_lane },
            true => Ask::Write { offset: at, data: self.rest().to_vec() },
        })
    }

    fn next_of_lane(&mut self, disk: &Disk, durable: bool) -> Next<'static> {
        let range = self.request.ranges.get(self.range).copied();
        match (self.request.op, range) {
            (Op::Discard, Some(range)) => Next::Ask(Ask::Discard { offset: range.offset, len: range.len }),
            (Op::WriteZeroes, Some(range)) => {
                Next::Ask(Ask::Zero { offset: range.offset, len: range.len, unmap: range.unmap })
            }
            (Op::GetId | Op::Discard, _) => Next::End(Status::Ok),
            (Op::Flush, _) if !disk.image.flushes() => Next::End(Status::Ok),
            (Op::Flush, _) => Next::Ask(Ask::Sync),
            (_, _) if !durable => Next::End(Status::Ok),
            (_, _) => {
                self.syncing = true;
                Next::Ask(Ask::Sync)
            }
        }
    }

    /// Takes in what the lane says.
    pub fn apply_reply(&mut self, answer: Result<usize, Errno>, found: bool, durable: bool) -> Outcome {
        self.by_lane = false;
        match (answer, self.request.op) {
            // It has found out where that lies, or that it lies in no one place.
            (Ok(0), Op::Read { .. } | Op::Write { .. }) if !self.syncing => {
                self.by_lane = !found;
                Outcome::Continue
            }
            (answer, _) => self.apply(answer, durable),
        }
    }

    /// The first `len` bytes of what is left, as a list of its own.
    fn cut(&mut self, len: u64) {
        let mut left = usize::try_from(len).unwrap_or(usize::MAX);
        self.cut.clear();
        for part in self.request.data.get(self.part..).unwrap_or_default() {
            if left == 0 {
                break;
            }
            let part = part.take(left);
            left -= part.len();
            self.cut.push(part);
        }
    }
}
