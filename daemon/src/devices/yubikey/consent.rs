//! A person's consent: a signature of the consent key, which the card makes only while
//! somebody touches it.

use sha2::{Digest, Sha256};

use super::YubiKeyDevice;
use super::algorithm::Curve;
use super::apdu::Status;
use super::error::CardError;
use super::piv;
use crate::devices::{Consent, DeviceError, SignatureScheme};

impl Consent for YubiKeyDevice {
    fn consent(&mut self, statement: &[u8]) -> Result<(), DeviceError> {
        self.unlocked()?;
        let not_set_up = |why: &str| DeviceError::NoConsentKey {
            reason: why.to_owned(),
        };
        let slot = self.config.consent_slot;
        let slot = slot.ok_or_else(|| not_set_up("no `consent_slot` is configured"))?;
        let consent = self.found.as_ref().and_then(|found| found.consent.clone());
        let consent = consent.ok_or_else(|| not_set_up("the card has not been looked at"))?;
        let key = consent.map_err(|why| not_set_up(&why))?;
        let hash = Sha256::digest(statement);
        let signature = self.at_card(|session| {
            session.with_pin(|card| match piv::sign(card, slot, Curve::P256, &hash) {
                // It has the PIN: so it is the touch that did not come.
                Err(CardError::Refused {
                    status: Status::SECURITY,
                    ..
                }) => Err(CardError::Other(DeviceError::NotTouched)),
                signed => signed,
            })
        })?;
        let public = key.to_sec1_bytes();
        let scheme = SignatureScheme::EcdsaP256Sha256;
        if crate::mls::verify(scheme, &public, statement, &signature) {
            return Ok(());
        }
        Err(DeviceError::Missing {
            what: format!("the consent key in slot {slot}"),
        })
    }
}
