#![allow(unsafe_code)] // a signal handler and the byte it sets in the shared kvm_run page
//! Getting a vCPU thread out of the guest, at any moment, without a race.
//!
//! [`kick`] sends a signal. Its handler, on the vCPU's own thread, sets `immediate_exit` in that vCPU's
//! kvm_run page: a signal that comes inside KVM_RUN ends it, one that comes just before makes it return at once
//! (KVM api.rst, KVM_CAP_IMMEDIATE_EXIT). The run loop clears the byte again.

use std::cell::Cell;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::sync::Once;
use std::thread::JoinHandle;

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;

thread_local! {
    // Initialised in place and without a destructor, so that the handler may touch it (signal-safety(7)).
    static RUN: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_signal: libc::c_int) {
    let run = RUN.get();
    if !run.is_null() {
        // SAFETY: `enter` set it to a page that stays mapped until `Entered` is dropped on this very thread.
        unsafe { ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
    }
}

/// Takes the signal for this use, once per process. To be called before the first vCPU thread starts.
///
/// # Errors
/// The system refused.
pub fn install() -> std::io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one, without flags: KVM_RUN must not be restarted.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = on_kick as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler only writes one byte through a pointer of its own thread.
        if unsafe { libc::sigaction(libc::SIGRTMIN(), &raw const action, ptr::null_mut()) } != 0 {
            result = Err(std::io::Error::last_os_error());
        }
    });
    result
}

/// While it lives, kicks reach the vCPU it was made for. Stays on its thread.
#[derive(Debug)]
pub struct Entered {
    // Not Send: the pointer is this thread's.
    run: *mut kvm_run,
}

/// Says that this thread runs `vcpu`, which must outlive the result.
pub fn enter(vcpu: &mut VcpuFd) -> Entered {
    let run: *mut kvm_run = vcpu.get_kvm_run();
    RUN.set(run);
    Entered { run }
}

impl Entered {
    /// Takes back the request to exit. The caller looks at why it was kicked afterwards, never before.
    pub fn clear(&self) {
        // SAFETY: the page is mapped as long as the vCPU lives, which is longer than `self`.
        unsafe { ptr::addr_of_mut!((*self.run).immediate_exit).write_volatile(0) };
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        RUN.set(ptr::null_mut());
    }
}

/// Sends kicks to a thread.
pub fn kick<T>(thread: &JoinHandle<T>) {
    if !thread.is_finished() {
        // SAFETY: the handle is neither joined nor detached, so the thread's id is valid even after its end.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), libc::SIGRTMIN()) };
    }
}
