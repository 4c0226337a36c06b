//! The receiver of HPKE (RFC 9180): base mode, single shot, over a DH result
//! that was computed elsewhere, by the device that holds the private key.
//!
//! The KDF is that of the KEM in every cipher suite of MLS that the daemon serves:
//! HKDF-SHA384 with P-384, else HKDF-SHA256.

use aes_gcm::aead::{AeadInPlace, Key, KeyInit, KeySizeUser, Nonce, Tag};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use chacha20poly1305::ChaCha20Poly1305;
use hkdf::{Hkdf, HkdfExtract, HmacImpl};
use hmac::Hmac;
use sha2::digest::OutputSizeUser;
use sha2::digest::typenum::Unsigned;
use sha2::{Sha256, Sha384};
use zeroize::{Zeroize, Zeroizing};

use crate::devices::{Aead, Kem, SharedSecret};

/// A combination of HPKE's algorithms (RFC 9180, 7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Suite {
    /// The KEM.
    pub kem: Kem,
    /// The AEAD.
    pub aead: Aead,
}

/// What the sender sent, and what both sides know.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    /// The encapsulated key `enc`, the very bytes whose DH result is used: 65
    /// bytes for P-256, 97 for P-384, 32 for X25519.
    pub enc: &'a [u8],
    /// The receiver's public key, serialised like `enc`.
    pub receiver: &'a [u8],
    /// The application's `info`, any length.
    pub info: &'a [u8],
    /// The additional authenticated data, any length.
    pub aad: &'a [u8],
    /// The ciphertext with its tag of 16 bytes.
    pub ciphertext: &'a [u8],
}

/// Why a ciphertext was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HpkeError {
    /// `enc` or the receiver's key has another length, or the DH result another
    /// KEM, than the suite says.
    #[error("the keys are not of the cipher suite's KEM; check which key the ciphertext is for")]
    WrongKem,
    /// The ciphertext, the `info` or the additional data is not what was
    /// sealed, or it was sealed to another key.
    #[error("the ciphertext does not open; ask the sender for a new one")]
    Unauthentic,
    /// The key derivation refused its output length.
    #[error("the key derivation failed; this is a defect, please report it")]
    Derivation,
}

/// Opens a ciphertext with sequence number 0: `OpenBase` of RFC 9180, 6.1, from
/// the DH result `dh` of the receiver's private key and `enc` on.
///
/// # Errors
/// [`HpkeError`]; nothing of the plaintext is left behind then.
pub fn open(
    suite: Suite,
    dh: &SharedSecret,
    sealed: &Sealed<'_>,
) -> Result<Zeroizing<Vec<u8>>, HpkeError> {
    let public_len = match suite.kem {
        Kem::DhKemP256 => 65,
        Kem::DhKemP384 => 97,
        Kem::DhKemX25519 => 32,
    };
    if dh.kem() != suite.kem
        || sealed.enc.len() != public_len
        || sealed.receiver.len() != public_len
    {
        return Err(HpkeError::WrongKem);
    }
    match suite.aead {
        Aead::Aes128Gcm => open_with::<Aes128Gcm>(suite, dh, sealed),
        Aead::Aes256Gcm => open_with::<Aes256Gcm>(suite, dh, sealed),
        Aead::ChaCha20Poly1305 => open_with::<ChaCha20Poly1305>(suite, dh, sealed),
    }
}

fn open_with<A: AeadInPlace + KeyInit>(
    suite: Suite,
    dh: &SharedSecret,
    sealed: &Sealed<'_>,
) -> Result<Zeroizing<Vec<u8>>, HpkeError> {
    let (cipher, nonce) = key_schedule::<A>(suite, dh, sealed)?;
    let (ciphertext, tag) = sealed
        .ciphertext
        .split_at_checked(sealed.ciphertext.len().saturating_sub(A::TagSize::USIZE))
        .filter(|(_, tag)| tag.len() == A::TagSize::USIZE)
        .ok_or(HpkeError::Unauthentic)?;
    let mut plaintext = Zeroizing::new(ciphertext.to_vec());
    cipher
        .decrypt_in_place_detached(
            &nonce,
            sealed.aad,
            &mut plaintext,
            Tag::<A>::from_slice(tag),
        )
        .map_err(|_| HpkeError::Unauthentic)?;
    Ok(plaintext)
}

/// The hash of a KDF.
trait Hash: OutputSizeUser + Sized {
    type Hmac: HmacImpl<Self>;
}

impl Hash for Sha256 {
    type Hmac = Hmac<Self>;
}

impl Hash for Sha384 {
    type Hmac = Hmac<Self>;
}

/// `KeySchedule` of RFC 9180, 5.1, in mode base, without the exporter. The
/// nonce of sequence number 0 is the base nonce itself.
fn key_schedule<A: AeadInPlace + KeyInit>(
    suite: Suite,
    dh: &SharedSecret,
    sealed: &Sealed<'_>,
) -> Result<(A, Nonce<A>), HpkeError> {
    match suite.kem {
        Kem::DhKemP256 | Kem::DhKemX25519 => schedule::<A, Sha256>(suite, dh, sealed),
        Kem::DhKemP384 => schedule::<A, Sha384>(suite, dh, sealed),
    }
}

/// The same by HMAC with the hash `H`.
fn schedule<A: AeadInPlace + KeyInit, H: Hash>(
    suite: Suite,
    dh: &SharedSecret,
    sealed: &Sealed<'_>,
) -> Result<(A, Nonce<A>), HpkeError> {
    let suite_id = suite.id();
    let shared_secret = decapsulate::<H>(suite.kem, dh, sealed.enc, sealed.receiver)?;

    let (psk_id_hash, _) = labeled_extract::<H>(&suite_id, &[], b"psk_id_hash", &[]);
    let (info_hash, _) = labeled_extract::<H>(&suite_id, &[], b"info_hash", sealed.info);
    let context = [&[MODE_BASE], psk_id_hash.as_slice(), info_hash.as_slice()].concat();
    let (_, secret) = labeled_extract::<H>(&suite_id, &shared_secret, b"secret", &[]);

    let mut key = Zeroizing::new(vec![0; <A as KeySizeUser>::KeySize::USIZE]);
    labeled_expand(&secret, &suite_id, b"key", &context, &mut key)?;
    let mut nonce = Nonce::<A>::default();
    labeled_expand(&secret, &suite_id, b"base_nonce", &context, &mut nonce)?;
    Ok((A::new(Key::<A>::from_slice(&key)), nonce))
}

/// `Decap` of RFC 9180, 4.1, from the DH result on. The shared secret is as long as
/// the hash (`Nsecret` of 7.1).
fn decapsulate<H: Hash>(
    kem: Kem,
    dh: &SharedSecret,
    enc: &[u8],
    receiver: &[u8],
) -> Result<Zeroizing<Vec<u8>>, HpkeError> {
    let suite_id = [b"KEM".as_slice(), &kem_id(kem)].concat();
    let (_, eae_prk) = labeled_extract::<H>(&suite_id, &[], b"eae_prk", dh.expose());
    let mut shared_secret = Zeroizing::new(vec![0; H::output_size()]);
    let context = [enc, receiver].concat();
    labeled_expand(
        &eae_prk,
        &suite_id,
        b"shared_secret",
        &context,
        &mut shared_secret,
    )?;
    Ok(shared_secret)
}

/// RFC 9180, 4: the extracted bytes, and the same ready to be expanded.
fn labeled_extract<H: Hash>(
    suite_id: &[u8],
    salt: &[u8],
    label: &[u8],
    ikm: &[u8],
) -> (Zeroizing<Vec<u8>>, Hkdf<H, H::Hmac>) {
    let mut extract = HkdfExtract::<H, H::Hmac>::new(Some(salt));
    for part in [VERSION, suite_id, label, ikm] {
        extract.input_ikm(part);
    }
    let (mut bytes, expander) = extract.finalize();
    let extracted = Zeroizing::new(bytes.to_vec());
    bytes.zeroize();
    (extracted, expander)
}

/// RFC 9180, 4; the length of `out` is `L`.
fn labeled_expand<H: Hash>(
    prk: &Hkdf<H, H::Hmac>,
    suite_id: &[u8],
    label: &[u8],
    info: &[u8],
    out: &mut [u8],
) -> Result<(), HpkeError> {
    let length = u16::try_from(out.len())
        .map_err(|_| HpkeError::Derivation)?
        .to_be_bytes();
    prk.expand_multi_info(&[&length, VERSION, suite_id, label, info], out)
        .map_err(|_| HpkeError::Derivation)
}

const VERSION: &[u8] = b"HPKE-v1";
const MODE_BASE: u8 = 0x00;

impl Suite {
    /// `suite_id` of RFC 9180, 5.1.
    fn id(self) -> Vec<u8> {
        let aead: u16 = match self.aead {
            Aead::Aes128Gcm => 0x0001,
            Aead::Aes256Gcm => 0x0002,
            Aead::ChaCha20Poly1305 => 0x0003,
        };
        let kdf: u16 = match self.kem {
            Kem::DhKemP256 | Kem::DhKemX25519 => 0x0001,
            Kem::DhKemP384 => 0x0002,
        };
        [
            b"HPKE".as_slice(),
            &kem_id(self.kem),
            &kdf.to_be_bytes(),
            &aead.to_be_bytes(),
        ]
        .concat()
    }
}

const fn kem_id(kem: Kem) -> [u8; 2] {
    let id: u16 = match kem {
        Kem::DhKemP256 => 0x0010,
        Kem::DhKemP384 => 0x0011,
        Kem::DhKemX25519 => 0x0020,
    };
    id.to_be_bytes()
}

/// The sender's side, for tests: seals `sealed.ciphertext` as the plaintext of
/// sequence number 0. `dh` is the DH result of the ephemeral key behind
/// `sealed.enc` and the receiver's public key.
///
/// # Errors
/// As [`open`].
#[cfg(any(test, feature = "conformance"))]
pub fn seal(suite: Suite, dh: &SharedSecret, sealed: &Sealed<'_>) -> Result<Vec<u8>, HpkeError> {
    fn with<A: AeadInPlace + KeyInit>(
        suite: Suite,
        dh: &SharedSecret,
        sealed: &Sealed<'_>,
    ) -> Result<Vec<u8>, HpkeError> {
        let (cipher, nonce) = key_schedule::<A>(suite, dh, sealed)?;
        let mut ciphertext = sealed.ciphertext.to_vec();
        let tag = cipher
            .encrypt_in_place_detached(&nonce, sealed.aad, &mut ciphertext)
            .map_err(|_| HpkeError::Derivation)?;
        ciphertext.extend_from_slice(&tag);
        Ok(ciphertext)
    }
    match suite.aead {
        Aead::Aes128Gcm => with::<Aes128Gcm>(suite, dh, sealed),
        Aead::Aes256Gcm => with::<Aes256Gcm>(suite, dh, sealed),
        Aead::ChaCha20Poly1305 => with::<ChaCha20Poly1305>(suite, dh, sealed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Vector {
        suite: Suite,
        private: Vec<u8>,
        receiver: Vec<u8>,
        enc: Vec<u8>,
        info: Vec<u8>,
        aad: Vec<u8>,
        ciphertext: Vec<u8>,
        plaintext: Vec<u8>,
    }

    impl Vector {
        fn sealed(&self) -> Sealed<'_> {
            Sealed {
                enc: &self.enc,
                receiver: &self.receiver,
                info: &self.info,
                aad: &self.aad,
                ciphertext: &self.ciphertext,
            }
        }

        fn dh(&self) -> SharedSecret {
            let shared = match self.suite.kem {
                Kem::DhKemP256 => {
                    let key = p256::SecretKey::from_slice(&self.private).unwrap();
                    let peer = p256::PublicKey::from_sec1_bytes(&self.enc).unwrap();
                    let shared =
                        p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                    shared.raw_secret_bytes().to_vec()
                }
                Kem::DhKemP384 => {
                    let key = p384::SecretKey::from_slice(&self.private).unwrap();
                    let peer = p384::PublicKey::from_sec1_bytes(&self.enc).unwrap();
                    let shared =
                        p384::ecdh::diffie_hellman(key.to_nonzero_scalar(), peer.as_affine());
                    shared.raw_secret_bytes().to_vec()
                }
                Kem::DhKemX25519 => {
                    let private: [u8; 32] = self.private.as_slice().try_into().unwrap();
                    let peer: [u8; 32] = self.enc.as_slice().try_into().unwrap();
                    x25519_dalek::x25519(private, peer).to_vec()
                }
            };
            SharedSecret::new(self.suite.kem, shared.into()).unwrap()
        }
    }

    fn vectors() -> Vec<Vector> {
        let files = [
            include_str!("../tests/vectors/rfc9180_base.json"),
            include_str!("../tests/vectors/hpke_p384_base.json"),
        ];
        let read = |vector: &serde_json::Value| {
            let bytes = |field: &str| hex::decode(vector[field].as_str().unwrap()).unwrap();
            Vector {
                suite: Suite {
                    kem: match vector["kem_id"].as_u64().unwrap() {
                        0x10 => Kem::DhKemP256,
                        0x11 => Kem::DhKemP384,
                        0x20 => Kem::DhKemX25519,
                        other => panic!("{other}"),
                    },
                    aead: match vector["aead_id"].as_u64().unwrap() {
                        1 => Aead::Aes128Gcm,
                        2 => Aead::Aes256Gcm,
                        3 => Aead::ChaCha20Poly1305,
                        other => panic!("{other}"),
                    },
                },
                private: bytes("skRm"),
                receiver: bytes("pkRm"),
                enc: bytes("enc"),
                info: bytes("info"),
                aad: bytes("aad"),
                ciphertext: bytes("ct"),
                plaintext: bytes("pt"),
            }
        };
        let files = files.map(|text| serde_json::from_str::<serde_json::Value>(text).unwrap());
        let vectors = files
            .iter()
            .flat_map(|file| file["vectors"].as_array().unwrap());
        vectors.map(read).collect()
    }

    #[test]
    fn the_vectors_open() {
        let vectors = vectors();
        assert_eq!(vectors.len(), 5, "two KEMs by two AEADs, and P-384");
        for vector in vectors {
            let plaintext = open(vector.suite, &vector.dh(), &vector.sealed()).unwrap();
            assert_eq!(*plaintext, vector.plaintext, "{:?}", vector.suite);
            let sealed = Sealed {
                ciphertext: &vector.plaintext,
                ..vector.sealed()
            };
            assert_eq!(
                seal(vector.suite, &vector.dh(), &sealed),
                Ok(vector.ciphertext)
            );
        }
    }

    #[test]
    fn nothing_opens_if_a_single_byte_differs() {
        for vector in vectors() {
            let dh = vector.dh();
            let right = vector.sealed();
            let change = |bytes: &[u8], at: usize| {
                let mut changed = bytes.to_vec();
                changed[at] ^= 1;
                changed
            };
            for at in 0..right.ciphertext.len() {
                let ciphertext = &change(right.ciphertext, at);
                let wrong = Sealed {
                    ciphertext,
                    ..right
                };
                assert_eq!(open(vector.suite, &dh, &wrong), Err(HpkeError::Unauthentic));
            }
            let wrongs = [
                Sealed {
                    info: &change(right.info, 0),
                    ..right
                },
                Sealed {
                    aad: &change(right.aad, 0),
                    ..right
                },
                Sealed {
                    enc: &change(right.enc, 7),
                    ..right
                },
                Sealed {
                    receiver: &change(right.receiver, 7),
                    ..right
                },
                Sealed { info: &[], ..right },
                Sealed { aad: &[], ..right },
            ]
            .map(|wrong| open(vector.suite, &dh, &wrong));
            assert_eq!(wrongs, [const { Err(HpkeError::Unauthentic) }; 6]);
        }
    }

    #[test]
    fn short_ciphertexts_and_foreign_keys_are_refused() {
        for vector in vectors() {
            let dh = vector.dh();
            let right = vector.sealed();
            for length in 0..right.ciphertext.len() {
                let wrong = Sealed {
                    ciphertext: &right.ciphertext[..length],
                    ..right
                };
                assert_eq!(open(vector.suite, &dh, &wrong), Err(HpkeError::Unauthentic));
            }
            for wrong in [
                Sealed {
                    enc: &right.enc[1..],
                    ..right
                },
                Sealed {
                    receiver: &right.receiver[1..],
                    ..right
                },
                Sealed { enc: &[], ..right },
            ] {
                assert_eq!(open(vector.suite, &dh, &wrong), Err(HpkeError::WrongKem));
            }
            let kem = match vector.suite.kem {
                Kem::DhKemP256 | Kem::DhKemP384 => Kem::DhKemX25519,
                Kem::DhKemX25519 => Kem::DhKemP256,
            };
            let other = Suite {
                kem,
                ..vector.suite
            };
            assert_eq!(open(other, &dh, &right), Err(HpkeError::WrongKem));
            let other = SharedSecret::new(kem, vec![1; 32].into()).unwrap();
            assert_eq!(open(vector.suite, &other, &right), Err(HpkeError::WrongKem));
        }
    }

    #[test]
    fn an_empty_plaintext_is_opened() {
        for vector in vectors() {
            let dh = vector.dh();
            let empty = Sealed {
                ciphertext: &[],
                ..vector.sealed()
            };
            let ciphertext = seal(vector.suite, &dh, &empty).unwrap();
            let sealed = Sealed {
                ciphertext: &ciphertext,
                ..vector.sealed()
            };
            assert_eq!(open(vector.suite, &dh, &sealed).unwrap().len(), 0);
        }
    }
}
