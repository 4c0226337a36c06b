//! A token's PIN: where it comes from, and that a wrong one is not tried again.
//!
//! A token counts wrong PINs and locks itself. So before each login it is noted
//! on disk which PIN is tried, and afterwards how that ended. A PIN that was
//! wrong is not tried again until somebody gives another. One with which a login
//! ended without an answer (a power cut, a crash) may have been counted: if it
//! was never right before, it is not tried by itself again, and else only a few
//! times.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use mlskeyd_protocol::limits::MAX_PIN;
use mlskeyd_protocol::v1::SecretBytes;
use zeroize::Zeroizing;

use crate::config::SecretSource;
use crate::devices::DeviceError;
use crate::devices::pin_note::{Known, Note};
use crate::private_file::{self, Access};
use crate::store_key::Subkey;

/// Most logins in a row that may end without an answer: with a PIN that was never
/// right so far, and with one that was. Tokens allow three wrong ones and more.
const MAX_UNANSWERED: (u8, u8) = (1, 2);

/// Where the PIN of one token comes from.
pub(super) struct Pins {
    source: SecretSource,
    /// Of the PIN from there, and of the one that a person gave last: what happens
    /// to one must not make the other forgotten.
    configured: Note,
    given: Note,
}

/// A PIN, noted as tried.
pub(super) struct Trial<'a> {
    pub(super) pin: SecretBytes,
    token: &'a str,
    pins: &'a Pins,
    note: &'a Note,
    before: Known,
}

impl Pins {
    /// What was tried is noted in this directory.
    pub(super) fn new(source: SecretSource, directory: &Path, keys: (Subkey, Subkey)) -> Self {
        Self {
            source,
            configured: Note::new(directory.join("pin-tried"), Arc::new(keys.0)),
            given: Note::new(directory.join("pin-given"), Arc::new(keys.1)),
        }
    }

    /// Is there one without a person?
    pub(super) fn has_source(&self) -> bool {
        self.source != SecretSource::None
    }

    /// The PIN to log in with to the token with this serial number, noted before it
    /// is used; `None`: the token needs none.
    pub(super) fn try_one<'a>(&'a self, token: &'a str) -> Result<Option<Trial<'a>>, DeviceError> {
        let Some(pin) = self.configured_pin()? else {
            return Ok(None);
        };
        let known = self.known(token, &pin)?;
        check(known)?;
        self.try_it(&self.configured, token, pin, known).map(Some)
    }

    /// A PIN that a person gives, noted before it is used. One that was wrong is
    /// not tried again; that a login with it had no answer is no obstacle, since
    /// somebody decided to try it.
    pub(super) fn try_this<'a>(
        &'a self,
        token: &'a str,
        pin: &SecretBytes,
    ) -> Result<Trial<'a>, DeviceError> {
        let known = self.known(token, pin)?;
        let pin = SecretBytes::new(pin.expose().to_vec());
        self.try_it(&self.given, token, pin, known)
    }

    /// Is there a PIN that may be tried on this token?
    pub(super) fn has_another(&self, token: &str) -> bool {
        let may_be_tried = |pin: &SecretBytes| self.known(token, pin).and_then(check).is_ok();
        let given = self.configured_pin();
        given.is_ok_and(|pin| pin.as_ref().is_some_and(may_be_tried))
    }

    /// Notes that a PIN is tried, of which this is known.
    fn try_it<'a>(
        &'a self,
        note: &'a Note,
        token: &'a str,
        pin: SecretBytes,
        before: Known,
    ) -> Result<Trial<'a>, DeviceError> {
        let tried = before.tried().ok_or_else(was_wrong)?;
        note.write(token, &pin, tried).map_err(of_note)?;
        Ok(Trial {
            pin,
            token,
            pins: self,
            note,
            before,
        })
    }

    /// What is known of a PIN, wherever it came from: the worse.
    fn known(&self, token: &str, pin: &SecretBytes) -> Result<Known, DeviceError> {
        let configured = self.configured.read(token, pin).map_err(of_note)?;
        let given = self.given.read(token, pin).map_err(of_note)?;
        Ok(match (configured, given) {
            (
                Known::Tried {
                    was_right,
                    unanswered,
                },
                Known::Tried {
                    was_right: also_right,
                    unanswered: also_unanswered,
                },
            ) => Known::Tried {
                was_right: was_right || also_right,
                unanswered: unanswered.max(also_unanswered),
            },
            _ => Known::Wrong,
        })
    }

    fn configured_pin(&self) -> Result<Option<SecretBytes>, DeviceError> {
        read_secret("the PIN", &self.source)
    }
}

impl Trial<'_> {
    /// The token took it.
    pub(super) fn was_right(&self) -> Result<(), DeviceError> {
        for note in [&self.pins.configured, &self.pins.given] {
            if note.read(self.token, &self.pin).map_err(of_note)? != Known::NOTHING {
                note.write(self.token, &self.pin, Known::RIGHT)
                    .map_err(of_note)?;
            }
        }
        Ok(())
    }

    /// The token was not asked.
    pub(super) fn was_not_used(&self) -> Result<(), DeviceError> {
        self.note
            .write(self.token, &self.pin, self.before)
            .map_err(of_note)
    }

    /// The token refused it.
    pub(super) fn was_wrong(&self) -> Result<(), DeviceError> {
        self.note
            .write(self.token, &self.pin, Known::Wrong)
            .map_err(of_note)
    }
}

/// May a PIN be tried of which this is known?
fn check(known: Known) -> Result<(), DeviceError> {
    let (new, old) = MAX_UNANSWERED;
    match known {
        Known::Wrong => Err(was_wrong()),
        Known::Tried {
            was_right,
            unanswered,
        } if unanswered >= if was_right { old } else { new } => Err(unusable(
            "a login with this PIN ended without an answer, and the token may have counted it: see \
             that the PIN is right, then give it with `mlskeyctl unlock`",
        )),
        Known::Tried { .. } => Ok(()),
    }
}

/// A secret of a device from where the configuration says that it is; `noun`: what it
/// is called.
///
/// # Errors
/// [`DeviceError::Locked`] with the reason.
pub(super) fn read_secret(
    noun: &'static str,
    source: &SecretSource,
) -> Result<Option<SecretBytes>, DeviceError> {
    match source {
        SecretSource::None => Ok(None),
        SecretSource::File(path) => read(noun, path, Access::Ours).map(Some),
        SecretSource::Credential(name) => {
            let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
            let directory = directory.ok_or_else(|| {
                unusable("there are no systemd credentials: start the daemon by its unit")
            })?;
            read(noun, &Path::new(&directory).join(name), Access::Credential).map(Some)
        }
    }
}

/// A secret from a file that nobody else can read.
fn read(noun: &'static str, path: &Path, access: Access) -> Result<SecretBytes, DeviceError> {
    let failed = |what: String| DeviceError::Locked {
        reason: format!("{noun} in {}: {what}", path.display()),
    };
    let file = private_file::open_checked(path, access, OpenOptions::new().read(true));
    let file = file.map_err(|error| {
        failed(format!(
            "{error}; give the file mode 0600 and to the daemon's user"
        ))
    })?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PIN.saturating_add(2)));
    // One more than a newline after the longest: what is cut would be a wrong one.
    file.take(MAX_PIN.saturating_add(2) as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(failed("it is empty".to_owned()));
    }
    if bytes.len() > MAX_PIN {
        return Err(failed(format!("it is longer than {MAX_PIN} bytes")));
    }
    Ok(SecretBytes::new(bytes.to_vec()))
}

fn was_wrong() -> DeviceError {
    unusable("the PIN was wrong: give another one")
}

fn unusable(reason: &str) -> DeviceError {
    DeviceError::Locked {
        reason: reason.to_owned(),
    }
}

fn of_note(source: io::Error) -> DeviceError {
    DeviceError::Io {
        what: "noting which PIN was tried",
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::StoreKey;

    const TOKEN: &str = "0a1b2c3d";

    struct Bench {
        pins: Pins,
        file: PathBuf,
        _directory: tempfile::TempDir,
    }

    impl Bench {
        fn new(pin: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let file = directory.path().join("pin");
            fs::write(&file, pin).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let store_key = StoreKey::new(SecretBox::new(Box::new([1; 32])));
            let note = directory.path().join("device");
            let key = |purpose| store_key.subkey(purpose).unwrap();
            let keys = (key("mlskeyd v1 test"), key("mlskeyd v1 test, given"));
            Self {
                pins: Pins::new(SecretSource::File(file.clone()), &note, keys),
                file,
                _directory: directory,
            }
        }

        fn refusal(&self) -> String {
            assert!(!self.pins.has_another(TOKEN));
            self.pins.try_one(TOKEN).err().unwrap().to_string()
        }
    }

    #[test]
    fn a_wrong_pin_is_refused_until_there_is_another() {
        let bench = Bench::new("1234\n");
        let trial = bench.pins.try_one(TOKEN).unwrap().unwrap();
        assert_eq!(trial.pin.expose(), b"1234");
        trial.was_wrong().unwrap();
        assert!(bench.refusal().contains("was wrong"));
        fs::write(&bench.file, "4321").unwrap();
        let trial = bench.pins.try_one(TOKEN).unwrap().unwrap();
        trial.was_right().unwrap();
        assert!(bench.pins.has_another(TOKEN));
    }

    #[test]
    fn logins_without_an_answer_are_few() {
        let bench = Bench::new("1234");
        bench.pins.try_one(TOKEN).unwrap().unwrap();
        assert!(bench.refusal().contains("without an answer"));
        // Somebody insists.
        let pin = SecretBytes::new(b"1234".to_vec());
        bench
            .pins
            .try_this(TOKEN, &pin)
            .unwrap()
            .was_right()
            .unwrap();
        // Of a PIN that was right before there may be some more.
        for _ in 0..MAX_UNANSWERED.1 {
            bench.pins.try_one(TOKEN).unwrap().unwrap();
        }
        assert!(bench.refusal().contains("without an answer"));
    }

    #[test]
    fn a_person_does_not_give_a_wrong_pin_twice() {
        let bench = Bench::new("1234");
        let pin = SecretBytes::new(b"4321".to_vec());
        bench
            .pins
            .try_this(TOKEN, &pin)
            .unwrap()
            .was_wrong()
            .unwrap();
        let refused = bench.pins.try_this(TOKEN, &pin).err().unwrap();
        assert!(refused.to_string().contains("was wrong"), "{refused}");
        assert!(bench.pins.has_another(TOKEN), "the one in the file");
    }

    #[test]
    fn what_a_person_tries_makes_no_wrong_pin_forgotten() {
        let bench = Bench::new("1234");
        bench
            .pins
            .try_one(TOKEN)
            .unwrap()
            .unwrap()
            .was_wrong()
            .unwrap();
        let given = |pin: &str| SecretBytes::new(pin.as_bytes().to_vec());
        bench
            .pins
            .try_this(TOKEN, &given("0000"))
            .unwrap()
            .was_wrong()
            .unwrap();
        bench
            .pins
            .try_this(TOKEN, &given("4321"))
            .unwrap()
            .was_right()
            .unwrap();
        assert!(bench.refusal().contains("was wrong"));
        let refused = bench.pins.try_this(TOKEN, &given("1234")).err().unwrap();
        assert!(refused.to_string().contains("was wrong"), "{refused}");
    }

    #[test]
    fn another_token_has_another_pin() {
        let bench = Bench::new("1234");
        bench
            .pins
            .try_one(TOKEN)
            .unwrap()
            .unwrap()
            .was_wrong()
            .unwrap();
        let given = SecretBytes::new(b"4321".to_vec());
        bench
            .pins
            .try_this(TOKEN, &given)
            .unwrap()
            .was_wrong()
            .unwrap();
        for other in ["another", ""] {
            assert!(bench.pins.has_another(other));
            bench.pins.try_this(other, &given).unwrap();
            let trial = bench.pins.try_one(other).unwrap().unwrap();
            trial.was_not_used().unwrap();
        }
    }

    #[test]
    fn a_pin_that_the_token_did_not_see_does_not_count() {
        let bench = Bench::new("1234");
        for _ in 0..10 {
            let trial = bench.pins.try_one(TOKEN).unwrap().unwrap();
            trial.was_not_used().unwrap();
        }
        assert!(bench.pins.has_another(TOKEN));
    }

    #[test]
    fn a_good_login_clears_the_count() {
        let bench = Bench::new("1234");
        for _ in 0..10 {
            bench
                .pins
                .try_one(TOKEN)
                .unwrap()
                .unwrap()
                .was_right()
                .unwrap();
        }
    }

    #[test]
    fn a_pin_is_read_from_a_private_file_only() {
        let bench = Bench::new("");
        assert!(bench.refusal().contains("empty"));
        fs::write(&bench.file, "1".repeat(MAX_PIN + 1)).unwrap();
        assert!(bench.refusal().contains("longer"));
        fs::write(&bench.file, "1".repeat(MAX_PIN) + "\n").unwrap();
        assert!(bench.pins.has_another(TOKEN));
        fs::write(&bench.file, "1234").unwrap();
        fs::set_permissions(&bench.file, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(bench.refusal().contains("0600"));
        fs::remove_file(&bench.file).unwrap();
        assert!(bench.refusal().contains("pin"));
    }
}
