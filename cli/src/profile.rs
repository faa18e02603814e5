//! What exits are assumed to cost on this host, and what follows from it.
//!
//! Called by `run`, which writes what was found into the machine's folder, and by `ps` and `status`, which show it.

use strata_config::Profile;

use crate::run_dir::Running;

/// How long backends look at their rings before they sleep where exits are dear, in microseconds. A doorbell and a wake
/// cost ten to twenty times more there (about 50,000 cycles for the doorbell alone), so a longer look pays; a backend
/// that finds nothing looks less, down to not at all (`virtio::poller`). Elsewhere the backends' own default holds.
const NESTED_POLL: u16 = 200;

/// `auto` as what it is on this host: nested where a hypervisor is below.
pub(crate) fn resolve(profile: Profile) -> Profile {
    // CPUID 1 ECX.31: a hypervisor is there. Asked of the processor, as `check` does.
    let hypervisor = core::arch::x86_64::__cpuid(1).ecx & 1 << 31 != 0;
    match (profile, hypervisor) {
        (Profile::Auto, true) => Profile::Nested,
        (Profile::Auto, false) => Profile::Bare,
        (given, _) => given,
    }
}

/// Arguments for a backend whose polling the machine file does not set.
pub(crate) fn backend_words(profile: Profile, args: &[String]) -> Vec<String> {
    let polls = args.iter().any(|arg| arg == "--poll" || arg.starts_with("--poll="));
    match profile {
        Profile::Nested if !polls => vec!["--poll".to_owned(), NESTED_POLL.to_string()],
        _ => Vec::new(),
    }
}

/// The profile of a running machine, where its folder tells.
pub(crate) fn of_running(running: &Running) -> Option<&'static str> {
    running.machine().ok().map(|machine| machine.profile.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_not_looked_up() {
        assert_eq!(resolve(Profile::Nested), Profile::Nested);
        assert_eq!(resolve(Profile::Bare), Profile::Bare);
        assert_ne!(resolve(Profile::Auto), Profile::Auto);
    }

    #[test]
    fn a_machines_own_polling_is_left_alone() {
        let words = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
            backend_words(Profile::Nested, &args)
        };
        assert_eq!(words(&["--tap", "t"]), ["--poll", "200"]);
        assert!(words(&["--poll", "0"]).is_empty() && words(&["--poll=7"]).is_empty());
        assert!(backend_words(Profile::Bare, &[]).is_empty());
    }
}
