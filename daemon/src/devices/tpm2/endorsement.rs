//! The endorsement keys of a TPM, and what their maker left in its permanent
//! memory to certify them (TCG EK Credential Profile for TPM 2.0, 2.2).

use tss_esapi::constants::PropertyTag;
use tss_esapi::handles::{
    KeyHandle, NvIndexHandle, NvIndexTpmHandle, PersistentTpmHandle, TpmHandle,
};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::{Hierarchy, NvAuth};
use tss_esapi::structures::{
    Digest, EccParameter, EccPoint, EccScheme, KeyDerivationFunctionScheme, Public, PublicBuilder,
    PublicEccParameters, PublicKeyRsa, PublicRsaParameters, RsaExponent, RsaScheme,
    SymmetricDefinitionObject,
};
use tss_esapi::traits::Marshall;
use tss_esapi::{Error, Result};

use super::capabilities::property;
use super::connection::{Connection, Secrecy};
use super::failure::{self, Verdict, misfit};
use crate::attest::HexBytes;
use crate::attest::MAX_INTERMEDIATES;
use crate::attest::tpm::{EkKind, endorsement};
use crate::devices::DeviceError;

/// The first of the indices with certificates between a TPM's and its maker's root.
const CHAIN: u32 = 0x01c0_0100;

/// Most of these that are read.
const CHAIN_INDICES: u32 = 8;

/// Longest content of one index that is read.
const MAX_INDEX: u16 = 8192;

/// So much is read at once of a TPM that does not say how much it gives, and at most.
const CHUNK: u32 = 512;

/// At least: nobody on the way to the TPM, who may change what it says of that, makes one
/// index thousands of commands.
const LEAST_CHUNK: u32 = 64;

/// A kind of endorsement key.
struct Place {
    kind: EkKind,
    /// The index of its certificate.
    certificate: u32,
    /// Where systems keep the key (TCG Provisioning Guidance, 7.8).
    persistent: u32,
}

/// The ones that take no time to make first.
const PLACES: [Place; 2] = [
    Place {
        kind: EkKind::EccP256,
        certificate: 0x01c0_000a,
        persistent: 0x8101_0002,
    },
    Place {
        kind: EkKind::Rsa2048,
        certificate: 0x01c0_0002,
        persistent: 0x8101_0001,
    },
];

impl Connection {
    /// The certificate that its maker gave it, and the public area of the endorsement key
    /// that it is for. Whoever has the owner's password can put something into these indices: so it
    /// counts only if it is for the key that the TPM has.
    pub(super) fn certified(&mut self) -> std::result::Result<(Vec<u8>, Vec<u8>), DeviceError> {
        let mut foreign = None;
        for place in &PLACES {
            let Some(content) = self.read_certificates(place.certificate)? else {
                continue;
            };
            let Some((certificate, _)) = first_der(&content) else {
                continue;
            };
            let public = self.with_endorsement_key(place.kind, |_, _, public| Ok(public))?;
            if endorsement::is_certified(&public, certificate) {
                return Ok((certificate.to_vec(), public));
            }
            foreign = Some(place.certificate);
        }
        Err(DeviceError::NotAttested {
            reason: match foreign {
                Some(index) => format!(
                    "what is in the TPM's NV index {index:#010x} is no certificate that can be read of the endorsement key that the TPM makes by the TCG's default template"
                ),
                None => {
                    "the TPM has no certificate of its maker's (NV index 0x01c0000a or 0x01c00002)"
                        .to_owned()
                }
            },
        })
    }

    /// Has it a certificate for an endorsement key of this kind? Asked before the key is
    /// made, which takes some TPMs minutes.
    pub(super) fn has_certificate(
        &mut self,
        kind: EkKind,
    ) -> std::result::Result<bool, DeviceError> {
        let mut places = PLACES.iter();
        let Some(place) = places.find(|place| place.kind == kind) else {
            return Ok(false);
        };
        Ok(self.read_certificates(place.certificate)?.is_some())
    }

    /// The certificates between that one and its maker's root, as far as they are
    /// there. They may begin in one index and end in the next.
    pub(super) fn chain(&mut self) -> std::result::Result<Vec<HexBytes>, DeviceError> {
        let mut content = Vec::new();
        for index in (CHAIN..).take(usize::try_from(CHAIN_INDICES).unwrap_or_default()) {
            match self.read_certificates(index)? {
                Some(more) => content.extend(more),
                None => break,
            }
        }
        let mut rest = content.as_slice();
        let mut chain = Vec::new();
        while let Some((certificate, after)) = first_der(rest) {
            if chain.len() == MAX_INTERMEDIATES {
                break;
            }
            chain.push(HexBytes(certificate.to_vec()));
            rest = after;
        }
        Ok(chain)
    }

    /// Does something with an endorsement key: its handle, and its public area.
    pub(super) fn with_endorsement_key<T>(
        &mut self,
        kind: EkKind,
        work: impl FnOnce(&mut Self, KeyHandle, Vec<u8>) -> std::result::Result<T, DeviceError>,
    ) -> std::result::Result<T, DeviceError> {
        let kept = self.persistent(kind);
        match kept.map_err(|error| self.describe(error))? {
            Some((handle, public)) => {
                let done = work(self, handle, public);
                self.close(handle.into());
                done
            }
            None => {
                let template = template(kind).map_err(failure::describe)?;
                self.with_primary(&template, work)
            }
        }
    }

    /// Does something with a primary key of the endorsement hierarchy, which the TPM
    /// makes for that: its handle, and its public area.
    pub(super) fn with_primary<T>(
        &mut self,
        template: &Public,
        work: impl FnOnce(&mut Self, KeyHandle, Vec<u8>) -> std::result::Result<T, DeviceError>,
    ) -> std::result::Result<T, DeviceError> {
        let made = self.run_with_room(Secrecy::Nothing, |context| {
            let hierarchy = Hierarchy::Endorsement;
            context.create_primary(hierarchy, template.clone(), None, None, None, None)
        });
        let made = made.map_err(|error| self.describe_endorsement(error))?;
        let done = match made.out_public.marshall() {
            Ok(public) => work(self, made.key_handle, public),
            Err(error) => Err(failure::describe(error)),
        };
        self.flush(made.key_handle.into());
        done
    }

    /// What is said of an error where the endorsement hierarchy is used.
    pub(super) fn describe_endorsement(&mut self, error: Error) -> DeviceError {
        if failure::verdict(error) != Verdict::WrongAuth {
            return self.describe(error);
        }
        DeviceError::NotAttested {
            reason: "the TPM's endorsement hierarchy has a password, which mlskeyd does not take; remove it with `tpm2_changeauth -c endorsement -p PASSWORD`".to_owned(),
        }
    }

    /// The endorsement key that the system keeps in the TPM, if it is the one that
    /// would be made.
    fn persistent(&mut self, kind: EkKind) -> Result<Option<(KeyHandle, Vec<u8>)>> {
        let Some(place) = PLACES.iter().find(|place| place.kind == kind) else {
            return Ok(None);
        };
        let handle = TpmHandle::Persistent(PersistentTpmHandle::new(place.persistent)?);
        let Some(found) = self.find(handle)? else {
            return Ok(None);
        };
        let public = self.noted_without_session(|context| {
            let (public, _, _) = context.read_public(KeyHandle::from(found))?;
            public.marshall()
        });
        match public {
            Ok(public) if endorsement::kind(&public) == Some(kind) => {
                Ok(Some((found.into(), public)))
            }
            public => {
                self.close(found);
                public.map(|_| None)
            }
        }
    }

    /// What is in an index that anybody may read.
    fn read_certificates(
        &mut self,
        index: u32,
    ) -> std::result::Result<Option<Vec<u8>>, DeviceError> {
        let read = (|| {
            let handle = TpmHandle::NvIndex(NvIndexTpmHandle::new(index)?);
            let Some(found) = self.find(handle)? else {
                return Ok(None);
            };
            let content = self.read_whole(found.into());
            self.close(found);
            content.map(Some)
        })();
        match read {
            Err(error) if failure::verdict(error) == Verdict::NeverWritten => Ok(None),
            read => read.map_err(|error| self.describe(error)),
        }
    }

    fn read_whole(&mut self, index: NvIndexHandle) -> Result<Vec<u8>> {
        let (public, _) = self.noted_without_session(|context| context.nv_read_public(index))?;
        let most =
            self.noted_without_session(|context| property(context, PropertyTag::NvBufferMax))?;
        let chunk = most.unwrap_or(CHUNK).clamp(LEAST_CHUNK, CHUNK);
        let chunk = u16::try_from(chunk).map_err(|_| misfit())?;
        let length = u16::try_from(public.data_size())
            .unwrap_or(MAX_INDEX)
            .min(MAX_INDEX);
        let mut content = Vec::new();
        let mut offset = 0;
        while offset < length {
            let size = length.saturating_sub(offset).min(chunk);
            let part = self.run(Secrecy::Nothing, |context| {
                context.nv_read(NvAuth::NvIndex(index), index, size, offset)
            })?;
            if part.value().len() != usize::from(size) {
                return Err(misfit());
            }
            content.extend_from_slice(part.value());
            offset = offset.saturating_add(size);
        }
        Ok(content)
    }
}

/// The TCG's templates L-1 and L-2 (B.3.3 and B.3.4).
fn template(kind: EkKind) -> Result<Public> {
    let builder = PublicBuilder::new()
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(endorsement::ATTRIBUTES.into())
        .with_auth_policy(Digest::try_from(endorsement::POLICY.as_slice())?);
    let symmetric = SymmetricDefinitionObject::AES_128_CFB;
    match kind {
        EkKind::Rsa2048 => builder
            .with_public_algorithm(PublicAlgorithm::Rsa)
            .with_rsa_parameters(PublicRsaParameters::new(
                symmetric,
                RsaScheme::Null,
                RsaKeyBits::Rsa2048,
                RsaExponent::ZERO_EXPONENT,
            ))
            .with_rsa_unique_identifier(PublicKeyRsa::new_empty_with_size(RsaKeyBits::Rsa2048))
            .build(),
        EkKind::EccP256 => {
            let zeros = || EccParameter::try_from(vec![0; 32]);
            builder
                .with_public_algorithm(PublicAlgorithm::Ecc)
                .with_ecc_parameters(PublicEccParameters::new(
                    symmetric,
                    EccScheme::Null,
                    EccCurve::NistP256,
                    KeyDerivationFunctionScheme::Null,
                ))
                .with_ecc_unique_identifier(EccPoint::new(zeros()?, zeros()?))
                .build()
        }
    }
}

/// The first certificate (any DER `SEQUENCE`), and what comes after it. What else is
/// in an index is padding.
fn first_der(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (head, content) = match *bytes {
        [0x30, length @ 0..=0x7f, ..] => (2_usize, usize::from(length)),
        [0x30, 0x81, length, ..] => (3, usize::from(length)),
        [0x30, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        _ => return None,
    };
    bytes.split_at_checked(head.checked_add(content)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_in_a_row_are_told_apart_and_from_what_follows() {
        let short = [0x30, 2, 7, 7];
        let middle = [&[0x30, 0x81, 0x80][..], &[8; 0x80]].concat();
        let long = [&[0x30, 0x82, 1, 2][..], &[9; 0x102]].concat();
        let padded = [&short[..], &middle, &long, &[0xff; 5]].concat();
        let mut rest = padded.as_slice();
        for expected in [&short[..], &middle, &long] {
            let (found, after) = first_der(rest).unwrap();
            assert_eq!(found, expected);
            rest = after;
        }
        assert_eq!(first_der(rest), None);
        for cut in [&[0x30][..], &short[..3], &middle[..50], &[0x30, 0x82, 1]] {
            assert_eq!(first_der(cut), None);
        }
    }

    #[test]
    fn the_templates_are_those_that_a_verifier_knows() {
        for place in &PLACES {
            let mut template = template(place.kind).unwrap().marshall().unwrap();
            if place.kind == EkKind::EccP256 {
                // With any point of the curve in it.
                let key = p256::SecretKey::from_slice(&[7; 32]).unwrap().public_key();
                let point =
                    p256::elliptic_curve::sec1::ToEncodedPoint::to_encoded_point(&key, false);
                let at = template.len() - 68;
                template[at + 2..at + 34].copy_from_slice(point.x().unwrap());
                template[at + 36..].copy_from_slice(point.y().unwrap());
            } else {
                let at = template.len() - 256;
                template[at..].fill(0xff);
            }
            assert_eq!(endorsement::kind(&template), Some(place.kind));
        }
    }
}
