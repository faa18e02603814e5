//! A session without a socket, for fuzzing: messages from plain bytes, done to a device. Only with the `driver`
//! feature.

use std::os::fd::OwnedFd;

use super::config_change::ConfigChange;
use super::request::Request;
use super::state::Session;
use super::wire::{MAX_BODY, Message};
use crate::device::Device;

/// Reads `bytes` as messages one after another and does them, as [`super::serve`] would: each is a request code
/// (one byte), a number of descriptors to come with it (one byte, the low two bits), a length (two bytes, little
/// endian) and so many bytes of body. Descriptors are what `descriptor` makes. At the end the session ends, with
/// all that follows. Returns how many requests were done and how many refused.
pub fn replay(
    device: &mut dyn Device,
    bytes: &[u8],
    mut descriptor: impl FnMut() -> OwnedFd,
) -> (usize, usize) {
    let channel = ConfigChange::default();
    let mut session = Session::new(device, &channel);
    let (mut done, mut refused) = (0, 0);
    let mut rest = bytes;
    while let Some(([code, fds, low, high], after)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(MAX_BODY).min(after.len());
        let (body, after) = after.split_at(len);
        let fds = (0..fds & 3).map(|_| descriptor()).collect();
        let message = Message { code: u32::from(*code), need_reply: true, body: body.to_vec(), fds };
        match Request::parse(message).map(|request| session.handle(request)) {
            Ok(Ok(_)) => done += 1,
            _ => refused += 1,
        }
        rest = after;
    }
    (done, refused)
}
