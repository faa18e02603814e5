// clippy.toml allows these in #[test] functions, but not in what they call.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

//! The `strata` command as a person has it: the real binary, with examples/fake.rs in place of the processes it
//! starts. What needs a guest is in the workspace's tests/.

mod command_line;
mod control;
mod device;
mod launcher;
mod supervisor;
mod switch;
mod terminal;
mod upgrade;
