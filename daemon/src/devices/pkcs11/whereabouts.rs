//! Where a key of a token is, as the registry keeps it ([`Blobs`](crate::devices::blob::Blobs)).

use serde::{Deserialize, Serialize};

use super::wire::{Place, Sealed};

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Whereabouts {
    /// In the token, or wrapped by it.
    InToken(Place),
    /// Here, encrypted by the token.
    Sealed(Sealed),
}

#[cfg(test)]
mod tests {
    use secrecy::SecretBox;

    use super::*;
    use crate::devices::blob::Blobs;
    use crate::devices::pkcs11::wire::Wrapped;
    use crate::devices::{Algorithm, GenerationId, Kem, KeyBlob, KeyId, StoredKey, Tier};
    use crate::store_key::StoreKey;

    fn blobs() -> Blobs<Whereabouts> {
        let store_key = StoreKey::new(SecretBox::new(Box::new([1; 32])));
        Blobs::new("pkcs11", store_key.subkey("mlskeyd v1 test").unwrap())
    }

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

    /// Each form, as this version writes it. A change here makes the keys of all
    /// users unreadable.
    #[test]
    fn what_is_on_disks_stays_readable() {
        let iv = [8; 16];
        let bytes = vec![9; 3];
        let id = vec![7];
        let label = "work".to_owned();
        let forms = [
            (
                Whereabouts::InToken(Place::Object),
                "019a4cfe4f65f52c5fbf4e47a179f306c1f8d8cdd4c782885650d17c61c1dfc1890000",
            ),
            (
                Whereabouts::InToken(Place::Wrapped(Wrapped::KeyWrapPad(bytes.clone()))),
                "01dc03e01d83574a994c516c01155f9f19eba9a8f7b770d5f1708a49d8bae3106300010003090909",
            ),
            (
                Whereabouts::InToken(Place::Wrapped(Wrapped::KeyWrap(bytes.clone()))),
                "019ce37e35d613b0633446ccb489e779f93a4aa956a18958c7dba05c16e1196d6500010103090909",
            ),
            (
                Whereabouts::InToken(Place::Wrapped(Wrapped::CbcPad {
                    iv,
                    bytes: bytes.clone(),
                })),
                "01e3d80d76b3379644f52fb2e64e170f66a7fa18a46c9e2a900f0ed649ce1ec0fa0001020808080808080808080808080808080803090909",
            ),
            (
                Whereabouts::InToken(Place::Adopted { label, id }),
                "016cab88b7ceda63aa75075fc3175ae4be9f21215b6cce67db8ebc02feba2367b3000204776f726b0107",
            ),
            (
                Whereabouts::Sealed(Sealed { iv, bytes }),
                "013ba78128e3eb94344e30c294eaa88b5b9ef298d24cd4fa309351663c9bc01845010808080808080808080808080808080803090909",
            ),
        ];
        for (whereabouts, expected) in forms {
            let mut key = key();
            key.blob = blobs().write(&key, &whereabouts).unwrap();
            assert_eq!(hex::encode(key.blob.as_bytes()), expected);
            assert_eq!(blobs().read(&key).unwrap(), whereabouts);
        }
    }

    #[test]
    fn a_blob_is_of_one_key_alone() {
        let mut key = key();
        let whereabouts = Whereabouts::InToken(Place::Object);
        key.blob = blobs().write(&key, &whereabouts).unwrap();
        let changes: [fn(&mut StoredKey); 6] = [
            |key| key.id = KeyId::from_bytes([9; 16]),
            |key| key.algorithm = Algorithm::Hpke(Kem::DhKemX25519),
            |key| key.tier = Tier::Sealed,
            |key| key.generation = GenerationId::from_bytes([9; 16]),
            |key| key.public.push(0),
            |key| key.blob = KeyBlob::new(key.blob.as_bytes()[1..].to_vec()),
        ];
        for change in changes {
            let mut other = key.clone();
            change(&mut other);
            blobs().read(&other).unwrap_err();
        }
    }
}
