//! What `/dev/kvm` of this host is worth.
//!
//! Some hosts have a `/dev/kvm` without hardware virtualization behind it (no `vmx` or `svm` in CPUID): the ioctls
//! answer and tiny real-mode guests run, an unmodified Linux does not. Tests must go to the rig there.

use std::fmt;
use std::fs;

/// What is behind `/dev/kvm`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// Guests run: the flag CPUID shows is named.
    Hardware(&'static str),
    /// The device answers, the processor has neither `vmx` nor `svm`.
    NoHardware,
    /// The device is there, we may not use it or it refuses; why.
    Unusable(String),
    /// There is no `/dev/kvm`.
    Absent,
}

impl Kvm {
    /// Looks at CPUID and makes an empty VM.
    pub fn probe() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        if !std::path::Path::new("/dev/kvm").exists() {
            return Self::Absent;
        }
        let made = kvm_ioctls::Kvm::new().and_then(|kvm| kvm.create_vm());
        match (made, processor_flag(&cpuinfo)) {
            (Err(why), _) => Self::Unusable(std::io::Error::from_raw_os_error(why.errno()).to_string()),
            (Ok(_), Some(flag)) => Self::Hardware(flag),
            (Ok(_), None) => Self::NoHardware,
        }
    }

    /// True if a guest may halt without an exit here (KVM_CAP_X86_DISABLE_EXITS is 143, HLT bit 1 of its answer).
    pub fn halts_can_stay() -> bool {
        kvm_ioctls::Kvm::new().is_ok_and(|kvm| kvm.check_extension_raw(143) & 2 != 0)
    }

    /// True if an unmodified guest runs on this host as it is.
    pub fn runs_guests(&self) -> bool {
        matches!(self, Self::Hardware(_))
    }
}

fn processor_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|wanted| flags.split_whitespace().any(|flag| flag == *wanted))
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(flag) => write!(f, "/dev/kvm has hardware behind it ({flag})"),
            Self::NoHardware => {
                write!(f, "/dev/kvm has no hardware behind it (neither vmx nor svm in CPUID)")
            }
            Self::Unusable(why) => write!(f, "/dev/kvm cannot be used ({why})"),
            Self::Absent => write!(f, "there is no /dev/kvm"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::processor_flag;

    #[test]
    fn the_flag_is_a_whole_word_of_the_flags_line() {
        assert_eq!(processor_flag("flags\t\t: fpu vmx sse"), Some("vmx"));
        assert_eq!(processor_flag("flags\t\t: fpu svm"), Some("svm"));
        assert_eq!(processor_flag("model\t: svm\nflags\t\t: fpu svm_lock vmxfoo"), None);
        assert_eq!(processor_flag(""), None);
    }
}
