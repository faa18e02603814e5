//! Loads a guest puts on its own disk and NIC, so that the exits they cost can be counted from outside.
//!
//! Runs inside a test guest, as a program of its initramfs; `tests/harness/load.rs` types its command lines. When all
//! is set up it prints `guest: ready` and waits for a line on its standard input, so that starting a program is
//! not counted; then it does a given number of operations, prints `guest: did OPERATIONS NANOSECONDS` and ends.
//! Nothing is printed in between, since a line on a console is an exit or several.
//!
//! ```text
//!   guest-load disk DEVICE DEPTH COUNT        4 KiB random reads, O_DIRECT, by io_submit(2), DEPTH of them in flight
//!   guest-load polled DEVICE DEPTH COUNT      the same by io_uring(7) with IOPOLL, for `virtio_blk.poll_queues`
//!   guest-load udp-send ADDRESS COUNT         datagrams of 1,400 bytes
//!   guest-load udp-receive ADDRESS COUNT      says hello, then takes that many
//!   guest-load tcp-send ADDRESS MIB           a stream, until all of it is acknowledged
//!   guest-load tcp-receive ADDRESS MIB        a stream the other way
//!   guest-load request ADDRESS COUNT          one byte there, one byte back, again and again
//! ```

mod aio;
mod disk;
mod net;
mod uring;

use std::io::BufRead;
use std::time::Instant;

use anyhow::{Context, bail};

fn main() -> anyhow::Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let mut start = Instant::now();
    let go = || {
        println!("guest: ready");
        std::io::stdin().lock().read_line(&mut String::new()).context("nobody says go")?;
        start = Instant::now();
        Ok(())
    };
    let operations = match words.as_slice() {
        ["disk", device, depth, count] => {
            disk::random_reads(device, number(depth)?, number(count)?, aio::start, go)?
        }
        ["polled", device, depth, count] => {
            disk::random_reads(device, number(depth)?, number(count)?, uring::start, go)?
        }
        ["udp-send", address, count] => net::udp_send(address, number(count)?, go)?,
        ["udp-receive", address, count] => net::udp_receive(address, number(count)?, go)?,
        ["tcp-send", address, mib] => net::tcp_send(address, number(mib)?, go)?,
        ["tcp-receive", address, mib] => net::tcp_receive(address, number(mib)?, go)?,
        ["request", address, count] => net::requests(address, number(count)?, go)?,
        _ => bail!("no such load: {}; the source's first lines list them", words.join(" ")),
    };
    println!("guest: did {operations} {}", start.elapsed().as_nanos());
    Ok(())
}

fn number(word: &str) -> anyhow::Result<u64> {
    word.parse().with_context(|| format!("{word} is no number"))
}
