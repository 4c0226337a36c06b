//! The manifest of a signed set of policies: which files it has, as they were when somebody
//! signed them, and which set is newer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Directory, PolicyError, PolicyFiles, is_policy_file};
use crate::signers::Signers;

/// The manifest, and its signature, beside the policies.
pub(crate) const MANIFEST: &str = "manifest.toml";
pub(crate) const SIGNATURE: &str = "manifest.toml.sig";

/// What the signature is for.
pub(crate) const NAMESPACE: &str = "policies@mlskeyd";

/// What hashes begin with.
const SHA256: &str = "sha256:";

/// What was signed. Nothing in it is passed over: who signs means all of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// A newer set has a higher one.
    pub(crate) serial: u64,
    /// When it is to be replaced by a newer one, in RFC 3339.
    expires: Option<String>,
    /// Each file of policies, with its hash.
    files: BTreeMap<String, String>,
}

/// A set that somebody signed, and which of them it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignedSet {
    pub(crate) serial: u64,
    /// SHA-256 of the manifest: of two sets of one serial, is it the same?
    pub(crate) digest: [u8; 32],
    /// Who signed it.
    pub(crate) signer: String,
    /// In seconds since 1970.
    pub(crate) expires: Option<i64>,
    pub(crate) files: PolicyFiles,
}

impl SignedSet {
    /// What a directory has, if somebody of these signed it; `None` if there is no manifest.
    /// The signature comes first: of what nobody signed nothing is looked at.
    pub(crate) fn verify(
        path: &Path,
        directory: &Directory,
        signers: &Signers,
    ) -> Result<Option<Self>, PolicyError> {
        let refused = |name: &str, why: String| PolicyError::Unsigned {
            path: path.join(name),
            why,
        };
        let Some(manifest) = &directory.manifest else {
            return Ok(None);
        };
        let Some(signature) = &directory.signature else {
            let why = format!(
                "it is not there; sign the manifest with `ssh-keygen -Y sign -f KEY -n {NAMESPACE} {MANIFEST}`"
            );
            return Err(refused(SIGNATURE, why));
        };
        let signer = signers
            .verify(NAMESPACE, manifest, signature)
            .map_err(|error| {
                refused(
                    SIGNATURE,
                    format!("{error}; sign the manifest again, by a key of `signers`"),
                )
            })?;
        let read = Manifest::parse(manifest).map_err(|why| refused(MANIFEST, why))?;
        let expires = read.expires().map_err(|why| refused(MANIFEST, why))?;
        read.check(&directory.files)
            .map_err(|(name, why)| refused(&name, why))?;
        Ok(Some(Self {
            serial: read.serial,
            digest: Sha256::digest(manifest).into(),
            signer,
            expires: expires.map(Timestamp::as_second),
            files: directory.files.clone(),
        }))
    }
}

impl Manifest {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let text = str::from_utf8(bytes).map_err(|_| "it is no text".to_owned())?;
        toml::from_str(text).map_err(|error| {
            let why = error.message().trim_end();
            format!("{why}; write it with `mlskeyctl policy manifest`")
        })
    }

    pub(crate) fn expires(&self) -> Result<Option<Timestamp>, String> {
        let Some(text) = &self.expires else {
            return Ok(None);
        };
        let moment = text.parse().map_err(|_| {
            format!("`expires` is no moment in UTC, such as \"2027-01-01T00:00:00Z\": {text:?}")
        })?;
        Ok(Some(moment))
    }

    /// Are these all of its files, as they were signed, and no others? If not, which one
    /// is not, and why.
    pub(crate) fn check(&self, files: &PolicyFiles) -> Result<(), (String, String)> {
        let wrong = |name: &String, why: &str| Err((name.clone(), why.to_owned()));
        for (name, text) in &files.0 {
            match self.files.get(name) {
                None => {
                    return wrong(
                        name,
                        "the manifest does not list it; take it away, or make the manifest anew and sign it",
                    );
                }
                Some(listed) if *listed != hash(text) => {
                    return wrong(
                        name,
                        "it is not as the manifest has it; put back what was signed, or make the manifest anew and sign it",
                    );
                }
                Some(_) => {}
            }
        }
        for name in self.files.keys() {
            if !is_policy_file(name) {
                return wrong(
                    name,
                    "the manifest lists it, and it is no file of policies (*.cedar)",
                );
            }
            if !files.0.contains_key(name) {
                return wrong(
                    name,
                    "the manifest lists it, and it is not there; put it back, or make the manifest anew and sign it",
                );
            }
        }
        Ok(())
    }

    /// The text of a manifest.
    pub(crate) fn write(
        serial: u64,
        expires: Option<Timestamp>,
        files: &PolicyFiles,
    ) -> Result<String, String> {
        let mut text = format!("serial = {serial}\n");
        if let Some(expires) = expires {
            let _ = writeln!(text, "expires = \"{expires}\"");
        }
        text.push_str("\n[files]\n");
        for (name, policies) in &files.0 {
            // So that nobody reads another name than is meant.
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_. +@".contains(c);
            if !name.chars().all(is_plain) {
                return Err(format!(
                    "{name:?} cannot be listed: name it with letters, digits and `-_. +@`"
                ));
            }
            let _ = writeln!(text, "\"{name}\" = \"{}\"", hash(policies));
        }
        Ok(text)
    }
}

fn hash(text: &str) -> String {
    format!("{SHA256}{}", hex::encode(Sha256::digest(text)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signers::tests::Key;

    fn files(files: &[(&str, &str)]) -> PolicyFiles {
        let files = files.iter();
        PolicyFiles(
            files
                .map(|(name, text)| ((*name).into(), (*text).into()))
                .collect(),
        )
    }

    fn directory(manifest: &str, signature: &str, of: &[(&str, &str)]) -> Directory {
        Directory {
            files: files(of),
            manifest: Some(manifest.into()),
            signature: Some(signature.into()),
        }
    }

    #[test]
    fn a_set_is_as_it_was_signed_or_none() {
        let key = Key::new(1);
        let signers = Signers::parse([key.line().as_str()]).unwrap();
        let whole = [("10.cedar", "one"), ("20.cedar", "two")];
        let expires = "2027-01-01T00:00:00Z".parse().unwrap();
        let manifest = Manifest::write(7, Some(expires), &files(&whole)).unwrap();
        let signature = key.sign(NAMESPACE, manifest.as_bytes());
        let verify = |directory: &Directory| {
            SignedSet::verify(Path::new("/d"), directory, &signers).map_err(|it| it.to_string())
        };
        let set = verify(&directory(&manifest, &signature, &whole));
        let set = set.unwrap().unwrap();
        assert_eq!((set.serial, set.expires), (7, Some(1_798_761_600)));
        assert_eq!(set.files, files(&whole));

        let other = manifest.replace("= 7", "= 8");
        for (directory, why) in [
            (
                directory(&manifest, &signature, &[("10.cedar", "one")]),
                "/d/20.cedar: the manifest lists it, and it is not there",
            ),
            (
                directory(&manifest, &signature, &[("10.cedar", "One"), whole[1]]),
                "/d/10.cedar: it is not as the manifest has it",
            ),
            (
                directory(
                    &manifest,
                    &signature,
                    &[whole[0], whole[1], ("30.cedar", "")],
                ),
                "/d/30.cedar: the manifest does not list it",
            ),
            (
                directory(&other, &signature, &whole),
                "/d/manifest.toml.sig: it is not of this content",
            ),
            (
                Directory {
                    signature: None,
                    ..directory(&manifest, "", &whole)
                },
                "/d/manifest.toml.sig: it is not there; sign the manifest",
            ),
        ] {
            let error = verify(&directory).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let none = Directory {
            manifest: None,
            ..directory("", &signature, &whole)
        };
        assert_eq!(verify(&none), Ok(None));
    }

    #[test]
    fn a_signed_manifest_that_says_something_else_is_refused() {
        let key = Key::new(1);
        let signers = Signers::parse([key.line().as_str()]).unwrap();
        for (manifest, why) in [
            ("serial = 1", "missing field `files`"),
            ("[files]", "missing field `serial`"),
            ("serial = -1\n[files]", "manifest.toml"),
            (
                "serial = 1\nonly = [\"a\"]\n[files]",
                "unknown field `only`",
            ),
            (
                "serial = 1\nexpires = \"soon\"\n[files]",
                "`expires` is no moment",
            ),
            (
                "serial = 1\n[files]\n\"a/b.cedar\" = \"sha256:00\"",
                "it is not there",
            ),
            (
                "serial = 1\n[files]\n\"cases.toml\" = \"sha256:00\"",
                "no file of policies",
            ),
        ] {
            let signature = key.sign(NAMESPACE, manifest.as_bytes());
            let directory = directory(manifest, &signature, &[]);
            let error = SignedSet::verify(Path::new("/d"), &directory, &signers);
            let error = error.unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let odd = files(&[("a\"b.cedar", "")]);
        assert!(Manifest::write(1, None, &odd).is_err());
    }
}
