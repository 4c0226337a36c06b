//! What a TPM's answers mean: how to go on, and what to say.

use tss_esapi::constants::response_code::Tss2ResponseCode;
use tss_esapi::{Error, WrapperErrorKind};

use crate::devices::DeviceError;

/// Which part of the stack speaks (TSS 2.0 Overview, 3.2.1): bits 16 to 23.
const LAYER_SHIFT: u32 = 16;
const TPM_LAYER: u32 = 0;
/// A resource manager that answers in the place of the TPM.
const RESOURCE_MANAGER_TPM_LAYER: u32 = 11;
const LAST_LAYER: u32 = 12;

// Part 2 of the TPM 2.0 library, 6.6.
const INITIALIZE: u32 = 0x100;
const FAILURE: u32 = 0x101;
const PCR_CHANGED: u32 = 0x128;
const REBOOT: u32 = 0x130;
const NV_UNINITIALIZED: u32 = 0x14a;
const NV_SPACE: u32 = 0x14b;
const NV_DEFINED: u32 = 0x14c;
const CONTEXT_GAP: u32 = 0x901;
const OBJECT_MEMORY: u32 = 0x902;
const SESSION_MEMORY: u32 = 0x903;
const SESSION_HANDLES: u32 = 0x905;
const OBJECT_HANDLES: u32 = 0x906;
const REFERENCE_FIRST: u32 = 0x910;
const REFERENCE_LAST: u32 = 0x91e;
const NV_RATE: u32 = 0x920;
const LOCKOUT: u32 = 0x921;

/// Bit 7: the code also says of which handle, session or parameter it speaks.
const FORMAT_ONE: u32 = 0x80;
const FORMAT_ONE_ERROR: u32 = 0xbf;
/// Bit 6: of a parameter. Without it: of a session, or of a handle.
const OF_PARAMETER: u32 = 0x40;
const HANDLE: u32 = 0x8b;
const AUTH_FAIL: u32 = 0x8e;
const BAD_AUTH: u32 = 0xa2;

/// How to go on after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The way to the TPM is broken: it may have done what it was told.
    Lost,
    /// What was prepared in the TPM, or found there, is not there any more: it has
    /// done nothing.
    Stale,
    /// It has no room for one more object or session.
    NoRoom,
    /// The password or the authorisation value is wrong.
    WrongAuth,
    /// There is something under this name.
    Taken,
    /// It was made and never written.
    NeverWritten,
    /// What the machine has measured changed just now, so a policy has to be satisfied
    /// again.
    Measuring,
    /// Too many wrong passwords, of somebody's.
    LockedOut,
    /// Anything else.
    Other,
}

/// How to go on.
pub(super) fn verdict(error: Error) -> Verdict {
    let Some(code) = code(error) else {
        return Verdict::Other;
    };
    if !is_of_tpm(code) {
        return Verdict::Lost;
    }
    match of_tpm(code) {
        CONTEXT_GAP | REFERENCE_FIRST..=REFERENCE_LAST => Verdict::Stale,
        OBJECT_MEMORY | SESSION_MEMORY | SESSION_HANDLES | OBJECT_HANDLES => Verdict::NoRoom,
        NV_DEFINED => Verdict::Taken,
        NV_UNINITIALIZED => Verdict::NeverWritten,
        LOCKOUT => Verdict::LockedOut,
        PCR_CHANGED => Verdict::Measuring,
        tpm if tpm & FORMAT_ONE == 0 => Verdict::Other,
        tpm => match tpm & FORMAT_ONE_ERROR {
            HANDLE if tpm & OF_PARAMETER == 0 => Verdict::Stale,
            AUTH_FAIL | BAD_AUTH => Verdict::WrongAuth,
            _ => Verdict::Other,
        },
    }
}

/// Is it what the TPM was given that it does not like?
pub(super) fn is_of_parameter(error: Error) -> bool {
    code(error).is_some_and(|code| {
        let wanted = FORMAT_ONE | OF_PARAMETER;
        is_of_tpm(code) && of_tpm(code) & wanted == wanted
    })
}

/// Does the TPM say that it failed itself?
pub(super) fn is_own_fault(error: Error) -> bool {
    code(error).is_some_and(|code| is_of_tpm(code) && of_tpm(code) == FAILURE)
}

/// What is said of it.
pub(super) fn describe(error: Error) -> DeviceError {
    let reason = |text: &str| format!("{text} ({})", name(error));
    match verdict(error) {
        Verdict::Lost => {
            return DeviceError::Lost {
                reason: reason("the connection to the TPM is broken"),
            };
        }
        Verdict::Stale => {
            return DeviceError::Lost {
                reason: reason("what was loaded in the TPM, or found there, is gone"),
            };
        }
        Verdict::LockedOut => {
            return DeviceError::LockedOut {
                reason: reason("the TPM refuses for some time, after wrong passwords"),
            };
        }
        _ => {}
    }
    let failed = |text| DeviceError::Failed {
        reason: reason(text),
    };
    match code(error).map(of_tpm) {
        Some(FAILURE) => failed("the TPM found a fault in itself; restart the machine"),
        Some(INITIALIZE) => failed("nobody has started the TPM (TPM2_Startup)"),
        Some(REBOOT) => failed("the TPM wants the machine to be restarted"),
        Some(NV_RATE) => failed("the TPM slows writing down, to save its memory; wait"),
        Some(NV_SPACE) => DeviceError::Full {
            reason: reason("no room in the TPM's permanent memory; `tpm2_nvundefine` makes some"),
        },
        Some(OBJECT_MEMORY | SESSION_MEMORY | SESSION_HANDLES | OBJECT_HANDLES) => {
            failed("others hold all the room in the TPM; `tpm2_flushcontext` makes some")
        }
        _ if verdict(error) == Verdict::WrongAuth => {
            failed("the TPM refuses our authorisation value")
        }
        _ => failed("the TPM refuses"),
    }
}

/// The error of an answer that does not fit what was asked.
pub(super) const fn misfit() -> Error {
    Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)
}

/// What is said of such an answer.
pub(super) fn no_answer() -> DeviceError {
    DeviceError::Failed {
        reason: "the TPM gave an answer that is none".to_owned(),
    }
}

/// What to look for: TSS says little of most.
pub(super) fn name(error: Error) -> String {
    match code(error) {
        Some(code) => format!("code {code:#x}"),
        None => error.to_string(),
    }
}

/// The code as it was on the wire. The crate keeps it to itself, but makes its
/// own value of any code: so look for the one that makes this.
fn code(error: Error) -> Option<u32> {
    let Error::Tss2Error(response) = error else {
        return None;
    };
    (TPM_LAYER..=LAST_LAYER)
        .flat_map(|layer| (0..=0xfff_u32).map(move |low| (layer << LAYER_SHIFT) | low))
        .find(|&code| Tss2ResponseCode::from(code) == response)
        // A layer of which nobody knows.
        .or(Some(u32::MAX))
}

const fn is_of_tpm(code: u32) -> bool {
    matches!(code >> LAYER_SHIFT, TPM_LAYER | RESOURCE_MANAGER_TPM_LAYER)
}

const fn of_tpm(code: u32) -> u32 {
    code & 0xfff
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(code: u32) -> Error {
        Error::Tss2Error(code.into())
    }

    #[test]
    fn each_code_has_its_consequence() {
        for (number, expected) in [
            // The first one when swtpm ends, and all that follow.
            (0xa_000a, Verdict::Lost),
            (0x7_0007, Verdict::Lost),
            // Not TPM_RC_FAILURE: a general failure of the way there.
            (0xa_0001, Verdict::Lost),
            (0xff_0001, Verdict::Lost),
            (0x910, Verdict::Stale),
            (0x918, Verdict::Stale),
            (0xb_0918, Verdict::Stale),
            (0x98b, Verdict::Stale),
            (0x902, Verdict::NoRoom),
            (0xb_0902, Verdict::NoRoom),
            (0x903, Verdict::NoRoom),
            // A persistent object, or an index, that is gone.
            (0x18b, Verdict::Stale),
            (0x28b, Verdict::Stale),
            // To flush what is gone is no fault.
            (0x1cb, Verdict::Other),
            (0x98e, Verdict::WrongAuth),
            (0x9a2, Verdict::WrongAuth),
            (0x14c, Verdict::Taken),
            (0x14a, Verdict::NeverWritten),
            (0x921, Verdict::LockedOut),
            (0x128, Verdict::Measuring),
            (0x101, Verdict::Other),
            (0x1df, Verdict::Other),
        ] {
            assert_eq!(verdict(error(number)), expected, "{number:#x}");
        }
    }

    #[test]
    fn what_the_tpm_was_given_is_told_from_what_it_is() {
        // TPM_RC_INTEGRITY of parameter 1, also by a resource manager.
        assert!(is_of_parameter(error(0x1df)) && is_of_parameter(error(0xb_01df)));
        assert!(is_own_fault(error(0x101)) && is_own_fault(error(0xb_0101)));
        assert!(!is_own_fault(error(0x1df)) && !is_own_fault(error(0x7_0101)));
        // Of a session, of a handle, of nothing, of another layer.
        for other in [0x98e, 0x18b, 0x101, 0x7_01df] {
            assert!(!is_of_parameter(error(other)), "{other:#x}");
        }
    }

    #[test]
    fn each_state_is_named() {
        let text = |code| describe(error(code)).to_string();
        assert!(text(0x101).contains("restart the machine"));
        assert!(text(0x921).contains("locked out"));
        assert!(text(0x902).contains("tpm2_flushcontext"));
        assert!(text(0xa_000a).contains("0xa000a"));
        assert!(matches!(
            describe(error(0x921)),
            DeviceError::LockedOut { .. }
        ));
        assert!(matches!(describe(error(0x14b)), DeviceError::Full { .. }));
        assert!(matches!(
            describe(error(0x7_0007)),
            DeviceError::Lost { .. }
        ));
    }
}
