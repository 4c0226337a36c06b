//! What a key is bound to beside the TPM: the machine's measurements.
//!
//! Such a key is used in a session that has gone one of these ways, each of which
//! also takes the key's authorisation value (TPM 2.0 Library, Part 3, 23):
//!
//! ```text
//! PolicyOR
//!   PolicyPCR(the registers, as they were when it was made)   PolicyAuthValue
//!   PolicyAuthorize(the recovery key, REFERENCE)               PolicyAuthValue
//!   PolicyCommandCode(TPM2_Certify)                            PolicyAuthValue
//! ```
//!
//! The second one is for other measurements, which the holder of the recovery key
//! has approved (`approval`). The third one lets the TPM tell others of the key, for
//! which nothing is done with it.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tss_esapi::Result;
use tss_esapi::constants::CommandCode;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, DigestList, PcrSelectSize, PcrSelectionList, PcrSlot};

use super::approval::Approvals;
use super::connection::{Connection, Secrecy};
use super::failure;
use crate::config::Pcrs;
use crate::devices::DeviceError;

/// SHA-256.
pub(super) type Hash = [u8; 32];

/// What every policy begins with.
const EMPTY: Hash = [0; 32];

// `TPM_CC` (Part 2, 6.5.2).
const CC_CERTIFY: u32 = 0x148;
const CC_POLICY_AUTHORIZE: u32 = 0x16a;
const CC_POLICY_AUTH_VALUE: u32 = 0x16b;
const CC_POLICY_COMMAND_CODE: u32 = 0x16c;
const CC_POLICY_OR: u32 = 0x171;
const CC_POLICY_PCR: u32 = 0x17f;

/// `TPM_ALG_SHA256`.
const SHA256: [u8; 2] = [0, 0x0b];

/// What is approved for one TPM is not for another.
const REFERENCE: &[u8] = b"mlskeyd 1 tpm2 approved measurements";

/// How often the registers are looked at anew while they change.
const TRIES: usize = 3;

/// Registers of the TPM and what they hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Measured {
    pub(super) pcrs: Pcrs,
    /// The hash of their values in the order of their numbers.
    pub(super) digest: Hash,
}

/// The policy of a key. It is on disks for years, in the key's blob, so it never
/// changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Policy {
    /// As it was when the key was made.
    pub(super) measured: Measured,
    /// The recovery key: the hash of its public area, which is its Name without
    /// the algorithm.
    pub(super) recovery: Hash,
}

/// What an approval is for beside the measurements: the TPM with this storage key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reference(Hash);

impl Reference {
    pub(super) fn of(parent_name: &[u8]) -> Self {
        let hash = Sha256::new_with_prefix(REFERENCE);
        Self(hash.chain_update(parent_name).finalize().into())
    }

    pub(super) const fn as_bytes(&self) -> &Hash {
        &self.0
    }
}

impl Measured {
    /// These values of these registers.
    pub(super) fn of(pcrs: Pcrs, values: &[(u8, Hash)]) -> Self {
        let mut hash = Sha256::new();
        for (_, value) in values {
            hash.update(value);
        }
        let digest = hash.finalize().into();
        Self { pcrs, digest }
    }

    /// The policy that these measurements alone satisfy: what is approved.
    pub(super) fn policy(&self) -> Hash {
        let [a, b, c] = self.pcrs.select();
        let [hash, algorithm] = SHA256;
        let selection = [0, 0, 0, 1, hash, algorithm, 3, a, b, c];
        extended(&EMPTY, CC_POLICY_PCR, &[&selection, &self.digest])
    }
}

impl Policy {
    /// Of the object that it is for (`authPolicy`).
    pub(super) fn digest(&self, reference: &Reference) -> Hash {
        let [measured, approved, certified] = self.branches(reference);
        extended(&EMPTY, CC_POLICY_OR, &[&measured, &approved, &certified])
    }

    /// The Name of the recovery key (Part 1, 16).
    fn recovery_name(&self) -> Vec<u8> {
        [&SHA256[..], &self.recovery].concat()
    }

    /// The ways, in the order in which `PolicyOR` has them.
    pub(super) fn branches(&self, reference: &Reference) -> [Hash; 3] {
        let name = self.recovery_name();
        let approver = extended(&EMPTY, CC_POLICY_AUTHORIZE, &[&name]);
        let approved: Hash = Sha256::new_with_prefix(approver)
            .chain_update(reference.as_bytes())
            .finalize()
            .into();
        let certify = CC_CERTIFY.to_be_bytes();
        let certified = extended(&EMPTY, CC_POLICY_COMMAND_CODE, &[&certify]);
        [self.measured.policy(), approved, certified]
            .map(|way| extended(&way, CC_POLICY_AUTH_VALUE, &[]))
    }
}

/// `PolicyUpdate` (Part 3, 23.2.3) without a reference.
fn extended(policy: &Hash, command: u32, arguments: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new_with_prefix(policy);
    hash.update(command.to_be_bytes());
    for argument in arguments {
        hash.update(argument);
    }
    hash.finalize().into()
}

impl Connection {
    /// What these registers hold now.
    pub(super) fn measure(&mut self, pcrs: Pcrs) -> std::result::Result<Measured, DeviceError> {
        Ok(Measured::of(pcrs, &self.values(pcrs)?))
    }

    /// The same, one by one. A TPM gives eight at most at once.
    pub(super) fn values(
        &mut self,
        pcrs: Pcrs,
    ) -> std::result::Result<Vec<(u8, Hash)>, DeviceError> {
        let mut values = Vec::new();
        let mut count = None;
        let numbers: Vec<_> = pcrs.numbers().collect();
        for some in numbers.chunks(8) {
            // Over the session, so that nobody in between answers in its place.
            let read = self.run(Secrecy::Vouched, |context| {
                let (changes, _, read) = context.pcr_read(selection(some.iter().copied())?)?;
                Ok((changes, read))
            });
            let (changes, read) = read.map_err(|error| self.describe(error))?;
            // They have to have been so at one time.
            if count
                .replace(changes)
                .is_some_and(|before| before != changes)
            {
                return Err(unsteady(pcrs));
            }
            if read.len() != some.len() {
                return Err(DeviceError::Failed {
                    reason: format!("the TPM does not keep {pcrs} in SHA-256"),
                });
            }
            for (&number, value) in some.iter().zip(read.value()) {
                let value = Hash::try_from(value.value()).map_err(|_| failure::no_answer())?;
                values.push((number, value));
            }
        }
        Ok(values)
    }

    /// A session in which a key with this policy may be used, once.
    pub(super) fn satisfy(
        &mut self,
        policy: &Policy,
        approvals: &mut Approvals,
    ) -> std::result::Result<AuthSession, DeviceError> {
        let reference = self.reference();
        let (session, measured) = self.satisfy_measured(policy, approvals)?;
        if measured.digest != policy.measured.digest {
            let approved = approvals.find(&measured, &reference, &policy.recovery);
            let approval = approved.ok_or(DeviceError::OtherMeasurements {
                pcrs: measured.pcrs,
            })?;
            let ticket = approvals.ticket(self, &approval)?;
            let authorized = self.noted_without_session(|context| {
                context.policy_authorize(
                    session,
                    Digest::try_from(measured.policy().as_slice())?,
                    reference.as_bytes().as_slice().try_into()?,
                    &policy.recovery_name().try_into()?,
                    ticket.try_into()?,
                )
            });
            authorized.map_err(|error| self.describe(error))?;
        }
        self.finish(session, policy)
    }

    /// A session in which the TPM may tell others of a key with this policy, once.
    pub(super) fn satisfy_certify(
        &mut self,
        policy: &Policy,
    ) -> std::result::Result<AuthSession, DeviceError> {
        let begun = self.begin().and_then(|session| {
            self.noted_without_session(|context| {
                context.policy_command_code(session, CommandCode::Certify)
            })?;
            Ok(session)
        });
        let session = begun.map_err(|error| self.describe(error))?;
        self.finish(session, policy)
    }

    pub(super) fn reference(&self) -> Reference {
        Reference::of(self.parent_name())
    }

    /// A session that has seen the measurements of now: those of the key, or what
    /// was found before, or what the registers hold.
    fn satisfy_measured(
        &mut self,
        policy: &Policy,
        approvals: &mut Approvals,
    ) -> std::result::Result<(PolicySession, Measured), DeviceError> {
        let pcrs = policy.measured.pcrs;
        let mut measured = approvals.last_seen(pcrs).unwrap_or(policy.measured);
        for _ in 0..TRIES {
            let begun = self.begin().and_then(|session| {
                let seen = self.has_measured(session, &measured)?;
                Ok(seen.then_some(session))
            });
            if let Some(session) = begun.map_err(|error| self.describe(error))? {
                return Ok((session, measured));
            }
            measured = self.measure(pcrs)?;
            approvals.see(measured);
        }
        Err(unsteady(pcrs))
    }

    /// Do the registers hold this?
    fn has_measured(&mut self, session: PolicySession, measured: &Measured) -> Result<bool> {
        let seen = self.noted_without_session(|context| {
            let digest = Digest::try_from(measured.digest.as_slice())?;
            context.policy_pcr(session, digest, selection(measured.pcrs.numbers())?)
        });
        match seen {
            Err(error) if failure::is_of_parameter(error) => Ok(false),
            seen => seen.map(|()| true),
        }
    }

    /// The session, as if it were new. It is kept for the next use.
    fn begin(&mut self) -> Result<PolicySession> {
        if let Some(session) = self.policy_session {
            self.noted_without_session(|context| context.policy_restart(session))?;
            return Ok(session);
        }
        let session = self.start_policy_session(Some(self.parent()))?;
        self.policy_session = Some(session);
        Ok(session)
    }

    /// The last steps, which are the same on all ways.
    fn finish(
        &mut self,
        session: PolicySession,
        policy: &Policy,
    ) -> std::result::Result<AuthSession, DeviceError> {
        let branches = policy.branches(&self.reference());
        let done = self.noted_without_session(|context| {
            context.policy_auth_value(session)?;
            let mut digests = DigestList::new();
            for branch in branches {
                digests.add(Digest::try_from(branch.as_slice())?)?;
            }
            context.policy_or(session, digests)
        });
        done.map_err(|error| self.describe(error))?;
        Ok(session.into())
    }
}

fn unsteady(pcrs: Pcrs) -> DeviceError {
    DeviceError::Failed {
        reason: format!("{pcrs} of the TPM does not stay as it is"),
    }
}

fn selection(numbers: impl Iterator<Item = u8>) -> Result<PcrSelectionList> {
    let slots = numbers.map(|number| {
        let bit = 1_u32.checked_shl(number.into()).unwrap_or_default();
        PcrSlot::try_from(bit)
    });
    let slots: Result<Vec<_>> = slots.collect();
    PcrSelectionList::builder()
        .with_size_of_select(PcrSelectSize::ThreeOctets)
        .with_selection(HashingAlgorithm::Sha256, &slots?)
        .build()
}
