//! How a list says what it allows. Used by every list and compiled by `filter`.

use std::borrow::Cow;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

/// One allowed system call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) number: i64,
    pub(super) when: When,
    /// Who needs it; read by people and by a test that no reason is missing.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader of the list"))]
    pub(super) why: &'static str,
}

/// With which arguments.
#[derive(Debug, Clone)]
pub(super) enum When {
    /// Whatever they are.
    Always,
    /// If one of the checks holds.
    Any(Cow<'static, [Check]>),
}

/// A call that is answered with an error, without harm to the caller.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) call: i64,
    pub(super) errno: i32,
    pub(super) why: &'static str,
}

/// `argument & mask == value`; all arguments looked at are 32 bits wide to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Check {
    argument: u8,
    mask: u32,
    value: u32,
}

impl Check {
    pub(super) fn rule(self) -> Result<SeccompRule, BackendError> {
        let operation = match self.mask {
            u32::MAX => SeccompCmpOp::Eq,
            mask => SeccompCmpOp::MaskedEq(u64::from(mask)),
        };
        let condition =
            SeccompCondition::new(self.argument, SeccompCmpArgLen::Dword, operation, u64::from(self.value))?;
        SeccompRule::new(vec![condition])
    }
}

/// The argument is this.
pub(super) const fn is(argument: u8, value: u32) -> Check {
    Check { argument, mask: u32::MAX, value }
}

/// All these bits are set in the argument.
pub(super) const fn has(argument: u8, bits: u32) -> Check {
    Check { argument, mask: bits, value: bits }
}

/// None of these bits is set in the argument.
pub(super) const fn lacks(argument: u8, bits: u32) -> Check {
    Check { argument, mask: bits, value: 0 }
}

/// Of `mask`, exactly these bits are set in the argument.
pub(super) const fn masked(argument: u8, mask: u32, bits: u32) -> Check {
    Check { argument, mask, value: bits }
}

pub(super) const fn allow(number: i64, why: &'static str) -> Call {
    Call { number, when: When::Always, why }
}

pub(super) const fn only(number: i64, checks: &'static [Check], why: &'static str) -> Call {
    Call { number, when: When::Any(Cow::Borrowed(checks)), why }
}

pub(super) const fn refused(call: i64, errno: i32, why: &'static str) -> Refused {
    Refused { call, errno, why }
}
