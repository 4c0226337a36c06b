//! `devices`, and `unlock` and `lock` of them.

use std::path::PathBuf;

use clap::Subcommand;
use mlskeyd_protocol::v1::{AcceptDevice, AcceptedDevice, LockDevice, Unlock, Unlocked};

use super::{Answer, Context, NOT_TRIED, or_none};
use crate::ctl::table::{printable, terminal_width};
use crate::ctl::{CtlError, confirm, devices, json, measurements, pin};

/// What is said where there is none.
pub(super) const NONE: &str = "no devices\n";

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum DevicesCommand {
    /// List devices (the default)
    List,
    /// Make the token, or the TPM, that is there the device's own, in the place of the
    /// one that its keys are on
    ///
    /// A device works with the token that it first worked with, by its serial number,
    /// and tries no PIN on another. Once another one is accepted, the keys of the one
    /// before are missing, and what waits there to be destroyed counts as destroyed
    /// with it. The one before can be accepted again; what counted as destroyed stays
    /// on it.
    ///
    /// With a TPM it is final: all keys that the device had so far are lost for good,
    /// even if the TPM before is accepted again.
    Accept {
        /// The device's name
        device: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Show what the machine has measured, to which keys of a TPM may be bound
    ///
    /// With --out also what the recovery key has to sign to approve that:
    /// `openssl dgst -sha256 -sign recovery-private.pem -out signature FILE`.
    Measurements {
        /// The device's name
        device: String,
        /// Where what is to be signed goes; it must not be there yet
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Approve what the machine has measured, with the recovery key's signature
    ///
    /// Keys of the device that were made with other measurements then work with these,
    /// too. That cannot be taken back: what ends it is another recovery key, and then
    /// new keys.
    Approve {
        /// The device's name
        device: String,
        /// The signature over what `devices measurements --out` wrote, in DER
        #[arg(long, value_name = "FILE")]
        signature: PathBuf,
    },
}

pub(super) fn run(command: Option<&DevicesCommand>, context: &Context) -> Result<Answer, CtlError> {
    let Context { client, call, .. } = context;
    let (json, text) = match command {
        None | Some(DevicesCommand::List) => {
            let devices = client.devices(call)?;
            let text = devices::text(&devices, terminal_width());
            (
                json::list(&devices, json::device),
                or_none(&devices, text, NONE),
            )
        }
        Some(DevicesCommand::Accept { device, yes }) => {
            let accepted = accept(context, device, *yes)?;
            (json::accepted(&accepted), accepted_text(&accepted))
        }
        Some(DevicesCommand::Measurements { device, out }) => {
            measurements::measurements(client, device, out.as_deref(), call)?
        }
        Some(DevicesCommand::Approve { device, signature }) => {
            measurements::approve(client, device, signature, call)?
        }
    };
    Ok(context.answer(json, text))
}

/// Unlocks a device with its PIN.
pub(super) fn unlock(device: &str, last_try: bool, context: &Context) -> Result<Answer, CtlError> {
    let request = Unlock {
        device: device.to_owned(),
        pin: pin::read(&printable(device))?,
        last_try,
    };
    let unlocked = context.client.unlock(request, &context.call)?;
    let answer = context.answer(json::unlocked(&unlocked), unlocked_text(&unlocked));
    let code = if unlocked.pin_tried { 0 } else { NOT_TRIED };
    Ok(Answer { code, ..answer })
}

/// Locks a device.
pub(super) fn lock(device: &str, context: &Context) -> Result<Answer, CtlError> {
    let request = LockDevice {
        device: device.to_owned(),
    };
    let locked = context.client.lock_device(request, &context.call)?;
    let text = format!("device {} is {}\n", printable(&locked.name), locked.state);
    Ok(context.answer(json::device(&locked), text))
}

fn accept(context: &Context, device: &str, yes: bool) -> Result<AcceptedDevice, CtlError> {
    let Context { client, call, .. } = context;
    if !yes {
        let devices = client.devices(call)?;
        let mut devices = devices.iter();
        let kind = devices.find(|one| one.name == device).map(|it| &*it.kind);
        confirm(&accept_question(device, kind.unwrap_or_default()))?;
    }
    let request = AcceptDevice {
        device: device.to_owned(),
    };
    Ok(client.accept_device(request, call)?)
}

fn accept_question(device: &str, kind: &str) -> String {
    let device = printable(device);
    let noun = noun(kind);
    let fate = match kind {
        "tpm2" => "lost for good, even if it is accepted again",
        _ => "missing",
    };
    format!(
        "The keys of the {noun} that device {device} had so far will be {fate}, and what waits there \
         to be destroyed will count as destroyed. Accept the {noun} that is there now?"
    )
}

/// What people call what is behind a device of this kind.
fn noun(kind: &str) -> &'static str {
    match kind {
        "tpm2" => "TPM",
        "yubikey" => "YubiKey",
        _ => "token",
    }
}

fn accepted_text(accepted: &AcceptedDevice) -> String {
    let device = &accepted.device;
    let before = accepted.before.as_ref().map_or_else(String::new, |before| {
        format!(", in the place of {}", printable(before))
    });
    format!(
        "the {} with serial number {} is the own one of device {}{before}\ndevice {} is {}\n",
        noun(&device.kind),
        printable(&accepted.serial),
        printable(&device.name),
        printable(&device.name),
        device.state,
    )
}

fn unlocked_text(unlocked: &Unlocked) -> String {
    let device = &unlocked.device;
    let (name, state) = (printable(&device.name), device.state);
    if unlocked.pin_tried {
        return format!("device {name} is {state}\n");
    }
    format!("device {name} is {state}: it was unlocked already, and the PIN was NOT tried\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_accepting_costs_is_said_before_it_is_done() {
        let of_token = accept_question("hsm", "pkcs11");
        assert!(of_token.contains("of the token that device hsm had so far will be missing,"));
        let of_tpm = accept_question("tpm", "tpm2");
        assert!(of_tpm.contains("will be lost for good, even if it is accepted again,"));
        assert!(of_tpm.ends_with("Accept the TPM that is there now?"));
    }
}
