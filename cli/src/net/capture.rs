//! `strata net capture`: a NIC's frames as pcapng, written as they come.
//!
//! The backend's bytes are copied block by block, so that what is written is whole whenever it ends. Refuses blocks that
//! cannot be, and to write binary to a terminal.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal};
use serde_json::json;
use strata_config::Size;

use super::{PATIENCE, Target};
use crate::backend::take_over;
use crate::say::say;

/// The longest block: the longest frame, and what is around it.
const LONGEST: usize = 512 << 10;
/// Enhanced packet block and interface statistics block (draft-ietf-opsawg-pcapng).
const PACKET: u32 = 6;
const STATISTICS: u32 = 5;
/// How often the clock and signals are looked at while nothing comes.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct CaptureArgs {
    #[command(flatten)]
    target: Target,
    /// The file to write [default: standard output, if that is no terminal]
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many frames
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long = "for", value_name = "SECONDS")]
    time: Option<u64>,
    /// Bytes of each frame that are kept [default: all]
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(14..=262_144))]
    snaplen: Option<u32>,
    /// End before the file is larger than this; without a unit MiB
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    max_size: Size,
}

static ENOUGH: AtomicBool = AtomicBool::new(false);

pub(super) fn run(args: &CaptureArgs) -> anyhow::Result<()> {
    if args.write.is_none() && io::stdout().is_terminal() {
        bail!("a capture is no text: give a file (-w FILE), or pipe it into a program (| tshark -r -)");
    }
    let nic = args.target.find()?;
    let stream =
        take_over(&nic.socket, "io.strata.Net.Capture", json!({ "snaplen": args.snaplen }), PATIENCE)
            .context("cannot capture")?;
    let mut out: Box<dyn Write> = match &args.write {
        Some(path) => {
            Box::new(File::create(path).with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => Box::new(io::stdout()),
    };
    ends_by_signals().context("cannot watch for signals")?;
    let Frames { written, missing } = copy(args, stream, &mut out)?;
    say(format_args!("strata: {written} frames written; {missing} that passed are missing"));
    Ok(())
}

extern "C" fn enough(_: i32) {
    ENOUGH.store(true, Ordering::Relaxed);
}

#[allow(unsafe_code)] // sigaction
fn ends_by_signals() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(enough), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic.
        unsafe { nix::sys::signal::sigaction(signal, &action) }?;
    }
    Ok(())
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Frames {
    written: u64,
    missing: u64,
}

fn copy(args: &CaptureArgs, mut stream: UnixStream, out: &mut dyn Write) -> anyhow::Result<Frames> {
    stream.set_read_timeout(Some(LOOK))?;
    let end = args.time.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let most = args.count.unwrap_or(u64::MAX);
    let (mut frames, mut size, mut asked) = (Frames::default(), 0, false);
    loop {
        let over = ENOUGH.load(Ordering::Relaxed) || end.is_some_and(|end| Instant::now() >= end);
        if !asked && (over || frames.written >= most) {
            // The backend sends what is left, and counts.
            stream.shutdown(Shutdown::Write)?;
            asked = true;
        }
        let Some(block) = next(&mut stream)? else { return Ok(frames) };
        let Block::Whole(kind, bytes) = block else { continue };
        if kind == PACKET {
            let full = size + bytes.len() as u64 > args.max_size.0;
            if frames.written >= most || full {
                ENOUGH.store(true, Ordering::Relaxed);
                continue;
            }
            frames.written += 1;
        }
        if kind == STATISTICS {
            frames.missing = missing(&bytes);
        }
        size += bytes.len() as u64;
        match out.write_all(&bytes).and_then(|()| out.flush()) {
            // Whoever reads has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(frames),
            result => result.context("cannot write the capture")?,
        }
    }
}

/// What came.
enum Block {
    Whole(u32, Vec<u8>),
    /// Nothing, for a while.
    Nothing,
}

/// The next block; `None` at the end.
fn next(stream: &mut impl Read) -> anyhow::Result<Option<Block>> {
    let mut head = [0; 8];
    let mut got = 0;
    while got < head.len() {
        match stream.read(head.get_mut(got..).unwrap_or_default()) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => bail!("the backend ended in the middle of a frame"),
            Ok(bytes) => got += bytes,
            Err(error) if got == 0 && is_pause(&error) => return Ok(Some(Block::Nothing)),
            Err(error) if is_pause(&error) => {}
            // The backend is gone; what was written is whole.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error).context("cannot read from the backend"),
        }
    }
    let [k0, k1, k2, k3, l0, l1, l2, l3] = head;
    let (kind, length) =
        (u32::from_le_bytes([k0, k1, k2, k3]), u32::from_le_bytes([l0, l1, l2, l3]) as usize);
    if !(12..=LONGEST).contains(&length) || length % 4 != 0 {
        bail!("the backend sent a block of {length} bytes, which cannot be");
    }
    let mut bytes = vec![0; length];
    let (start, mut rest) = bytes.split_at_mut(8);
    start.copy_from_slice(&head);
    while !rest.is_empty() {
        match stream.read(rest) {
            Ok(0) => bail!("the backend ended in the middle of a frame"),
            Ok(read) => rest = std::mem::take(&mut rest).get_mut(read..).unwrap_or_default(),
            Err(error) if is_pause(&error) => {}
            Err(error) => return Err(error).context("cannot read from the backend"),
        }
    }
    Ok(Some(Block::Whole(kind, bytes)))
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

/// The number of frames dropped (option 5) in a statistics block.
fn missing(block: &[u8]) -> u64 {
    let mut options = block.get(20..).unwrap_or_default();
    while let Some(([c0, c1, l0, l1], rest)) = options.split_first_chunk::<4>() {
        let (code, length) = (u16::from_le_bytes([*c0, *c1]), usize::from(u16::from_le_bytes([*l0, *l1])));
        if let (5, Some(value)) = (code, rest.first_chunk::<8>()) {
            return u64::from_le_bytes(*value);
        }
        options = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = (12 + body.len() as u32).to_le_bytes();
        [&kind.to_le_bytes()[..], &length, body, &length].concat()
    }

    #[test]
    fn blocks_are_read_whole_and_others_refused() {
        let bytes = [block(PACKET, &[1; 8]), block(7, &[])].concat();
        let mut stream = bytes.as_slice();
        let mut kinds = Vec::new();
        while let Some(Block::Whole(kind, bytes)) = next(&mut stream).unwrap() {
            kinds.push((kind, bytes.len()));
        }
        assert_eq!(kinds, [(PACKET, 20), (7, 12)]);
        for wrong in [0_u32, 8, 13, 1 << 30] {
            let head = [PACKET.to_le_bytes(), wrong.to_le_bytes()].concat();
            assert!(next(&mut head.as_slice()).is_err(), "{wrong}");
        }
        assert!(next(&mut &bytes[..10]).is_err());
        assert!(next(&mut &bytes[..3]).is_err());
        assert!(next(&mut &[][..]).unwrap().is_none());
    }

    #[test]
    fn what_is_missing_is_found_in_the_statistics() {
        let option = |code: u16, value: u64| {
            [&code.to_le_bytes()[..], &8u16.to_le_bytes(), &value.to_le_bytes()].concat()
        };
        let body = [vec![0; 12], option(4, 9), option(5, 3), vec![0; 4]].concat();
        assert_eq!(missing(&block(STATISTICS, &body)), 3);
        assert_eq!(missing(&block(STATISTICS, &[0; 12])), 0);
        assert_eq!(missing(&[]), 0);
    }
}
