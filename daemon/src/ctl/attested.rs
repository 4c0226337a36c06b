//! The device of evidence that is believed, as a verdict shows it.

use serde_json::{Value, json};

use crate::attest::Evidence;
use crate::attest::yubikey::YubiKeyEvidence;

/// The device that evidence came from.
#[derive(Clone, Copy)]
pub(super) struct Device<'a>(pub(super) &'a Evidence);

impl Device<'_> {
    /// What such a thing is called.
    pub(super) const fn noun(&self) -> &'static str {
        match self.0 {
            Evidence::Tpm2(_) => "TPM",
            Evidence::YubiKey(_) => "YubiKey",
        }
    }

    /// What names a TPM.
    pub(super) fn ek_certificate(&self) -> Option<String> {
        match self.0 {
            Evidence::Tpm2(evidence) => Some(hex::encode(evidence.keys.fingerprint())),
            Evidence::YubiKey(_) => None,
        }
    }

    /// What a YubiKey says of itself and of the key.
    pub(super) fn yubikey(&self) -> Option<Value> {
        match self.0 {
            Evidence::Tpm2(_) => None,
            Evidence::YubiKey(evidence) => yubikey_json(evidence),
        }
    }

    /// All of that, for people.
    pub(super) fn text(&self) -> String {
        match self.0 {
            Evidence::Tpm2(evidence) => format!(
                "TPM         {} (SHA-256 of its EK certificate)\n",
                hex::encode(evidence.keys.fingerprint()),
            ),
            Evidence::YubiKey(evidence) => yubikey_text(evidence).unwrap_or_default(),
        }
    }
}

/// Of evidence that is believed there is always something to read.
fn yubikey_json(evidence: &YubiKeyEvidence) -> Option<Value> {
    let said = evidence.certificates.attested().ok()?;
    Some(json!({
        "serial": said.serial,
        "firmware": said.firmware.to_string(),
        "form_factor": said.form_factor.map(|form| form.to_string()),
        "slot": format!("{:02x}", said.slot),
        "pin_policy": said.pin.name(),
        "touch_policy": said.touch.name(),
        "f9_certificate": hex::encode(evidence.certificates.fingerprint()),
    }))
}

fn yubikey_text(evidence: &YubiKeyEvidence) -> Option<String> {
    let said = evidence.certificates.attested().ok()?;
    let form = said.form_factor.map(|form| format!(", {form}"));
    Some(format!(
        "YubiKey     serial number {}, firmware {}{}\nslot        {:02x}: PIN {}, touch {}\nF9          {} (SHA-256 of its certificate)\n",
        said.serial,
        said.firmware,
        form.unwrap_or_default(),
        said.slot,
        said.pin.name(),
        said.touch.name(),
        hex::encode(evidence.certificates.fingerprint()),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attest::Envelope;

    #[test]
    fn a_verdict_shows_which_device_it_is() {
        let read = |document: &[u8]| Envelope::read(document).unwrap().evidence;
        let yubikey = read(include_bytes!(
            "../../tests/vectors/attestation/yubikey.evidence"
        ));
        let f9 = "75d967a89b5a763c4e9cffafca87f622d25a4c44e9e29729211ac1b9afd5fc47";
        let shown = Device(&yubikey);
        assert_eq!(shown.noun(), "YubiKey");
        assert_eq!(shown.ek_certificate(), None);
        let expected = json!({
            "serial": 12_345_678,
            "firmware": "5.7.4",
            "form_factor": "USB-A keychain",
            "slot": "9c",
            "pin_policy": "once",
            "touch_policy": "never",
            "f9_certificate": f9,
        });
        assert_eq!(shown.yubikey(), Some(expected));
        let text = "YubiKey     serial number 12345678, firmware 5.7.4, USB-A keychain\nslot        9c: PIN once, touch never\n";
        assert!(shown.text().starts_with(text), "{}", shown.text());
        assert!(shown.text().contains(f9));

        let tpm = read(include_bytes!(
            "../../tests/vectors/attestation/p256.evidence"
        ));
        let shown = Device(&tpm);
        assert_eq!((shown.noun(), shown.yubikey()), ("TPM", None));
        let ek = shown.ek_certificate().unwrap();
        assert!(shown.text().contains(&ek));
    }
}
