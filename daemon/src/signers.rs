//! Whose signatures count: OpenSSH's public keys, and signatures in OpenSSH's format, as
//! `ssh-keygen -Y sign` makes them.
//!
//! A signature is for one purpose, its namespace: one that somebody made for files of
//! another kind is none here.

use ssh_key::public::KeyData;
use ssh_key::{EcdsaCurve, HashAlg, PublicKey, SshSig};

/// Longest signature, in bytes: those of the kinds that are taken have some 500.
pub(crate) const MAX_SIGNATURE: u64 = 8 * 1024;

/// Set by a security key if somebody touched it.
const TOUCHED: u8 = 1;

/// A security key's counter, behind the byte of what it was set by.
const COUNTER: usize = 4;

/// The keys whose signatures count: at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signers(Vec<PublicKey>);

/// Why something counts as not signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignatureError {
    #[error("it is no signature of OpenSSH's ({0})")]
    Unreadable(String),
    #[error("it is a signature for {found:?}, not for {wanted:?}")]
    OtherNamespace { found: String, wanted: &'static str },
    #[error("the key {0} is none of the configured `signers`")]
    Stranger(String),
    #[error("the security key of {0} was not touched for it")]
    Untouched(String),
    #[error("it is not of this content: it was changed after {0} signed it")]
    Wrong(String),
}

impl Signers {
    /// Reads public keys, each as a line of a file `*.pub`.
    ///
    /// # Errors
    /// Which one is none, or of a kind that is not taken.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let keys: Vec<_> = lines.into_iter().map(parse).collect::<Result<_, _>>()?;
        if keys.is_empty() {
            return Err("there is no public key, so nobody could sign".to_owned());
        }
        Ok(Self(keys))
    }

    /// Who signed this for this purpose.
    pub(crate) fn verify(
        &self,
        namespace: &'static str,
        content: &[u8],
        signature: &[u8],
    ) -> Result<String, SignatureError> {
        let signature = SshSig::from_pem(signature)
            .map_err(|error| SignatureError::Unreadable(error.to_string()))?;
        self.verify_parsed(namespace, content, &signature)
    }

    fn verify_parsed(
        &self,
        namespace: &'static str,
        content: &[u8],
        signature: &SshSig,
    ) -> Result<String, SignatureError> {
        let found = signature.namespace();
        if found != namespace {
            return Err(SignatureError::OtherNamespace {
                found: found.chars().take(64).collect(),
                wanted: namespace,
            });
        }
        let mut keys = self.0.iter();
        let Some(key) = keys.find(|key| key.key_data() == signature.public_key()) else {
            let stranger = signature.public_key().fingerprint(HashAlg::Sha256);
            return Err(SignatureError::Stranger(stranger.to_string()));
        };
        let name = name(key);
        if key.verify(namespace, content, signature).is_err() {
            return Err(SignatureError::Wrong(name));
        }
        if !is_touched(key, signature) {
            return Err(SignatureError::Untouched(name));
        }
        Ok(name)
    }
}

fn parse(line: &str) -> Result<PublicKey, String> {
    let line = line.trim();
    let start: String = line.chars().take(40).collect();
    let key = PublicKey::from_openssh(line)
        .map_err(|error| format!("{start:?} is no public key of OpenSSH's: {error}"))?;
    let is_taken = match key.key_data() {
        KeyData::Ed25519(_) | KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_) => true,
        KeyData::Ecdsa(key) => key.curve() == EcdsaCurve::NistP256,
        _ => false,
    };
    if !is_taken {
        return Err(format!(
            "a key of kind {} does not sign here: ssh-ed25519 and ecdsa-sha2-nistp256 do, also of security keys (sk-)",
            key.algorithm().as_str()
        ));
    }
    if key.comment().chars().any(char::is_control) {
        return Err(format!("the comment of {start:?} has control characters"));
    }
    Ok(key)
}

/// As it goes on record: who, and by which key.
fn name(key: &PublicKey) -> String {
    let fingerprint = key.fingerprint(HashAlg::Sha256);
    match key.comment() {
        "" => fingerprint.to_string(),
        comment => format!("{comment} ({fingerprint})"),
    }
}

/// Of a security key only what somebody touched it for: else whoever uses the machine that
/// it is in could have everything signed. The crate looks at the signature alone.
fn is_touched(key: &PublicKey, signature: &SshSig) -> bool {
    if !matches!(
        key.key_data(),
        KeyData::SkEd25519(_) | KeyData::SkEcdsaSha2NistP256(_)
    ) {
        return true;
    }
    let mut behind = signature.signature_bytes().iter().rev();
    behind
        .nth(COUNTER)
        .is_some_and(|flags| flags & TOUCHED != 0)
}

#[cfg(test)]
pub(crate) mod tests {
    use ed25519_dalek::{Signer, SigningKey};
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};
    use ssh_key::public::{Ed25519PublicKey, SkEd25519};
    use ssh_key::{Algorithm, LineEnding, Signature};

    use super::*;

    /// A key of this seed: its line, and the signatures that it makes.
    pub(crate) struct Key(SigningKey);

    impl Key {
        pub(crate) fn new(seed: u8) -> Self {
            Self(SigningKey::from_bytes(&[seed; 32]))
        }

        fn data(&self) -> KeyData {
            KeyData::Ed25519(Ed25519PublicKey(self.0.verifying_key().to_bytes()))
        }

        pub(crate) fn line(&self) -> String {
            let key = PublicKey::new(self.data(), "security@bank");
            key.to_openssh().unwrap()
        }

        pub(crate) fn sign(&self, namespace: &str, content: &[u8]) -> String {
            let signed = SshSig::signed_data(namespace, HashAlg::Sha512, content).unwrap();
            let bytes = self.0.sign(&signed).to_bytes();
            let bytes = Signature::new(Algorithm::Ed25519, bytes).unwrap();
            let signature = SshSig::new(self.data(), namespace, HashAlg::Sha512, bytes);
            signature.unwrap().to_pem(LineEnding::LF).unwrap()
        }
    }

    fn signers(lines: &[String]) -> Signers {
        Signers::parse(lines.iter().map(String::as_str)).unwrap()
    }

    const HERE: &str = "policies@mlskeyd";

    #[test]
    fn a_signature_is_of_a_configured_key_for_this_purpose_and_content() {
        let (one, other) = (Key::new(1), Key::new(2));
        let trusted = signers(&[one.line()]);
        let verify = |content: &[u8], signature: &str| {
            let verified = trusted.verify(HERE, content, signature.as_bytes());
            verified.map_err(|error| error.to_string())
        };
        let signed = one.sign(HERE, b"content");
        let by = verify(b"content", &signed).unwrap();
        assert!(by.starts_with("security@bank (SHA256:"), "{by}");
        for (content, signature, why) in [
            (&b"other"[..], signed, "it was changed after security@bank"),
            (
                b"content",
                other.sign(HERE, b"content"),
                "none of the configured",
            ),
            (
                b"content",
                one.sign("freeze@mlskeyd", b"content"),
                "for \"freeze@mlskeyd\", not for \"policies@mlskeyd\"",
            ),
            (b"content", String::new(), "no signature of OpenSSH's"),
        ] {
            let error = verify(content, &signature).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    /// As made by `ssh-keygen` 9.2 of a key on P-256.
    #[test]
    fn keys_on_p256_sign_too() {
        let line = include_str!("signers/p256.pub");
        let trusted = Signers::parse([line]).unwrap();
        let signature = include_bytes!("signers/p256.sig");
        let by = trusted.verify(HERE, b"content\n", signature).unwrap();
        assert!(by.starts_with("p256@test (SHA256:"), "{by}");
        trusted.verify(HERE, b"content", signature).unwrap_err();
    }

    #[test]
    fn a_security_key_signs_when_it_is_touched() {
        let key = Key::new(3);
        let public = Ed25519PublicKey(key.0.verifying_key().to_bytes());
        let data = KeyData::SkEd25519(SkEd25519::new(public, "ssh:"));
        let line = PublicKey::new(data.clone(), "").to_openssh().unwrap();
        let trusted = signers(&[line]);
        let sign = |flags: u8| {
            let message = SshSig::signed_data(HERE, HashAlg::Sha512, b"content").unwrap();
            let behind = [flags, 0, 0, 0, 9];
            let signed = [
                Sha256::digest(b"ssh:").to_vec(),
                behind.to_vec(),
                Sha256::digest(message).to_vec(),
            ];
            let bytes = key.0.sign(&signed.concat()).to_bytes();
            let bytes = [bytes.as_slice(), &behind].concat();
            let bytes = Signature::new(Algorithm::SkEd25519, bytes).unwrap();
            let signature = SshSig::new(data.clone(), HERE, HashAlg::Sha512, bytes);
            signature.unwrap().to_pem(LineEnding::LF).unwrap()
        };
        let verify = |signature: String| trusted.verify(HERE, b"content", signature.as_bytes());
        assert!(verify(sign(TOUCHED)).unwrap().starts_with("SHA256:"));
        assert!(matches!(verify(sign(0)), Err(SignatureError::Untouched(_))));
    }

    #[test]
    fn what_is_no_such_key_is_told() {
        let rsa = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAQQC5";
        for (lines, why) in [
            (vec![], "nobody could sign"),
            (vec!["security@bank"], "is no public key"),
            (vec![rsa], "ssh-rsa"),
            (
                vec![include_str!("signers/p384.pub")],
                "ecdsa-sha2-nistp384",
            ),
        ] {
            let error = Signers::parse(lines).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    proptest! {
        #[test]
        fn hostile_signatures_are_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..600),
            at in any::<prop::sample::Index>(),
            changed in 1..=255_u8,
        ) {
            let key = Key::new(1);
            let trusted = signers(&[key.line()]);
            prop_assert!(trusted.verify(HERE, b"content", &bytes).is_err());
            // Within the armour, too.
            let mut signature = key.sign(HERE, b"content").into_bytes();
            let at = at.index(signature.len());
            signature[at] ^= changed;
            if let Ok(by) = trusted.verify(HERE, b"content", &signature) {
                // The armour has some freedom, and the bits behind the last byte.
                prop_assert!(by.starts_with("security@bank"));
            }
        }
    }
}
