//! A TPM in a test's hands: it says whatever the test wants it to, which a real one does not.

use mlskeyd_protocol::v1::{Algorithm, SignatureScheme, Tier};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rand_core::OsRng;
use sha2::{Digest, Sha256};

use super::authority::{Authority, Order, spki};
use crate::attest::tpm::{Keys, Tpm2Evidence, attribute, endorsement};
use crate::attest::{Claims, Envelope, Evidence, HexBytes};

pub(super) const NONCE: [u8; 32] = [0x42; 32];

/// The attributes of an attestation key.
pub(super) const AK: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::USER_WITH_AUTH
    | attribute::NO_DA
    | attribute::RESTRICTED
    | attribute::SIGN;

/// The attributes of a signature key in custody.
pub(super) const KEY: u32 = attribute::FIXED_TPM
    | attribute::FIXED_PARENT
    | attribute::SENSITIVE_DATA_ORIGIN
    | attribute::USER_WITH_AUTH
    | attribute::NO_DA
    | attribute::SIGN;

/// The keys of one TPM.
pub(super) struct Chip {
    pub(super) ek: p256::SecretKey,
    pub(super) ek_certificate: Vec<u8>,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) ak: SigningKey,
    pub(super) key: SigningKey,
}

impl Chip {
    /// One whose endorsement key this authority certified.
    pub(super) fn of(authority: &Authority) -> Self {
        let ek = p256::SecretKey::random(&mut OsRng);
        let certificate = authority.issue(&Order::ek(spki(&ek.public_key())));
        Self {
            ek,
            ek_certificate: certificate,
            chain: Vec::new(),
            ak: SigningKey::random(&mut OsRng),
            key: SigningKey::random(&mut OsRng),
        }
    }

    pub(super) fn ek_public(&self) -> Area {
        Area {
            attributes: endorsement::ATTRIBUTES,
            policy: endorsement::POLICY.to_vec(),
            // AES 128 CFB; no scheme.
            algorithms: vec![0, 6, 0, 128, 0, 0x43, 0, 0x10],
            point: point(&self.ek.public_key()),
        }
    }

    /// What this TPM, or who pretends to be it, says of its key.
    pub(super) fn speech(&self) -> Speech {
        Speech {
            claims: Claims {
                uid: 1000,
                app: "default".to_owned(),
                identity: "alice@bank.example".to_owned(),
                device: "tpm".to_owned(),
                key: [7; 16],
                algorithm: Algorithm::Signature(SignatureScheme::EcdsaP256Sha256),
                tier: Tier::Hardware,
                public_key: point(&self.key.verifying_key().into()),
                nonce: NONCE.to_vec(),
            },
            ek_certificate: self.ek_certificate.clone(),
            chain: self.chain.clone(),
            ek: self.ek_public(),
            ak: Area {
                attributes: AK,
                policy: Vec::new(),
                // No symmetric algorithm; ECDSA with SHA-256.
                algorithms: vec![0, 0x10, 0, 0x18, 0, 0x0b],
                point: point(&self.ak.verifying_key().into()),
            },
            key: Area {
                attributes: KEY,
                policy: Vec::new(),
                algorithms: vec![0, 0x10, 0, 0x10],
                point: point(&self.key.verifying_key().into()),
            },
            magic: 0xff54_4347,
            kind: 0x8017,
            data: None,
            name: None,
            signer: self.ak.clone(),
        }
    }

    /// The secret in a credential, as `TPM2_ActivateCredential` takes it out with the key of this name.
    pub(super) fn activate(&self, name: &[u8], object: &[u8], seed: &[u8]) -> Option<[u8; 32]> {
        use aes::cipher::{AsyncStreamCipher, KeyIvInit};

        let x = &seed[2..34];
        let peer = [&[4], x, &seed[36..68]].concat();
        let peer = p256::PublicKey::from_sec1_bytes(&peer).unwrap();
        let shared = p256::ecdh::diffie_hellman(self.ek.to_nonzero_scalar(), peer.as_affine());
        let mine = self.ek.public_key().to_encoded_point(false);
        let mut hash = Sha256::new();
        hash.update([0, 0, 0, 1]);
        hash.update(shared.raw_secret_bytes());
        hash.update(b"IDENTITY\0");
        hash.update(x);
        hash.update(mine.x().unwrap());
        let seed: [u8; 32] = hash.finalize().into();
        let derive = |label: &[u8], context: &[u8], bits: u32| {
            hmac(
                &seed,
                &[&[0, 0, 0, 1], label, b"\0", context, &bits.to_be_bytes()],
            )
        };
        let (mac, encrypted) = (&object[2..34], &object[34..]);
        let expected = hmac(&derive(b"INTEGRITY", &[], 256), &[encrypted, name]);
        if mac != expected {
            return None;
        }
        let key = derive(b"STORAGE", name, 128);
        let mut secret = encrypted.to_vec();
        let cipher = cfb_mode::Decryptor::<aes::Aes128>::new(key[..16].into(), &[0; 16].into());
        cipher.decrypt(&mut secret);
        secret[2..].try_into().ok()
    }
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    use hmac::Mac;
    let mut mac = hmac::Hmac::<Sha256>::new_from_slice(key).unwrap();
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

pub(super) fn point(key: &p256::PublicKey) -> Vec<u8> {
    key.to_encoded_point(false).as_bytes().to_vec()
}

/// A public area on P-256.
#[derive(Clone)]
pub(super) struct Area {
    pub(super) attributes: u32,
    pub(super) policy: Vec<u8>,
    /// The symmetric algorithm and the scheme.
    pub(super) algorithms: Vec<u8>,
    pub(super) point: Vec<u8>,
}

impl Area {
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0, 0x23, 0, 0x0b];
        bytes.extend(self.attributes.to_be_bytes());
        bytes.extend(sized(&self.policy));
        bytes.extend(&self.algorithms);
        bytes.extend([0, 3, 0, 0x10]);
        bytes.extend(sized(&self.point[1..33]));
        bytes.extend(sized(&self.point[33..]));
        bytes
    }

    pub(super) fn name(&self) -> Vec<u8> {
        [&[0, 0x0b][..], &Sha256::digest(self.bytes())].concat()
    }
}

/// Everything that goes into evidence, before it is signed.
#[derive(Clone)]
pub(super) struct Speech {
    pub(super) claims: Claims,
    pub(super) ek_certificate: Vec<u8>,
    pub(super) chain: Vec<Vec<u8>>,
    pub(super) ek: Area,
    pub(super) ak: Area,
    pub(super) key: Area,
    pub(super) magic: u32,
    pub(super) kind: u16,
    /// What is certified instead of the claims.
    pub(super) data: Option<Vec<u8>>,
    /// What is certified instead of the key's name.
    pub(super) name: Option<Vec<u8>>,
    pub(super) signer: SigningKey,
}

impl Speech {
    pub(super) fn sign(&self) -> Envelope {
        let chain = self.chain.iter().cloned().map(HexBytes);
        let keys = Keys {
            ek_certificate: self.ek_certificate.clone(),
            ek_chain: chain.collect(),
            ek_public: self.ek.bytes(),
            ak_public: self.ak.bytes(),
            key_public: self.key.bytes(),
        };
        let data = self.data.clone();
        let data = data.unwrap_or_else(|| keys.statement(&self.claims).to_vec());
        let name = self.name.clone().unwrap_or_else(|| self.key.name());
        let certification = [
            &self.magic.to_be_bytes()[..],
            &self.kind.to_be_bytes(),
            &sized(&self.ak.name()),
            &sized(&data),
            // Clock, resets, restarts, safe; firmware.
            &[0, 0, 0, 0, 0, 0, 9, 9, 0, 0, 0, 1, 0, 0, 0, 2, 1],
            &[0, 1, 2, 3, 4, 5, 6, 7],
            &sized(&name),
            &sized(&[0, 0x0b, 1, 2, 3]),
        ]
        .concat();
        let signed: Signature = self.signer.sign(&certification);
        let (r, s) = signed.split_bytes();
        let signature = [&[0, 0x18, 0, 0x0b][..], &sized(&r), &sized(&s)].concat();
        Envelope {
            claims: self.claims.clone(),
            evidence: Evidence::Tpm2(Tpm2Evidence {
                keys,
                certification,
                signature,
            }),
        }
    }
}

fn sized(bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes()[..], bytes].concat()
}
