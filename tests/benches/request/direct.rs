//! Direct use of the devices, in one process, with nothing between: what the daemon
//! is held against.

use std::path::Path;
use std::sync::Mutex;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::elliptic_curve::{EcKdf, Ecdh1DeriveParams};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use mlskeyd::devices::software::SoftwareDevice;
use mlskeyd::devices::{
    Algorithm, Device, GenerationId, Kem, KeyId, NewKey, PeerPublic, SharedSecret, SignatureScheme,
    Start, StoredKey, Tier,
};
use mlskeyd::hpke;
use mlskeyd::store_key::StoreKey;
use mlskeyd_protocol::v1::{Bytes, GeneratedHpke, Open};
use mlskeyd_tests::forge;
use mlskeyd_tests::rig::SoftHsm;
use mlskeyd_tests::suite::{SUITE_2, sealed};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::TOKEN;
use super::block::{Hand, What};
use super::direct_tpm::Tpm;

/// `1.2.840.10045.3.1.7`, secp256r1, in DER.
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];

/// As long as what the daemon is asked to sign.
pub const MESSAGE: [u8; 230] = [0xA5; 230];

/// A module with the token, and keys of this process's own on it. The module
/// reads the environment that the process was started with.
pub struct Token {
    pkcs11: Pkcs11,
    slot: Slot,
    signer: ObjectHandle,
    leaf: ObjectHandle,
    leaf_public: Vec<u8>,
    path_secret: Open,
    /// How the TPM is reached.
    tpm: String,
    /// Logged in, and so are all others as long as it lives. Nobody uses it: the
    /// lock is there since a session is not for several threads.
    _session: Mutex<Session>,
}

impl Token {
    /// Logs in, and makes the keys: one to sign on the token, one to open in
    /// the session, as the daemon's is after it was unwrapped.
    pub fn open(tpm: &str) -> Self {
        let pkcs11 = Pkcs11::new(SoftHsm::module()).expect("the module");
        let threads = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        pkcs11.initialize(threads).expect("it is initialised");
        let slots = pkcs11.get_slots_with_token().expect("slots");
        let is_ours = |slot: &Slot| {
            let token = pkcs11.get_token_info(*slot).expect("a token");
            token.label() == TOKEN
        };
        let slot = slots.into_iter().find(is_ours).expect("the token");
        let session = pkcs11.open_rw_session(slot).expect("a session");
        let pin = AuthPin::new(SoftHsm::PIN.into());
        session.login(UserType::User, Some(&pin)).expect("a login");
        let (_, signer) = make(&session, true, Attribute::Sign(true));
        let (public, leaf) = make(&session, false, Attribute::Derive(true));
        let leaf_public = point(&session, public);
        let info = forge::labelled("UpdatePathNode", &forge::group_context(SUITE_2, "g", 7));
        let key = GeneratedHpke {
            key: KeyId::from_bytes([0; 16]),
            public_key: Bytes(leaf_public.clone()),
        };
        Self {
            path_secret: sealed(SUITE_2, &key, &info, &[7; 32]),
            pkcs11,
            slot,
            signer,
            leaf,
            leaf_public,
            tpm: tpm.to_owned(),
            _session: Mutex::new(session),
        }
    }

    /// One more session, for one thread.
    pub fn hand(&self) -> Direct<'_> {
        Direct {
            token: self,
            session: self.pkcs11.open_ro_session(self.slot).expect("a session"),
            software: None,
            tpm: None,
        }
    }
}

fn make(session: &Session, on_token: bool, usage: Attribute) -> (ObjectHandle, ObjectHandle) {
    let public = [
        Attribute::Token(false),
        Attribute::Private(false),
        Attribute::EcParams(P256.to_vec()),
    ];
    let private = [
        Attribute::Token(on_token),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        usage,
    ];
    let pair = session.generate_key_pair(&Mechanism::EccKeyPairGen, &public, &private);
    pair.expect("a key pair")
}

/// Without the DER octet string around it.
fn point(session: &Session, public: ObjectHandle) -> Vec<u8> {
    let attributes = session.get_attributes(public, &[AttributeType::EcPoint]);
    let attributes = attributes.expect("the public key");
    let [Attribute::EcPoint(der)] = attributes.as_slice() else {
        panic!("{attributes:?}");
    };
    der[2..].to_vec()
}

/// One thread's direct use of the devices.
pub struct Direct<'a> {
    token: &'a Token,
    session: Session,
    software: Option<Software>,
    tpm: Option<Tpm>,
}

impl Hand for Direct<'_> {
    fn work(&mut self, what: What) {
        match what {
            What::Sign => self.sign(),
            What::Open => self.open(),
            What::SignInSoftware => self.software.get_or_insert_with(Software::new).sign(),
            What::SignInTpm => {
                let tpm = self.tpm.get_or_insert_with(|| Tpm::open(&self.token.tpm));
                tpm.sign();
            }
            What::Status => panic!("there is no direct one"),
        }
    }
}

impl Direct<'_> {
    fn sign(&self) {
        let digest = Sha256::digest(MESSAGE);
        let signed = self
            .session
            .sign(&Mechanism::Ecdsa, self.token.signer, &digest);
        assert_eq!(signed.expect("a signature").len(), 64);
    }

    fn open(&self) {
        let request = &self.token.path_secret;
        // It is a point on the curve, which SoftHSM does not say clearly.
        PeerPublic::parse(Kem::DhKemP256, &request.enc).expect("a point");
        let how = Ecdh1DeriveParams::new(EcKdf::null(), &request.enc);
        let template = [
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::ValueLen(32.into()),
            Attribute::Token(false),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
        ];
        let derived =
            self.session
                .derive_key(&Mechanism::Ecdh1Derive(how), self.token.leaf, &template);
        let derived = derived.expect("a secret");
        let value = self
            .session
            .get_attributes(derived, &[AttributeType::Value]);
        self.session.destroy_object(derived).expect("it goes");
        let value = value.expect("it can be read");
        let [Attribute::Value(value)] = value.as_slice() else {
            panic!("no value");
        };
        let secret = SharedSecret::new(Kem::DhKemP256, value.clone().into());
        let suite = hpke::Suite {
            kem: request.kem,
            aead: request.aead,
        };
        let sealed = hpke::Sealed {
            enc: &request.enc,
            receiver: &self.token.leaf_public,
            info: &request.info,
            aad: &request.aad,
            ciphertext: &request.ciphertext,
        };
        let opened = hpke::open(suite, &secret.expect("a secret"), &sealed);
        assert_eq!(opened.expect("it opens").as_slice(), [7; 32]);
    }
}

/// The software device, as the daemon uses it.
struct Software {
    device: SoftwareDevice,
    key: StoredKey,
    _directory: TempDir,
}

impl Software {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| -> std::path::PathBuf { Path::new(directory.path()).join(name) };
        let store_key = StoreKey::create_file(&path("key")).expect("a store key");
        let opened = SoftwareDevice::open(
            "software",
            &path("device"),
            &store_key,
            Start::CreateIfAbsent,
        );
        let mut device = opened.expect("a device");
        let generation = GenerationId::from_bytes([1; 16]);
        let generator = device.generator().expect("it generates");
        generator
            .create_generation(generation)
            .expect("a generation");
        let request = NewKey {
            id: KeyId::from_bytes([2; 16]),
            algorithm: Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
            tier: Tier::Software,
            generation,
        };
        let key = generator.generate(request).expect("a key");
        Self {
            device,
            key,
            _directory: directory,
        }
    }

    fn sign(&mut self) {
        let signer = self.device.signer().expect("it signs");
        signer.sign(&self.key, &MESSAGE).expect("a signature");
    }
}
