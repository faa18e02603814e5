//! systemd's interface to a machine, io.systemd.MachineInstance, in terms of our own: [`Control`].
//!
//! Called by the dispatch of [`crate::interface`]. machinectl finds the socket at machined, where the machine's unit
//! enters it. What the machine does not do now is answered with the interface's one word for it, NotSupported.

use serde_json::{Value, json};

use crate::types::{Control, MachineState, Refused};

/// The interface's name.
pub(crate) const INTERFACE: &str = "io.systemd.MachineInstance";

/// Its description in Varlink's language.
pub(crate) const DESCRIPTION: &str = include_str!("io.systemd.MachineInstance.varlink");

/// The error for what the machine does not do, or not now.
pub(crate) const NOT_SUPPORTED: &str = "io.systemd.MachineInstance.NotSupported";

/// Answers `method`, named without the interface; `None`: there is no such method.
pub(crate) fn answer(control: &dyn Control, method: &str) -> Option<Result<Value, Refused>> {
    let done = |result: Result<(), Refused>| result.map(|()| json!({}));
    Some(match method {
        "Terminate" => done(control.quit()),
        "PowerOff" => done(control.power_off()),
        "Reboot" => done(control.reboot()),
        "Pause" => done(control.pause()),
        "Resume" => done(control.resume()),
        "QueryStatus" => {
            let state = control.status().state;
            Ok(json!({ "running": state == MachineState::Running, "status": state.as_str() }))
        }
        "SubscribeEvents" => Err(Refused::new("events are not served")),
        _ => return None,
    })
}
