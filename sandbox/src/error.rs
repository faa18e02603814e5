//! What keeps a process from entering its sandbox.

use std::io;
use std::path::PathBuf;

/// Why the sandbox cannot be entered. The process that gets one must not serve a guest.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is more than one thread.
    #[error(
        "the sandbox must be entered by a process with one thread, this one has {0}: start threads afterwards"
    )]
    Threads(usize),

    /// The kernel refuses user namespaces.
    #[error(
        "no user namespace can be made ({hint}); allow it, or run without the sandbox (--no-sandbox), which leaves \
         the host open to whatever a guest makes of a mistake in this program"
    )]
    NoUserNamespace {
        /// The setting that most likely forbids it, with its value.
        hint: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// [`crate::Namespaces::Given`] was asked for, and they are not.
    #[error("--namespaces given is for a service manager that has made a sandbox, and none is there: {0}")]
    NotGiven(&'static str),

    /// A system call on the way failed.
    #[error("cannot {doing}")]
    System {
        /// What was tried.
        doing: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },

    /// A path of [`crate::Spec::binds`] is not of the form asked for.
    #[error(
        "{path:?} cannot be shown in the sandbox: {why}; give an absolute path of a directory or a socket"
    )]
    BadBind {
        /// The path given.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },

    /// A path of [`crate::Spec::binds`] cannot be shown.
    #[error("{path:?} cannot be shown in the sandbox")]
    Bind {
        /// The path given.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },

    /// A path of [`crate::Spec::binds`] can be shown but not used by the account of the sandbox.
    #[error(
        "{path:?} is of no use to uid {uid} in the sandbox: a directory must be searchable by it (chmod 0711, below \
         a directory that is private), a socket writable"
    )]
    Unreachable {
        /// The path given.
        path: PathBuf,
        /// Whom the sandbox runs as.
        uid: u32,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The root of the mount tree is the initramfs, which cannot be left.
    #[error(
        "the root file system is the initramfs, which pivot_root cannot leave: start from a real root (switch_root), \
         or run without the sandbox (--no-sandbox)"
    )]
    InitramfsRoot(#[source] io::Error),

    /// Landlock refused rules that the running kernel says it supports.
    #[error("cannot enter Landlock")]
    Landlock(#[source] landlock::RulesetError),

    /// The filter could not be made into a program for the kernel.
    #[error("cannot compile the system call filter")]
    Compile(#[source] seccompiler::BackendError),

    /// The kernel did not take the filter.
    #[error("cannot enter the system call filter")]
    Seccomp(#[source] seccompiler::Error),
}

impl SandboxError {
    pub(crate) fn system(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { doing, source }
    }

    pub(crate) fn errno(doing: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::System { doing, source: errno.into() }
    }
}
