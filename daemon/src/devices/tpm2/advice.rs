//! What can be done about a TPM that does not do what it was asked for.

use crate::devices::DeviceError;

/// What the caller, or whoever looks after the TPM, can do next.
pub(super) fn of(error: &DeviceError) -> &'static str {
    match error {
        DeviceError::Absent { .. } => {
            "the daemon looks for the TPM again by itself: see that the firmware has it switched on, \
             then repeat the request"
        }
        DeviceError::Failed { .. } => {
            "do what it says, then repeat the request; if it fails again, see `mlskeyctl devices` and \
             the daemon's log"
        }
        DeviceError::Lost { .. } => {
            "repeat the request; if it is lost again, see the kernel's log, and that of the TPM's \
             resource manager"
        }
        DeviceError::Missing { .. } => {
            "nothing was deleted; if it does not come back, the keys that hang under it are lost for \
             good: `mlskeyctl devices accept` the TPM that is there, and give identities new keys with \
             `mlskeyctl identities rotate`"
        }
        DeviceError::Full { .. } => "make room as it says, or use another device",
        DeviceError::GenerationGone(_) => {
            "if an older copy of `devices/NAME` was put back, a newer one brings it back; else the key is \
             lost, as are all keys from before another TPM was accepted: a new one is needed"
        }
        other => other.advice(),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use tss_esapi::Error;

    use super::*;
    use crate::devices::GenerationId;
    use crate::devices::tpm2::{approval, connection, failure, parent};

    #[test]
    fn all_that_is_said_of_a_tpm_fits_a_tpm() {
        let code = |code: u32| failure::describe(Error::Tss2Error(code.into()));
        let device = |kind: io::ErrorKind| {
            connection::no_device(Path::new("/dev/tpmrm0"), &io::Error::from(kind))
        };
        let missing = |what: &str| DeviceError::Missing {
            what: what.to_owned(),
        };
        for (error, expected) in [
            (
                device(io::ErrorKind::NotFound),
                "the device is not there: there is no /dev/tpmrm0; the daemon looks for the TPM \
                 again by itself: see that the firmware has it switched on, then repeat the request",
            ),
            (
                device(io::ErrorKind::PermissionDenied),
                "the device is not there: the daemon's user may not open /dev/tpmrm0: add it to the \
                 group that may, often with `usermod -aG tss USER`, and restart the daemon; the \
                 daemon looks for the TPM again by itself: see that the firmware has it switched on, \
                 then repeat the request",
            ),
            (
                missing("the storage key"),
                "the storage key is missing on the device; nothing was deleted; if it does not come \
                 back, the keys that hang under it are lost for good: `mlskeyctl devices accept` the \
                 TPM that is there, and give identities new keys with `mlskeyctl identities rotate`",
            ),
            (
                code(0x14b),
                "the device takes no more keys: no room in the TPM's permanent memory; \
                 `tpm2_nvundefine` makes some (code 0x14b); make room as it says, or use another device",
            ),
            (
                code(0x101),
                "the device failed: the TPM found a fault in itself; restart the machine (code 0x101); \
                 do what it says, then repeat the request; if it fails again, see `mlskeyctl devices` \
                 and the daemon's log",
            ),
            (
                parent::owner_password(),
                "the device failed: the TPM's owner hierarchy has a password, which mlskeyd does not \
                 take; remove it with `tpm2_changeauth -c owner -p PASSWORD`; do what it says, then \
                 repeat the request; if it fails again, see `mlskeyctl devices` and the daemon's log",
            ),
            (
                code(0xa_000a),
                "the device was lost while it was asked: the connection to the TPM is broken (code \
                 0xa000a); repeat the request; if it is lost again, see the kernel's log, and that of \
                 the TPM's resource manager",
            ),
            (
                DeviceError::LockedOut {
                    reason: "for 1000 s".to_owned(),
                },
                "the device is locked out: for 1000 s; repeat the request when that is over",
            ),
            (
                approval::not_set_up(),
                "the measurements are not approved: the configuration binds the device's keys to no \
                 measurements; set `pcrs` and `recovery_key` for the device, and restart the daemon",
            ),
            (
                DeviceError::NotAttested {
                    reason: "its endorsement hierarchy has a password".to_owned(),
                },
                "the device cannot show that the key is in it: its endorsement hierarchy has a \
                 password; put that right, or use another device",
            ),
            (
                DeviceError::GenerationGone(GenerationId::from_bytes([1; 16])),
                "generation 01010101010101010101010101010101 does not exist, and so none of its keys; \
                 if an older copy of `devices/NAME` was put back, a newer one brings it back; else the \
                 key is lost, as are all keys from before another TPM was accepted: a new one is needed",
            ),
        ] {
            assert_eq!(format!("{error}; {}", of(&error)), expected);
        }
    }
}
