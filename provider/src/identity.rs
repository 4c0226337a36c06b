//! Identities and their signers.

use std::sync::Arc;

use mlskeyd_protocol::app_content::app_content;
use mlskeyd_protocol::v1::{self, Bytes, IdentityInfo, KeyId, KeyInfo, SignatureScheme as Scheme};
use openmls::prelude::{Credential, CredentialType, CredentialWithKey, LeafNode, MlsGroup};
use openmls_traits::signatures::{Signer, SignerError};
use openmls_traits::types::SignatureScheme;
use tls_codec::{Serialize as _, VLByteSlice};

use crate::failure::ProviderError;
use crate::link::Link;
use crate::suites;

/// A named MLS member whose signature key is in custody.
#[derive(Clone, Debug)]
pub struct CustodyIdentity {
    info: IdentityInfo,
    link: Arc<Link>,
}

impl CustodyIdentity {
    pub(crate) const fn new(info: IdentityInfo, link: Arc<Link>) -> Self {
        Self { info, link }
    }

    /// What the daemon knows of it: device and tier of its key among that.
    #[must_use]
    pub const fn info(&self) -> &IdentityInfo {
        &self.info
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// Asks the daemon again, and answers whether the identity has another key or
    /// credential than before: [`signer`](Self::signer) and
    /// [`credential_with_key`](Self::credential_with_key) are then those of the
    /// new one. Groups go on with the old key until they are moved, see
    /// [`follow_rotation`](crate::follow_rotation).
    ///
    /// Call it when the app starts, and once a day: the old key ends, by default
    /// 30 days after an administrator made the new one, and the old credential at
    /// once: messages are signed in a group that has it, and no new leaf with it.
    ///
    /// # Errors
    /// [`ProviderError::NoIdentity`] if it is not there any more; or the daemon
    /// did not answer.
    pub fn refresh(&mut self) -> Result<bool, ProviderError> {
        let found = self.link.identity(&self.info.name)?;
        let before = std::mem::replace(&mut self.info, found);
        Ok(before.key != self.info.key || before.credential != self.info.credential)
    }

    /// The keys before the present one that still sign, the oldest first, each
    /// with its [end](KeyInfo::ends).
    #[must_use]
    pub fn retiring(&self) -> &[KeyInfo] {
        &self.info.retiring
    }

    /// What OpenMLS takes as a signer for what is new: groups, KeyPackages,
    /// external commits. For a group that is there already see
    /// [`signer_for`](Self::signer_for).
    #[must_use]
    pub fn signer(&self) -> CustodySigner {
        self.signer_with(self.info.key)
    }

    /// What OpenMLS takes as a signer in this group: with the key that the group
    /// knows, which is an older one from a rotation until the group is moved.
    ///
    /// # Errors
    /// [`ProviderError::NoKeyOfLeaf`] if the group's own leaf has none of the
    /// identity's keys, or there is none.
    pub fn signer_for(&self, group: &MlsGroup) -> Result<CustodySigner, ProviderError> {
        let leaf = group.own_leaf_node().map(LeafNode::signature_key);
        let is_leafs = |key: &Bytes| leaf.is_some_and(|leaf| leaf.as_slice() == key.0.as_slice());
        if is_leafs(&self.info.public_key) {
            return Ok(self.signer());
        }
        let mut retiring = self.info.retiring.iter();
        let key = retiring.find(|key| is_leafs(&key.public_key));
        key.map(|key| self.signer_with(key.id))
            .ok_or_else(|| ProviderError::NoKeyOfLeaf(self.info.name.clone()))
    }

    /// Signs something of the app's own that is no MLS structure, such as a login to the
    /// delivery service, with the identity's key. What is signed is
    /// [`app_content`](mlskeyd_protocol::app_content::app_content): whoever verifies it makes
    /// the same of label and content, and so takes it for nothing else.
    ///
    /// No default policy permits it: a company permits `SignApp` with the labels that its
    /// apps need.
    ///
    /// The signature is 64 bytes for Ed25519, and a DER ECDSA-Sig-Value for the others.
    ///
    /// # Errors
    /// [`ProviderError::NoLabel`], and what the daemon says.
    pub fn sign_app(&self, label: &str, content: &[u8]) -> Result<Vec<u8>, ProviderError> {
        let content = app_content(label, content);
        let content = content.ok_or_else(|| ProviderError::NoLabel(label.to_owned()))?;
        self.link
            .sign(self.info.key, self.info.scheme, content.expose())
    }

    fn signer_with(&self, key: KeyId) -> CustodySigner {
        CustodySigner {
            key,
            scheme: self.info.scheme,
            link: Arc::clone(&self.link),
        }
    }

    /// The pinned credential with the public signature key, as OpenMLS takes
    /// them.
    ///
    /// # Errors
    /// [`ProviderError::CredentialUnsupported`] if the credential is too long
    /// to be encoded.
    pub fn credential_with_key(&self) -> Result<CredentialWithKey, ProviderError> {
        Ok(CredentialWithKey {
            credential: openmls_credential(&self.info.credential)?,
            signature_key: self.info.public_key.to_vec().into(),
        })
    }
}

/// Signs with a signature key in custody.
///
/// The daemon reads what it is asked to sign and may refuse: OpenMLS then
/// answers a `LibraryError`, and
/// [`last_failure`](crate::CustodyProvider::last_failure) has the reason.
#[derive(Clone, Debug)]
pub struct CustodySigner {
    key: KeyId,
    scheme: Scheme,
    link: Arc<Link>,
}

impl Signer for CustodySigner {
    /// `payload` is a serialised SignContent (RFC 9420, 5.1.2). The signature
    /// is 64 bytes for Ed25519, and DER for ECDSA.
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, SignerError> {
        self.link
            .sign(self.key, self.scheme, payload)
            .map_err(|_| SignerError::SigningError)
    }

    fn signature_scheme(&self) -> SignatureScheme {
        suites::openmls_scheme(self.scheme)
    }
}

/// A credential of OpenMLS in the protocol's form.
pub(crate) fn custody_credential(credential: &Credential) -> Result<v1::Credential, ProviderError> {
    let content = credential.serialized_content();
    match credential.credential_type() {
        CredentialType::Basic => Ok(v1::Credential::Basic(Bytes::from(content))),
        CredentialType::X509 => certificates(content).map(v1::Credential::X509),
        _ => Err(ProviderError::CredentialUnsupported),
    }
}

/// Reads `opaque cert_data<V>` after `opaque cert_data<V>` (RFC 9420, 5.3).
fn certificates(mut content: &[u8]) -> Result<Vec<Bytes>, ProviderError> {
    let mut chain = Vec::new();
    while !content.is_empty() {
        let (certificate, rest) =
            split_vector(content).ok_or(ProviderError::CredentialUnsupported)?;
        chain.push(Bytes::from(certificate));
        content = rest;
    }
    if chain.is_empty() {
        return Err(ProviderError::CredentialUnsupported);
    }
    Ok(chain)
}

/// Splits a vector with its length before it (RFC 9420, 2.1.2) from what
/// follows. By hand, since tls_codec asserts that all of its bytes are there.
fn split_vector(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let width = match bytes.first()? >> 6 {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => return None,
    };
    let (prefix, rest) = bytes.split_at_checked(width)?;
    let value = prefix
        .iter()
        .fold(0_usize, |value, byte| value << 8 | usize::from(*byte));
    let (length, shortest) = match width {
        1 => (value, 0),
        2 => (value & 0x3FFF, 1 << 6),
        _ => (value & 0x3FFF_FFFF, 1 << 14),
    };
    if length < shortest {
        return None;
    }
    rest.split_at_checked(length)
}

/// A credential of the protocol in OpenMLS's form.
fn openmls_credential(credential: &v1::Credential) -> Result<Credential, ProviderError> {
    match credential {
        v1::Credential::Basic(identity) => {
            Ok(Credential::new(CredentialType::Basic, identity.to_vec()))
        }
        v1::Credential::X509(chain) => {
            let mut content = Vec::new();
            for certificate in chain {
                VLByteSlice(certificate)
                    .tls_serialize(&mut content)
                    .map_err(|_| ProviderError::CredentialUnsupported)?;
            }
            Ok(Credential::new(CredentialType::X509, content))
        }
    }
}

#[cfg(test)]
mod tests {
    use openmls::prelude::BasicCredential;

    use super::*;

    #[test]
    fn credentials_cross_over_and_back() {
        let basic = Credential::from(BasicCredential::new(b"alice".to_vec()));
        assert_eq!(
            custody_credential(&basic).unwrap(),
            v1::Credential::Basic(Bytes::from(b"alice".as_slice()))
        );
        // Certificates of 1, 300, 0 and 20,000 bytes: lengths of one, two and four bytes.
        let chain = v1::Credential::X509(vec![
            Bytes::from(vec![7]),
            Bytes::from(vec![8; 300]),
            Bytes::from(vec![]),
            Bytes::from(vec![9; 20_000]),
        ]);
        for here in [custody_credential(&basic).unwrap(), chain] {
            let there = openmls_credential(&here).unwrap();
            assert_eq!(custody_credential(&there).unwrap(), here);
        }
    }

    #[test]
    fn malformed_credentials_are_refused() {
        // Nothing; cut short; a bad prefix after a good vector; a length that
        // is not in its shortest form; a cut prefix.
        for content in [
            vec![],
            vec![5, 1],
            vec![1, 7, 0xFF],
            vec![0x40, 0x01, 7],
            vec![0x80, 0],
        ] {
            let credential = Credential::new(CredentialType::X509, content);
            assert_eq!(
                custody_credential(&credential),
                Err(ProviderError::CredentialUnsupported)
            );
        }
        let other = Credential::new(CredentialType::Other(0x0A0A), vec![1]);
        assert_eq!(
            custody_credential(&other),
            Err(ProviderError::CredentialUnsupported)
        );
    }
}
