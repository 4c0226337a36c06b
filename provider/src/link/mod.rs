//! The way to the daemon: one call for each request, with the app's terms, and
//! with every failure told to the app.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mlskeyd_protocol::handle::Handle;
use mlskeyd_protocol::v1::{
    Aead, Bytes, CreateIdentity, GenerateHpke, IdentityInfo, Interaction, Kem, KeyId, KeyInfo,
    LeaveCustody, Open, Placement, Priority, SecretBytes, Sign, SignatureScheme,
};
use openmls_traits::types::HpkeCiphertext;

use crate::availability::Availability;
use crate::failure::{Operation, ProviderError, Watch};
use crate::suites;

mod away;
mod claims;

use self::away::Away;

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
use linux::Door;

#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(not(target_os = "linux"))]
use unsupported::Door;

/// Every request of an app, for the door of each platform to forward.
macro_rules! requests {
    ($forward:ident) => {
        $forward! {
            status() -> ServiceStatus;
            create_identity(request: CreateIdentity) -> IdentityInfo;
            identities() -> Vec<IdentityInfo>;
            prepare(identity: &str) -> ();
            sign(request: Sign) -> Bytes;
            generate_hpke(request: GenerateHpke) -> GeneratedHpke;
            open(request: Open) -> SecretBytes;
            look_up(public_keys: Vec<Bytes>) -> Vec<Option<KeyInfo>>;
            leave_custody(request: LeaveCustody) -> ();
            claim(request: Claim) -> Claimed;
            settle(request: Settle) -> Housekeeping;
            report(request: Report) -> Housekeeping;
            looked(request: Looked) -> Housekeeping;
        }
    };
}
use requests;

/// The doors that the app names. If it names none, the client finds them.
#[derive(Clone, Debug, Default)]
pub(crate) struct NamedDoors {
    pub(crate) socket: Option<PathBuf>,
    /// `system`, `session`, `none`, or an address.
    pub(crate) bus: Option<String>,
}

/// How a call may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub(crate) deadline: Duration,
    pub(crate) interaction: Interaction,
    pub(crate) priority: Priority,
}

impl Terms {
    /// For requests that need no person, and do not wait for a daemon that is
    /// away. A slow disk is allowed its time.
    const UNATTENDED: Self = Self {
        deadline: Duration::from_secs(5),
        interaction: Interaction::Never,
        priority: Priority::Interactive,
    };

    /// For what must not make an app wait.
    const AT_ONCE: Self = Self {
        deadline: Duration::from_millis(250),
        interaction: Interaction::Never,
        priority: Priority::Interactive,
    };
}

/// One provider's way to the daemon.
pub(crate) struct Link {
    door: Door,
    terms: Terms,
    placement: Placement,
    watch: Arc<Watch>,
    away: Away,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("terms", &self.terms)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(doors: NamedDoors, terms: Terms, placement: Placement, watch: Watch) -> Self {
        let watch = Arc::new(watch);
        Self {
            door: Door::new(doors, Arc::clone(&watch)),
            terms,
            placement,
            watch,
            away: Away::default(),
        }
    }

    pub(crate) fn watch(&self) -> &Watch {
        &self.watch
    }

    /// Cancels the calls that run now, on whatever thread.
    pub(crate) fn cancel(&self) {
        self.door.cancel();
    }

    pub(crate) fn availability(&self) -> Availability {
        match self.door.status(Terms::AT_ONCE) {
            Ok(status) => Availability::of_status(status),
            Err(error) => error.into(),
        }
    }

    pub(crate) fn sign(
        &self,
        key: KeyId,
        scheme: SignatureScheme,
        content: &[u8],
    ) -> Result<Vec<u8>, ProviderError> {
        let request = Sign {
            key,
            content: SecretBytes::new(content.to_vec()),
        };
        let signature = self
            .door
            .sign(self.terms, request)
            .and_then(|Bytes(signature)| {
                let fits = match scheme {
                    SignatureScheme::Ed25519 => signature.len() == 64,
                    // A DER SEQUENCE of two integers of at most 33 bytes.
                    SignatureScheme::EcdsaP256Sha256 => {
                        signature.first() == Some(&0x30) && (8..=72).contains(&signature.len())
                    }
                    // Of at most 49 bytes.
                    SignatureScheme::EcdsaP384Sha384 => {
                        signature.first() == Some(&0x30) && (8..=104).contains(&signature.len())
                    }
                };
                if fits {
                    Ok(signature)
                } else {
                    Err(ProviderError::Protocol(
                        "a signature of a wrong form".to_owned(),
                    ))
                }
            });
        self.told(Operation::Sign, Some(key), signature)
    }

    /// Makes a key pair; the handle of its private half, and its public half.
    pub(crate) fn generate_hpke(&self, kem: Kem) -> Result<(Handle, Vec<u8>), ProviderError> {
        let request = GenerateHpke {
            kem,
            placement: self.placement.clone(),
        };
        let pair = self
            .door
            .generate_hpke(self.terms, request)
            .and_then(|made| {
                if made.public_key.len() == suites::public_key_len(kem) {
                    Ok((Handle::new(made.key), made.public_key.0))
                } else {
                    Err(ProviderError::Protocol(
                        "a public key of a wrong length".to_owned(),
                    ))
                }
            });
        self.told(Operation::GenerateHpke, None, pair)
    }

    pub(crate) fn open(
        &self,
        key: KeyId,
        (kem, aead): (Kem, Aead),
        input: &HpkeCiphertext,
        info: &[u8],
        aad: &[u8],
    ) -> Result<Vec<u8>, ProviderError> {
        let request = Open {
            key,
            kem,
            aead,
            enc: Bytes::from(input.kem_output.as_slice()),
            info: Bytes::from(info),
            aad: Bytes::from(aad),
            ciphertext: Bytes::from(input.ciphertext.as_slice()),
        };
        let opened = self
            .door
            .open(self.terms, request)
            .map(SecretBytes::into_inner);
        self.told(Operation::Open, Some(key), opened)
    }

    pub(crate) fn create_identity(
        &self,
        name: &str,
        credential: mlskeyd_protocol::v1::Credential,
        scheme: SignatureScheme,
    ) -> Result<IdentityInfo, ProviderError> {
        let request = CreateIdentity {
            name: name.to_owned(),
            credential,
            scheme,
            placement: self.placement.clone(),
        };
        let identity = self.door.create_identity(self.terms, request);
        self.told(Operation::Request, None, identity)
    }

    pub(crate) fn identities(&self) -> Result<Vec<IdentityInfo>, ProviderError> {
        let identities = self.door.identities(self.terms);
        self.told(Operation::Request, None, identities)
    }

    pub(crate) fn identity(&self, name: &str) -> Result<IdentityInfo, ProviderError> {
        let mut identities = self.identities()?.into_iter();
        identities
            .find(|info| info.name == name)
            .ok_or_else(|| ProviderError::NoIdentity(name.to_owned()))
    }

    pub(crate) fn prepare(&self, identity: &str) -> Result<(), ProviderError> {
        let prepared = self.door.prepare(self.terms, identity);
        self.told(Operation::Request, None, prepared)
    }

    /// Which of these public keys are in custody? One answer for each key.
    pub(crate) fn look_up(
        &self,
        public_keys: Vec<Bytes>,
    ) -> Result<Vec<Option<KeyInfo>>, ProviderError> {
        let asked = public_keys.len();
        let found = self
            .door
            .look_up(self.terms, public_keys)
            .and_then(|found| {
                if found.len() == asked {
                    Ok(found)
                } else {
                    Err(ProviderError::Protocol(
                        "not one answer for each key".to_owned(),
                    ))
                }
            });
        self.told(Operation::Request, None, found)
    }

    pub(crate) fn leave_custody(&self, request: LeaveCustody) -> Result<(), ProviderError> {
        let permitted = self.door.leave_custody(self.terms, request);
        self.told(Operation::Request, None, permitted)
    }

    /// Tells the app of a failure, remembers whether the daemon answers, and
    /// hands the result on.
    fn told<T>(
        &self,
        operation: Operation,
        key: Option<KeyId>,
        result: Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        self.away.note(operation, result.as_ref().err());
        result.inspect_err(|error| self.watch.failed(operation, key, error.clone()))
    }
}
