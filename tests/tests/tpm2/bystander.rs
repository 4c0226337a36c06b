//! Another program that has the TPM, and encrypts nothing on the way to it.

use std::str::FromStr as _;

use mlskeyd::devices::tpm2::{Revealed, Tpm2Device};
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::{SessionType, tss};
use tss_esapi::handles::{KeyHandle, NvIndexTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::resource_handles::NvAuth;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, Digest, DigestList, EccParameter, EccPoint, HashcheckTicket, KeyedHashScheme,
    PcrSelectSize, PcrSelectionList, PcrSlot, Private, Public, PublicBuilder,
    PublicKeyedHashParameters, SensitiveData, SignatureScheme, SymmetricDefinition,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::traits::UnMarshall as _;
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;
use tss_esapi::{Context, Result};

/// It gives authorisation values as they are. Nobody else is connected.
pub struct Bystander {
    context: Context,
    parent: KeyHandle,
}

impl Bystander {
    /// One who reaches the TPM like this.
    pub fn over(tcti: &str) -> Self {
        let tcti = TctiNameConf::from_str(tcti).unwrap();
        let mut context = Context::new(tcti).unwrap();
        let parent = Tpm2Device::standard_parent(&mut context).unwrap();
        Self { context, parent }
    }

    /// Loads a key and does something with it.
    fn with<T>(
        &mut self,
        key: &Revealed,
        work: impl FnOnce(&mut Context, KeyHandle) -> Result<T>,
    ) -> Result<T> {
        let private = Private::try_from(key.private.as_slice()).unwrap();
        let public = Public::unmarshall(&key.public).unwrap();
        let policy = key.policy.as_ref().map(|policy| self.satisfy(policy));
        let parent = self.parent;
        let context = &mut self.context;
        let handle = context.execute_with_session(Some(AuthSession::Password), |context| {
            context.load(parent, private, public).unwrap()
        });
        let auth = Auth::try_from(key.auth.as_slice()).unwrap();
        context.tr_set_auth(handle.into(), auth).unwrap();
        let session = policy.map_or(AuthSession::Password, AuthSession::from);
        let done = context.execute_with_session(Some(session), |context| work(context, handle));
        context.flush_context(handle.into()).unwrap();
        if policy.is_some() {
            let session = SessionHandle::from(session);
            context.flush_context(session.into()).unwrap();
        }
        done
    }

    /// A session in which a key that is bound to measurements may be used, with its
    /// value as it is: a TPM takes that for the daemon's proof that it has the value.
    fn satisfy(&mut self, (registers, ways): &(Vec<u8>, [[u8; 32]; 3])) -> PolicySession {
        let session = self.context.execute_without_session(|context| {
            context.start_auth_session(
                None,
                None,
                None,
                SessionType::Policy,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
        });
        let session = PolicySession::try_from(session.unwrap().unwrap()).unwrap();
        let slots = registers
            .iter()
            .map(|number| PcrSlot::try_from(1_u32 << number));
        let slots: Vec<_> = slots.map(Result::unwrap).collect();
        let selection = PcrSelectionList::builder()
            .with_size_of_select(PcrSelectSize::ThreeOctets)
            .with_selection(HashingAlgorithm::Sha256, &slots)
            .build()
            .unwrap();
        let mut digests = DigestList::new();
        for way in ways {
            let way = Digest::try_from(way.as_slice()).unwrap();
            digests.add(way).unwrap();
        }
        self.context.execute_without_session(|context| {
            // Whatever they hold.
            let values = Digest::default();
            context.policy_pcr(session, values, selection).unwrap();
            context.policy_password(session).unwrap();
            context.policy_or(session, digests).unwrap();
        });
        session
    }
    pub fn sign(&mut self, key: &Revealed) -> Result<()> {
        let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
            tag: tss::TPM2_ST_HASHCHECK,
            hierarchy: tss::TPM2_RH_NULL,
            ..TPMT_TK_HASHCHECK::default()
        });
        let ticket = ticket.unwrap();
        let digest = Digest::try_from([1; 32].as_slice()).unwrap();
        let signed = self.with(key, |context, key| {
            context.sign(key, digest, SignatureScheme::Null, ticket)
        });
        signed.map(|_| ())
    }

    pub fn unseal(&mut self, key: &Revealed) -> Result<Vec<u8>> {
        let unsealed = self.with(key, |context, key| context.unseal(key.into()));
        unsealed.map(|data| data.to_vec())
    }

    /// The x-coordinate of ECDH with a point.
    pub fn agree(&mut self, key: &Revealed, (x, y): &(Vec<u8>, Vec<u8>)) -> Result<Vec<u8>> {
        let number = |bytes: &[u8]| EccParameter::try_from(bytes).unwrap();
        let point = EccPoint::new(number(x), number(y));
        let agreed = self.with(key, |context, key| context.ecdh_z_gen(key, point));
        agreed.map(|point| point.x().to_vec())
    }

    /// Has the TPM seal something, under this authorisation value.
    pub fn seal(&mut self, secret: &[u8], auth: &[u8]) {
        let attributes = ObjectAttributesBuilder::new()
            .with_fixed_tpm(true)
            .with_fixed_parent(true)
            .with_user_with_auth(true)
            .build();
        let template = PublicBuilder::new()
            .with_public_algorithm(PublicAlgorithm::KeyedHash)
            .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
            .with_object_attributes(attributes.unwrap())
            .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
            .with_keyed_hash_unique_identifier(Digest::default())
            .build();
        let (auth, secret) = (Auth::try_from(auth), SensitiveData::try_from(secret));
        let parent = self.parent;
        let made = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.create(
                    parent,
                    template.unwrap(),
                    Some(auth.unwrap()),
                    Some(secret.unwrap()),
                    None,
                    None,
                )
            });
        made.unwrap();
    }

    /// Reads an index of the TPM's permanent memory, of so many bytes.
    pub fn read(&mut self, index: u32, length: u16, auth: &[u8]) -> Vec<u8> {
        let index = TpmHandle::NvIndex(NvIndexTpmHandle::new(index).unwrap());
        let handle = self
            .context
            .execute_without_session(|context| context.tr_from_tpm_public(index));
        let handle = handle.unwrap();
        let auth = Auth::try_from(auth).unwrap();
        self.context.tr_set_auth(handle, auth).unwrap();
        let read = self
            .context
            .execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_read(NvAuth::NvIndex(handle.into()), handle.into(), length, 0)
            });
        read.unwrap().value().to_vec()
    }
}
