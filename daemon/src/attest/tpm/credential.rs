//! `TPM2_MakeCredential` without a TPM (TPM 2.0 Library, Part 1, 24): a secret that only the TPM with
//! this endorsement key gives out, and only while it holds a key of this name.

use aes::Aes128;
use cfb_mode::Encryptor;
use cfb_mode::cipher::{AsyncStreamCipher, KeyIvInit};
use p256::ecdh::EphemeralSecret;
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rand_core::OsRng;
use rsa::traits::RandomizedEncryptor;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::endorsement::EndorsementKey;
use super::public::Name;
use crate::attest::transcript::hmac;

/// Length of the seed and of the secret: that of SHA-256, as the endorsement key's name has it.
const LEN: usize = 32;

/// What names the use of the seed, with the zero byte that belongs to it.
const IDENTITY: &[u8] = b"IDENTITY\0";

/// A secret for one TPM and one key in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credential {
    /// The content of a `TPM2B_ID_OBJECT`.
    pub(super) object: Vec<u8>,
    /// The content of a `TPM2B_ENCRYPTED_SECRET`.
    pub(super) seed: Vec<u8>,
}

/// Makes the credential of `secret` for the key `name` in the TPM with this endorsement key.
///
/// `None` if the system has no randomness, or the key is none that encrypts.
pub(super) fn make(
    endorsement: &EndorsementKey,
    name: &Name,
    secret: &[u8; LEN],
) -> Option<Credential> {
    let (seed, encrypted_seed) = match endorsement {
        EndorsementKey::Rsa2048(key) => share_by_rsa(key)?,
        EndorsementKey::P256(key) => share_by_ecdh(key)?,
    };
    Some(Credential {
        object: protect(&seed, name, secret),
        seed: encrypted_seed,
    })
}

type Seed = Zeroizing<[u8; LEN]>;

/// A new seed, and how the TPM gets it (Part 1, B.10.3).
fn share_by_rsa(key: &rsa::PublicKey) -> Option<(Seed, Vec<u8>)> {
    use rsa::oaep::EncryptingKey;
    use rsa::sha2::Sha256;

    let mut seed = Zeroizing::new([0; LEN]);
    rand_core::RngCore::try_fill_bytes(&mut OsRng, &mut *seed).ok()?;
    let key = EncryptingKey::<Sha256>::new_with_label(key.clone(), IDENTITY);
    let encrypted = key.encrypt_with_rng(&mut getrandom::SysRng, &*seed).ok()?;
    Some((seed, encrypted))
}

/// The same with a curve (Part 1, C.6.1): `TPMS_ECC_POINT` of the key that the seed was agreed on with.
fn share_by_ecdh(key: &p256::PublicKey) -> Option<(Seed, Vec<u8>)> {
    let ephemeral = EphemeralSecret::random(&mut OsRng);
    let shared = ephemeral.diffie_hellman(key);
    let mine = ephemeral.public_key().to_encoded_point(false);
    let theirs = key.to_encoded_point(false);
    let seed = kdfe(shared.raw_secret_bytes(), mine.x()?, theirs.x()?);
    let mut point = Vec::new();
    for coordinate in [mine.x()?, mine.y()?] {
        point.extend(32_u16.to_be_bytes());
        point.extend_from_slice(coordinate);
    }
    Some((seed, point))
}

/// The secret as a credential of the key with this name (Part 1, 24.4 to 24.6).
fn protect(seed: &Seed, name: &Name, secret: &[u8; LEN]) -> Vec<u8> {
    let storage = kdfa(seed, b"STORAGE\0", name, 128);
    let mut encrypted = [&32_u16.to_be_bytes()[..], secret].concat();
    let (key, _) = storage.split_at(16);
    Encryptor::<Aes128>::new(key.into(), &[0; 16].into()).encrypt(&mut encrypted);

    let integrity = kdfa(seed, b"INTEGRITY\0", &[], 256);
    let mac = hmac(&integrity, &[&encrypted, name]);
    [&32_u16.to_be_bytes()[..], &mac, &encrypted].concat()
}

/// `KDFa` (Part 1, 11.4.10.2) of at most one block of SHA-256; the second context is always empty here.
fn kdfa(key: &Seed, label: &[u8], context: &[u8], bits: u32) -> Seed {
    let counter = 1_u32.to_be_bytes();
    Zeroizing::new(hmac(key, &[&counter, label, context, &bits.to_be_bytes()]))
}

/// `KDFe` (Part 1, 11.4.10.3) of one block of SHA-256, for the use `IDENTITY`.
fn kdfe(shared: &[u8], mine: &[u8], theirs: &[u8]) -> Seed {
    let mut hash = Sha256::new_with_prefix(1_u32.to_be_bytes());
    for part in [shared, IDENTITY, mine, theirs] {
        hash.update(part);
    }
    Zeroizing::new(hash.finalize().into())
}
