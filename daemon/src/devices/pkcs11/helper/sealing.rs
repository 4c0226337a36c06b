//! The daemon's own keys, encrypted by a key of the token: for curves that it
//! does not know.

use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use mlskeyd_protocol::v1::SecretBytes;

use super::super::wire::{Sealed, TokenError};
use super::handles::Of;
use super::make::{gives_away, random_iv};
use super::template::{self, Place};
use super::token::{TokenSession, of_module};

impl TokenSession {
    /// Encrypts a secret under its generation.
    pub(super) fn seal(&self, generation: [u8; 16], secret: &[u8]) -> Result<Sealed, TokenError> {
        self.with_fresh(&[Of::Anchor(generation), Of::Sealing(generation)], || {
            self.anchor(generation)?;
            let key = self.sealing_key(generation)?;
            let iv = random_iv()?;
            let bytes = self.encrypt(key, iv, secret)?;
            Ok(Sealed { iv, bytes })
        })
    }

    /// Decrypts it.
    pub(super) fn unseal(
        &self,
        generation: [u8; 16],
        sealed: &Sealed,
    ) -> Result<SecretBytes, TokenError> {
        self.with_fresh(&[Of::Sealing(generation)], || {
            let key = self.object(Of::Sealing(generation), generation)?;
            let key = key.ok_or_else(|| self.not_found())?;
            self.decrypt(key, sealed)
        })
    }

    /// The generation's key that seals, made for the first secret.
    fn sealing_key(&self, generation: [u8; 16]) -> Result<ObjectHandle, TokenError> {
        let _turn = self.token.turn_to_change();
        if let Some(made) = self.object(Of::Sealing(generation), generation)? {
            return Ok(made);
        }
        self.check_present()?;
        let made = self.make_sealing_key(generation, Place::Token)?;
        self.still_wanted(generation, &[made])?;
        let mut handles = self.token.handles();
        handles.put_object(Of::Sealing(generation), generation, made);
        Ok(made)
    }

    pub(super) fn make_sealing_key(
        &self,
        generation: [u8; 16],
        place: Place,
    ) -> Result<ObjectHandle, TokenError> {
        let template = template::sealing_key(generation, place);
        let made = self.session.generate_key(&Mechanism::AesKeyGen, &template);
        let made = made.map_err(of_module)?;
        if self.is_kept(made)? {
            return Ok(made);
        }
        self.destroy(made)?;
        Err(gives_away())
    }

    pub(super) fn encrypt(
        &self,
        key: ObjectHandle,
        iv: [u8; 16],
        secret: &[u8],
    ) -> Result<Vec<u8>, TokenError> {
        let encrypted = self.session.encrypt(&Mechanism::AesCbcPad(iv), key, secret);
        encrypted.map_err(of_module)
    }

    pub(super) fn decrypt(
        &self,
        key: ObjectHandle,
        sealed: &Sealed,
    ) -> Result<SecretBytes, TokenError> {
        let mechanism = Mechanism::AesCbcPad(sealed.iv);
        let decrypted = self.session.decrypt(&mechanism, key, &sealed.bytes);
        decrypted.map(SecretBytes::new).map_err(of_module)
    }
}
