//! What the registry keeps for a key of a TPM: the object as the TPM wrapped it,
//! encrypted once more under a key of its generation.
//!
//! ```text
//! sealing(postcard(Kept) | postcard(Policy) if it has one), for all that the key is for
//! ```
//!
//! The TPM's own wrapping lasts as long as its storage key, which outlives every
//! generation. This one ends with the generation. It is on disks for years, so
//! it never changes: see the test.

use serde::{Deserialize, Serialize};

use super::generations::Secret;
use super::policy::Policy;
use crate::devices::{DeviceError, KeyBlob, StoredKey, sealing};

/// A private key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Kept {
    /// A key that the TPM made and uses.
    InTpm(Object),
    /// A private key that was made here (32 bytes, of P-384 48), as data of the TPM's.
    Sealed(Object),
}

/// An object of the TPM's that it can load again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    /// The buffer of the TPM2B_PRIVATE.
    pub(super) private: Vec<u8>,
    /// The TPMT_PUBLIC.
    pub(super) public: Vec<u8>,
}

/// The blob of a key, of which all else is known.
pub(super) fn write(
    secret: &Secret,
    key: &StoredKey,
    kept: &Kept,
    policy: Option<&Policy>,
) -> Result<KeyBlob, DeviceError> {
    let unwritten = |_| DeviceError::Failed {
        reason: "a key could not be encoded".to_owned(),
    };
    let mut written = postcard::to_stdvec(kept).map_err(unwritten)?;
    if let Some(policy) = policy {
        written.extend(postcard::to_stdvec(policy).map_err(unwritten)?);
    }
    let encryption = secret.of_blobs()?;
    let sealed = sealing::seal(&encryption, &key.binding("tpm2"), &written)?;
    Ok(KeyBlob::new(sealed))
}

/// What was written for this key.
pub(super) fn read(
    secret: &Secret,
    key: &StoredKey,
) -> Result<(Kept, Option<Policy>), DeviceError> {
    let encryption = secret.of_blobs()?;
    let written = sealing::open(&encryption, &key.binding("tpm2"), key.blob.as_bytes())
        .map_err(|sealing::Unauthentic| DeviceError::BadBlob)?;
    parse(&written).ok_or(DeviceError::BadBlob)
}

/// To the last byte.
fn parse(written: &[u8]) -> Option<(Kept, Option<Policy>)> {
    let (kept, rest) = postcard::take_from_bytes(written).ok()?;
    if rest.is_empty() {
        return Some((kept, None));
    }
    let (policy, rest) = postcard::take_from_bytes(rest).ok()?;
    rest.is_empty().then_some((kept, Some(policy)))
}

#[cfg(test)]
mod tests {
    use super::super::policy::Measured;
    use super::*;
    use crate::config::Pcrs;
    use crate::devices::{Algorithm, GenerationId, Kem, KeyId, Tier};

    fn key() -> StoredKey {
        StoredKey {
            id: KeyId::from_bytes([2; 16]),
            algorithm: Algorithm::Hpke(Kem::DhKemP256),
            tier: Tier::Hardware,
            generation: GenerationId::from_bytes([3; 16]),
            pin: false,
            public: vec![4; 65],
            blob: KeyBlob::new(Vec::new()),
        }
    }

    fn object() -> Object {
        Object {
            private: vec![5; 3],
            public: vec![6; 2],
        }
    }

    /// Each form, as this version writes it. A change here makes the keys of all
    /// users unreadable.
    #[test]
    fn what_is_on_disks_stays_readable() {
        let secret = Secret::from_bytes([1; 32]);
        for (kept, written, blob) in [
            (Kept::InTpm(object()), "0003050505020606", IN_TPM),
            (Kept::Sealed(object()), "0103050505020606", SEALED),
        ] {
            assert_eq!(hex::encode(postcard::to_stdvec(&kept).unwrap()), written);
            let mut key = key();
            key.blob = KeyBlob::new(hex::decode(blob).unwrap());
            assert_eq!(read(&secret, &key).unwrap(), (kept.clone(), None));
            for policy in [None, Some(policy())] {
                key.blob = write(&secret, &key, &kept, policy.as_ref()).unwrap();
                assert_eq!(read(&secret, &key).unwrap(), (kept.clone(), policy));
            }
        }
        let written = hex::encode(postcard::to_stdvec(&policy()).unwrap());
        assert_eq!(
            written,
            format!("80818404{}{}", "07".repeat(32), "08".repeat(32))
        );
    }

    fn policy() -> Policy {
        Policy {
            measured: Measured {
                pcrs: Pcrs::parse(&[7, 16, 23]).unwrap(),
                digest: [7; 32],
            },
            recovery: [8; 32],
        }
    }

    #[test]
    fn a_blob_is_read_to_its_last_byte() {
        let kept = postcard::to_stdvec(&Kept::InTpm(object())).unwrap();
        let policy = postcard::to_stdvec(&policy()).unwrap();
        assert!(parse(&kept).is_some());
        let whole = [kept.as_slice(), &policy].concat();
        assert!(parse(&whole).is_some());
        for cut in (0..whole.len()).filter(|&cut| cut != kept.len()) {
            assert!(parse(&whole[..cut]).is_none(), "{cut}");
        }
        assert!(parse(&[whole.as_slice(), &[0]].concat()).is_none());
    }

    const IN_TPM: &str = "0131227d5316d71cdd1d40805d0c988ff4d3ef164eeebbb2050ceab7dd2f24fc0d843bb63c09279f6aa7490603813bcf16";
    const SEALED: &str = "014e975ad3cd4a79f4397a777d9360e56f1242415c8c048c09d6226d58e847b24b677eaa9e0b4192f4a7de5a45c1f2dffd";

    #[test]
    fn a_blob_is_of_one_key_alone() {
        let secret = Secret::from_bytes([1; 32]);
        let mut key = key();
        key.blob = write(&secret, &key, &Kept::InTpm(object()), None).unwrap();
        let changes: [fn(&mut StoredKey); 7] = [
            |key| key.id = KeyId::from_bytes([9; 16]),
            |key| key.algorithm = Algorithm::Hpke(Kem::DhKemX25519),
            |key| key.tier = Tier::Sealed,
            |key| key.generation = GenerationId::from_bytes([9; 16]),
            |key| key.pin = true,
            |key| key.public.push(0),
            |key| key.blob = KeyBlob::new(key.blob.as_bytes()[1..].to_vec()),
        ];
        for change in changes {
            let mut other = key.clone();
            change(&mut other);
            assert!(matches!(read(&secret, &other), Err(DeviceError::BadBlob)));
        }
        let other = Secret::from_bytes([2; 32]);
        assert!(matches!(read(&other, &key), Err(DeviceError::BadBlob)));
    }
}
