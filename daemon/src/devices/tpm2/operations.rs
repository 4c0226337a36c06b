//! What is done with keys of a TPM that is connected.

use mlskeyd_protocol::v1::SecretBytes;
use sha2::{Digest, Sha256, Sha384};
use tss_esapi::Error;

use super::algorithms::Making;
use super::approval::{self, Approval};
use super::blob::{self, Kept};
use super::connection::Connection;
use super::failure::{self, Verdict};
use super::files::Files;
use super::keys::{Curve, Guard, Usable, WrongTries};
use super::pins::PinAuth;
use super::policy::{Measured, Policy};
use super::{Binding, Open};
use crate::attest::{Claims, Evidence};
use crate::devices::private_key::{self, PrivateKey};
use crate::devices::{
    DeviceError, KeyBlob, Measurements, NewKey, PeerPublic, SharedSecret, SignatureScheme,
    StoredKey, check_public,
};

/// How often a command is given again that the TPM has not begun since the machine
/// measured something just then.
const MORE_TRIES: usize = 3;

/// What came of the use of a key.
enum Used<T> {
    /// What the TPM made with it.
    InTpm(T),
    /// The private key itself.
    Unsealed(PrivateKey),
}

/// A key as it is kept, and what it takes to use it.
pub(super) struct Behind {
    pub(super) kept: Kept,
    /// Its authorisation value: the one of its PIN, if it has one.
    pub(super) auth: PinAuth,
    pub(super) policy: Option<Policy>,
}

impl Open {
    /// What is behind a key, which has this authorisation value if it has a PIN.
    pub(super) fn behind(
        &self,
        key: &StoredKey,
        of_pin: Option<&PinAuth>,
    ) -> Result<Behind, DeviceError> {
        let secret = self.generations.secret(key.generation)?;
        let (kept, policy) = blob::read(secret, key)?;
        let auth = match of_pin {
            Some(auth) => auth.clone(),
            None => secret.of_key(key.id)?,
        };
        Ok(Behind { kept, auth, policy })
    }

    /// A key, loaded, and a session in which it may be used once.
    pub(super) fn usable(
        &mut self,
        key: &StoredKey,
        behind: &Behind,
    ) -> Result<Result<Usable, Error>, DeviceError> {
        let (Kept::InTpm(object) | Kept::Sealed(object)) = &behind.kept;
        let connection = &mut self.connection;
        let session = match &behind.policy {
            None => connection.session(),
            Some(policy) => connection.satisfy(policy, &mut self.approvals)?,
        };
        // The last one, so that nothing takes its room.
        let loaded = connection.load((key.generation, key.id), object, &behind.auth);
        Ok(loaded.map(|handle| Usable { handle, session }))
    }

    /// Does something with a key in the TPM, or takes one out that it seals. What the
    /// machine measures meanwhile stops that before it begins: then it is done again.
    fn with_key<T>(
        &mut self,
        (key, of_pin): (&StoredKey, Option<&PinAuth>),
        work: impl Fn(&mut Connection, Usable) -> tss_esapi::Result<T>,
    ) -> Result<Used<T>, DeviceError> {
        let behind = self.behind(key, of_pin)?;
        let mut more_tries = 0..MORE_TRIES;
        loop {
            let usable = self.usable(key, &behind)?;
            let connection = &mut self.connection;
            let done = usable.and_then(|usable| {
                Ok(match behind.kept {
                    Kept::InTpm(_) => Used::InTpm(work(connection, usable)?),
                    Kept::Sealed(_) => Used::Unsealed(connection.unseal(usable)?),
                })
            });
            match done {
                Err(error)
                    if failure::verdict(error) == Verdict::Measuring
                        && more_tries.next().is_some() => {}
                done => return done.map_err(|error| connection.describe(error)),
            }
        }
    }

    pub(super) fn sign(
        &mut self,
        key: (&StoredKey, Option<&PinAuth>),
        scheme: SignatureScheme,
        content: &[u8],
    ) -> Result<Vec<u8>, DeviceError> {
        let used = self.with_key(key, |connection, usable| match scheme {
            SignatureScheme::EcdsaP256Sha256 => {
                connection.sign(Curve::P256, usable, &Sha256::digest(content))
            }
            SignatureScheme::EcdsaP384Sha384 => {
                connection.sign(Curve::P384, usable, &Sha384::digest(content))
            }
            SignatureScheme::Ed25519 => Err(failure::misfit()),
        })?;
        let signed = match used {
            Used::InTpm(signed) => signed,
            Used::Unsealed(private) => return private_key::sign(scheme, &private, content),
        };
        let der = match scheme {
            SignatureScheme::EcdsaP384Sha384 => p384::ecdsa::Signature::from_slice(&signed)
                .map(|signature| signature.to_der().as_bytes().to_vec()),
            _ => p256::ecdsa::Signature::from_slice(&signed)
                .map(|signature| signature.to_der().as_bytes().to_vec()),
        };
        der.map_err(|_| failure::no_answer())
    }

    pub(super) fn agree(
        &mut self,
        key: &StoredKey,
        peer: &PeerPublic,
    ) -> Result<SharedSecret, DeviceError> {
        let point = peer.to_bytes();
        let used = self.with_key((key, None), |connection, usable| match peer {
            PeerPublic::P256(_) => connection.agree(Curve::P256, usable, &point),
            PeerPublic::P384(_) => connection.agree(Curve::P384, usable, &point),
            PeerPublic::X25519(_) => Err(failure::misfit()),
        })?;
        match used {
            Used::InTpm(shared) => SharedSecret::new(peer.kem(), shared),
            Used::Unsealed(private) => private_key::agree(&private, peer),
        }
    }

    pub(super) fn attest(
        &mut self,
        (key, of_pin): (&StoredKey, Option<&PinAuth>),
        claims: &Claims,
    ) -> Result<Evidence, DeviceError> {
        let behind = self.behind(key, of_pin)?;
        let Kept::InTpm(object) = behind.kept else {
            return Err(DeviceError::NotAttested {
                reason: "the TPM seals it, and does not use it itself".to_owned(),
            });
        };
        let (name, policy) = ((key.generation, key.id), behind.policy.as_ref());
        self.connection
            .attest(name, object, &behind.auth, policy, claims)
    }

    /// What the registers hold, and what approves that.
    pub(super) fn measurements(
        &mut self,
        (pcrs, recovery): Binding,
    ) -> Result<Measurements, DeviceError> {
        let registers = self.connection.values(pcrs)?;
        let measured = Measured::of(pcrs, &registers);
        let reference = self.connection.reference();
        let approval = self
            .approvals
            .find(&measured, &reference, &recovery.hash()?);
        Ok(Measurements {
            to_sign: approval::to_sign(&measured.policy(), &reference),
            registers,
            approved: approval.is_some(),
        })
    }

    pub(super) fn approve(
        &mut self,
        files: &Files,
        (pcrs, recovery): Binding,
        signature: &[u8],
    ) -> Result<Measurements, DeviceError> {
        let measured = self.connection.measure(pcrs)?;
        let reference = self.connection.reference();
        let approval = Approval::verify(&measured, &reference, recovery, signature)?;
        self.approvals.add(files, &mut self.connection, approval)?;
        self.measurements((pcrs, recovery))
    }

    /// The policy of a key that is made now.
    fn policy(&mut self, binding: Option<Binding>) -> Result<Option<Policy>, DeviceError> {
        let Some((pcrs, recovery)) = binding else {
            return Ok(None);
        };
        Ok(Some(Policy {
            measured: self.connection.measure(pcrs)?,
            recovery: recovery.hash()?,
        }))
    }

    /// Makes a key, with a PIN if there is one, and bound to what the machine has
    /// measured if it is to be bound.
    pub(super) fn generate(
        &mut self,
        request: &NewKey,
        pin: Option<&SecretBytes>,
        binding: Option<Binding>,
    ) -> Result<StoredKey, DeviceError> {
        let has_p384 = self.connection.has_p384();
        let making = Making::of(request.algorithm, request.tier, has_p384)?;
        let policy = self.policy(binding)?;
        let reference = self.connection.reference();
        let digest = policy.map(|policy| policy.digest(&reference));
        let secret = self.generations.secret(request.generation)?;
        let (auth, tries) = match pin {
            Some(pin) => (
                secret.of_key_with_pin(request.id, pin)?,
                WrongTries::Counted,
            ),
            None => (secret.of_key(request.id)?, WrongTries::Free),
        };
        let guard = Guard {
            auth: &auth,
            tries,
            policy: digest.as_ref(),
        };
        let (public, kept) = match making {
            Making::InTpm(curve, usage) => {
                let made = self.connection.create(curve, usage, guard);
                let (object, public) = made.map_err(|error| self.connection.describe(error))?;
                check_public(request.algorithm, &public)?;
                (public, Kept::InTpm(object))
            }
            Making::Sealed => {
                let (private, public) = private_key::generate(request.algorithm)?;
                let sealed = self.connection.seal(&private, guard);
                let object = sealed.map_err(|error| self.connection.describe(error))?;
                (public, Kept::Sealed(object))
            }
        };
        let mut key = StoredKey {
            id: request.id,
            algorithm: request.algorithm,
            tier: request.tier,
            generation: request.generation,
            pin: pin.is_some(),
            public,
            blob: KeyBlob::new(Vec::new()),
        };
        key.blob = blob::write(secret, &key, &kept, policy.as_ref())?;
        Ok(key)
    }
}
