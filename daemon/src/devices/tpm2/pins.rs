//! Keys with a PIN of their own, and the TPM's lockout.
//!
//! The authorisation value of such a key follows from its generation's secret and
//! the PIN, so that nobody who has only the TPM and the key's blob can even try a
//! PIN, and no PIN goes to the TPM. The TPM counts wrong values: together with those
//! of everybody else who uses it, and when there were too many it refuses all that
//! are counted for some time. Keys without a PIN go on.
//!
//! What is noted on disk of a PIN that was tried (`pin_note`) is of the
//! authorisation value in its place: without the generation's secret it says nothing
//! of the PIN, and of one that was right there is no note.

use std::collections::{BTreeMap, BTreeSet};

use mlskeyd_protocol::v1::SecretBytes;
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::handles::AuthHandle;
use tss_esapi::structures::{CapabilityData, Digest, Nonce, TaggedProperty};
use tss_esapi::{Error, Result, WrapperErrorKind};
use zeroize::Zeroizing;

use super::Open;
use super::connection::{Connection, Secrecy, session_handle};
use super::failure::{self, Verdict};
use super::files::Files;
use super::keys::Usable;
use super::loaded::Name;
use crate::devices::pin_note::Known;
use crate::devices::{DeviceError, Fact, KeyId, StoredKey};
use crate::failpoint;

/// The authorisation value of a key with a PIN.
pub(super) type PinAuth = Zeroizing<[u8; 32]>;

/// The name of the fact that shows a lockout.
const LOCKOUT: &str = "lockout";

/// The keys with a PIN that somebody unlocked, as long as the daemon runs. Their values
/// are in places of their own: the map moves what is in it, and would leave copies.
#[derive(Default)]
pub(super) struct Unlocked(BTreeMap<Name, Box<PinAuth>>);

impl Unlocked {
    /// What a key is used with: `None` for one without a PIN.
    pub(super) fn auth_of(
        &self,
        key: &StoredKey,
    ) -> std::result::Result<Option<PinAuth>, DeviceError> {
        if !key.pin {
            return Ok(None);
        }
        let auth = self.0.get(&(key.generation, key.id));
        let auth = auth.ok_or_else(|| locked("it waits for its PIN".to_owned()))?;
        Ok(Some(PinAuth::clone(auth)))
    }

    pub(super) fn contains(&self, name: Name) -> bool {
        self.0.contains_key(&name)
    }

    pub(super) fn insert(&mut self, name: Name, auth: PinAuth) {
        self.0.insert(name, Box::new(auth));
    }

    /// Locks the keys that this is true of.
    pub(super) fn remove(&mut self, is_one: impl Fn(Name) -> bool) {
        self.0.retain(|name, _| !is_one(*name));
    }

    pub(super) fn keys(&self) -> BTreeSet<KeyId> {
        self.0.keys().map(|(_, key)| *key).collect()
    }
}

impl Open {
    /// Tries a PIN, once, and notes before that it is tried. The authorisation value,
    /// if it is right.
    pub(super) fn try_pin(
        &mut self,
        files: &Files,
        key: &StoredKey,
        pin: &SecretBytes,
        last_try: bool,
    ) -> std::result::Result<PinAuth, DeviceError> {
        let auth = self.generations.secret(key.generation)?;
        let auth = auth.of_key_with_pin(key.id, pin)?;
        let (note, of_key) = (files.pin_note(key.generation), key.id.to_string());
        let noted = SecretBytes::new(auth.to_vec());
        let before = note.read(&of_key, &noted).map_err(of_note)?;
        let tried = before
            .tried()
            .ok_or_else(|| {
                locked("this PIN was wrong before: give another one (or give the identity a new key, `mlskeyctl identities rotate`)".to_owned())
            })?;
        let lockout = self.connection.lockout();
        let lockout = lockout.map_err(|error| self.connection.describe(error))?;
        lockout.permits_a_try(last_try)?;

        let name = (key.generation, key.id);
        // With whatever value it may be loaded.
        self.connection.unload(|loaded| loaded == name);
        let behind = self.behind(key, Some(&auth))?;
        let usable = self.usable(key, &behind)?;
        let usable = usable.map_err(|error| self.connection.describe(error))?;
        note.write(&of_key, &noted, tried).map_err(of_note)?;
        failpoint::hit("tpm2.pin-noted");
        let proved = self.connection.prove(usable);
        failpoint::hit("tpm2.pin-tried");
        let error = match proved {
            Ok(()) => {
                note.forget().map_err(of_note)?;
                return Ok(auth);
            }
            Err(error) => error,
        };
        self.connection.unload(|loaded| loaded == name);
        match failure::verdict(error) {
            Verdict::WrongAuth => {
                note.write(&of_key, &noted, Known::Wrong).map_err(of_note)?;
                let lockout = self.connection.lockout();
                let lockout = lockout.map_err(|error| self.connection.describe(error))?;
                Err(locked(format!("the PIN is wrong; {}", lockout.left_text())))
            }
            verdict => {
                // Then it has not looked at it.
                if matches!(
                    verdict,
                    Verdict::LockedOut | Verdict::Stale | Verdict::Measuring
                ) {
                    note.write(&of_key, &noted, before).map_err(of_note)?;
                }
                Err(self.connection.describe(error))
            }
        }
    }
}

impl Connection {
    /// Is the authorisation value right that a key is loaded with? A wrong one is
    /// counted. What the TPM does for it is of use to nobody: it satisfies a policy
    /// that nothing has.
    fn prove(&mut self, key: Usable) -> Result<()> {
        let policy = self.start_policy_session(None)?;
        let proved = self.run_with(key.session, Secrecy::Nothing, None, |context| {
            context.policy_secret(
                policy,
                AuthHandle::from(key.handle),
                Nonce::default(),
                Digest::default(),
                Nonce::default(),
                None,
            )
        });
        self.flush(session_handle(policy.into()));
        proved.map(|_| ())
    }

    /// How the TPM counts, as it is now.
    pub(super) fn lockout(&mut self) -> Result<Lockout> {
        Ok(Lockout {
            failed: self.vouched(PropertyTag::LockoutCounter)?,
            most: self.vouched(PropertyTag::MaxAuthFail)?,
            interval: self.vouched(PropertyTag::LockoutInterval)?,
        })
    }

    /// A property over the session, so that nobody in between answers in the TPM's
    /// place: it decides whether a try is spent.
    fn vouched(&mut self, tag: PropertyTag) -> Result<u32> {
        let (found, _) = self.run(Secrecy::Vouched, |context| {
            context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
        })?;
        let value = match &found {
            CapabilityData::TpmProperties(list) => list.find(tag).map(TaggedProperty::value),
            _ => None,
        };
        value.ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))
    }

    /// The error of a TPM that is locked out.
    pub(super) fn locked_out(&mut self, error: Error) -> DeviceError {
        match self.lockout() {
            Ok(lockout) => lockout.error(),
            Err(_) => failure::describe(error),
        }
    }
}

/// How the TPM counts wrong authorisation values, of whoever uses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lockout {
    /// So many are counted.
    failed: u32,
    /// From so many on it refuses all.
    most: u32,
    /// After so many seconds one of them is forgotten.
    interval: u32,
}

impl Lockout {
    const fn left(self) -> u32 {
        self.most.saturating_sub(self.failed)
    }

    /// May a PIN be tried?
    fn permits_a_try(self, last_try: bool) -> std::result::Result<(), DeviceError> {
        match self.left() {
            0 => Err(self.error()),
            1 if !last_try => Err(locked(format!(
                "one more wrong PIN locks the TPM for {} s, for everybody whose wrong passwords it \
                 counts; see that this one is right, then give it with --last-try",
                self.interval
            ))),
            _ => Ok(()),
        }
    }

    fn left_text(self) -> String {
        match self.left() {
            0 => format!("that was the last try: {}", self.text()),
            1 => "one more would lock the TPM".to_owned(),
            left => format!("{left} tries are left before the TPM locks itself"),
        }
    }

    fn text(self) -> String {
        format!(
            "after {} wrong passwords, or losses of power, the TPM refuses keys with a PIN; \
             every {} s it forgets one of them, and all if the owner of its lockout hierarchy runs \
             `tpm2_dictionarylockout --clear-lockout`; keys without a PIN go on",
            self.failed, self.interval
        )
    }

    fn error(self) -> DeviceError {
        DeviceError::LockedOut {
            reason: self.text(),
        }
    }

    /// What is shown of it, if it is to be known.
    pub(super) fn fact(self) -> Option<Fact> {
        (self.left() == 0).then(|| Fact {
            name: LOCKOUT.to_owned(),
            value: self.text(),
        })
    }
}

/// Is a lockout shown?
pub(super) fn shows_lockout(facts: &[Fact]) -> bool {
    facts.iter().any(|fact| fact.name == LOCKOUT)
}

const fn locked(reason: String) -> DeviceError {
    DeviceError::KeyLocked { reason }
}

fn of_note(source: std::io::Error) -> DeviceError {
    DeviceError::Io {
        what: "noting which PIN was tried",
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn lockout(failed: u32, most: u32) -> Lockout {
        Lockout {
            failed,
            most,
            interval: 600,
        }
    }

    #[test]
    fn the_last_try_is_kept_and_none_is_made_in_a_lockout() {
        for (failed, most, last_try, permitted) in [
            (0, 3, false, true),
            (1, 3, false, true),
            (2, 3, false, false),
            (2, 3, true, true),
            (3, 3, true, false),
            (4, 3, true, false),
            (0, 1, false, false),
            (0, 0, true, false),
        ] {
            let tried = lockout(failed, most).permits_a_try(last_try);
            assert_eq!(tried.is_ok(), permitted, "{failed} of {most}");
        }
        let refused = lockout(2, 3).permits_a_try(false).unwrap_err();
        assert!(matches!(refused, DeviceError::KeyLocked { .. }));
        assert!(refused.to_string().contains("--last-try"), "{refused}");
        let refused = lockout(3, 3).permits_a_try(true).unwrap_err();
        assert!(matches!(refused, DeviceError::LockedOut { .. }));
        assert!(refused.to_string().contains("every 600 s"), "{refused}");
    }

    #[test]
    fn only_a_lockout_is_shown() {
        assert_eq!(lockout(2, 3).fact(), None);
        assert!(shows_lockout(&[lockout(3, 3).fact().unwrap()]));
        assert!(!shows_lockout(&[]));
    }
}
