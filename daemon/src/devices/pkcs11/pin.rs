//! A token's PIN: where it comes from, and that a wrong one is not tried again.
//!
//! A token counts wrong PINs and locks itself. So before each login it is noted
//! on disk which PIN is tried, by a MAC; after a good one the note is removed. A
//! PIN that was wrong, or with which a login ended without an answer, is not
//! tried again until somebody gives another.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use hmac::{Hmac, Mac};
use mlskeyd_protocol::v1::SecretBytes;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::PinSource;
use crate::devices::DeviceError;
use crate::private_file::{self, Access};
use crate::store_key::Subkey;

/// Longest PIN, in bytes.
const MAX_PIN: usize = 256;

/// Most logins with one PIN that may end without an answer: the token may have
/// counted them.
const MAX_UNANSWERED: u8 = 1;

/// In the note: the PIN is wrong.
const WRONG: u8 = u8::MAX;

/// Where the PIN of one token comes from.
pub(super) struct Pins {
    source: PinSource,
    /// Where what was tried is noted.
    note: PathBuf,
    key: Subkey,
}

/// A PIN, noted as tried.
pub(super) struct Trial<'a> {
    pub(super) pin: SecretBytes,
    pins: &'a Pins,
    /// How often it was tried before.
    before: u8,
}

impl Pins {
    pub(super) const fn new(source: PinSource, note: PathBuf, key: Subkey) -> Self {
        Self { source, note, key }
    }

    /// The PIN to log in with, noted before it is used; `None`: the token needs
    /// none.
    pub(super) fn try_one(&self) -> Result<Option<Trial<'_>>, DeviceError> {
        let Some(pin) = self.given()? else {
            return Ok(None);
        };
        let before = self.tries(&pin)?;
        self.write(&pin, before.saturating_add(1))?;
        Ok(Some(Trial {
            pin,
            pins: self,
            before,
        }))
    }

    /// A PIN that a person gives, noted before it is used. One that was wrong is
    /// not tried again; that a login with it had no answer is no obstacle, since
    /// somebody decided to try it.
    pub(super) fn try_this(&self, pin: &SecretBytes) -> Result<Trial<'_>, DeviceError> {
        let before = match self.noted(pin)? {
            Some(WRONG) => return Err(was_wrong()),
            tries => tries.unwrap_or(0),
        };
        self.write(pin, before.saturating_add(1).min(WRONG - 1))?;
        Ok(Trial {
            pin: SecretBytes::new(pin.expose().to_vec()),
            pins: self,
            before,
        })
    }

    /// Is there a PIN that was not refused yet?
    pub(super) fn has_another(&self) -> bool {
        let given = self.given();
        given.is_ok_and(|pin| pin.is_some_and(|pin| self.tries(&pin).is_ok()))
    }

    fn given(&self) -> Result<Option<SecretBytes>, DeviceError> {
        match &self.source {
            PinSource::None => Ok(None),
            PinSource::File(path) => read(path, Access::Ours).map(Some),
            PinSource::Credential(name) => {
                let directory = std::env::var_os("CREDENTIALS_DIRECTORY");
                let directory = directory.ok_or_else(|| {
                    unusable("there are no systemd credentials: start the daemon by its unit")
                })?;
                read(&Path::new(&directory).join(name), Access::Credential).map(Some)
            }
        }
    }

    /// How often this PIN was tried without an answer.
    fn tries(&self, pin: &SecretBytes) -> Result<u8, DeviceError> {
        match self.noted(pin)? {
            Some(WRONG) => Err(was_wrong()),
            Some(tries) if tries >= MAX_UNANSWERED => Err(unusable(
                "a login with this PIN ended without an answer, and the token may have counted it: see \
                 that the PIN is right, then give it with `mlskeyctl unlock`",
            )),
            tries => Ok(tries.unwrap_or(0)),
        }
    }

    /// What is noted of this PIN.
    fn noted(&self, pin: &SecretBytes) -> Result<Option<u8>, DeviceError> {
        match fs::read(&self.note) {
            Ok(note) => Ok(match note.split_first() {
                Some((tries, mac)) if self.mac(pin)?.verify_slice(mac).is_ok() => Some(*tries),
                _ => None,
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(of_note(source)),
        }
    }

    fn write(&self, pin: &SecretBytes, tries: u8) -> Result<(), DeviceError> {
        let mac = self.mac(pin)?.finalize().into_bytes();
        let durably = || {
            let directory = self.note.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(directory)?;
            let fresh = self.note.with_extension("new");
            // Of a note that was cut short.
            match fs::remove_file(&fresh) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            private_file::create(&fresh, &[&[tries], mac.as_slice()].concat())?;
            fs::rename(&fresh, &self.note)?;
            private_file::sync_directory(directory)
        };
        durably().map_err(of_note)
    }

    fn mac(&self, pin: &SecretBytes) -> Result<Hmac<Sha256>, DeviceError> {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.key.expose())
            .map_err(|_| unusable("no key to note PINs with"))?;
        mac.update(pin.expose());
        Ok(mac)
    }
}

impl Trial<'_> {
    /// The token took it.
    pub(super) fn was_right(&self) -> Result<(), DeviceError> {
        // Durably: a note that comes back would lock a right PIN out.
        let removed = fs::remove_file(&self.pins.note).and_then(|()| {
            let directory = self.pins.note.parent().unwrap_or(Path::new("/"));
            private_file::sync_directory(directory)
        });
        match removed {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(of_note(source)),
            _ => Ok(()),
        }
    }

    /// The token was not asked.
    pub(super) fn was_not_used(&self) -> Result<(), DeviceError> {
        if self.before == 0 {
            return self.was_right();
        }
        self.pins.write(&self.pin, self.before)
    }

    /// The token refused it.
    pub(super) fn was_wrong(&self) -> Result<(), DeviceError> {
        self.pins.write(&self.pin, WRONG)
    }
}

/// A PIN from a file that nobody else can read.
fn read(path: &Path, access: Access) -> Result<SecretBytes, DeviceError> {
    let failed = |what: String| DeviceError::Locked {
        reason: format!("the PIN in {}: {what}", path.display()),
    };
    let file = private_file::open_checked(path, access, OpenOptions::new().read(true));
    let file = file.map_err(|error| {
        failed(format!(
            "{error}; give the file mode 0600 and to the daemon's user"
        ))
    })?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_PIN));
    file.take(MAX_PIN as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| failed(error.to_string()))?;
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    if bytes.is_empty() {
        return Err(failed("it is empty".to_owned()));
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
    use std::os::unix::fs::PermissionsExt as _;

    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::StoreKey;

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
            let note = directory.path().join("device/pin-tried");
            let key = store_key.subkey("mlskeyd v1 test").unwrap();
            Self {
                pins: Pins::new(PinSource::File(file.clone()), note, key),
                file,
                _directory: directory,
            }
        }

        fn refusal(&self) -> String {
            assert!(!self.pins.has_another());
            self.pins.try_one().err().unwrap().to_string()
        }
    }

    #[test]
    fn a_wrong_pin_is_refused_until_there_is_another() {
        let bench = Bench::new("1234\n");
        let trial = bench.pins.try_one().unwrap().unwrap();
        assert_eq!(trial.pin.expose(), b"1234");
        trial.was_wrong().unwrap();
        assert!(bench.refusal().contains("was wrong"));
        fs::write(&bench.file, "4321").unwrap();
        let trial = bench.pins.try_one().unwrap().unwrap();
        trial.was_right().unwrap();
        assert!(bench.pins.has_another());
    }

    #[test]
    fn logins_without_an_answer_are_few() {
        let bench = Bench::new("1234");
        bench.pins.try_one().unwrap().unwrap();
        assert!(bench.refusal().contains("without an answer"));
    }

    #[test]
    fn a_pin_that_the_token_did_not_see_does_not_count() {
        let bench = Bench::new("1234");
        for _ in 0..10 {
            let trial = bench.pins.try_one().unwrap().unwrap();
            trial.was_not_used().unwrap();
        }
        assert!(bench.pins.has_another());
    }

    #[test]
    fn a_good_login_clears_the_count() {
        let bench = Bench::new("1234");
        for _ in 0..10 {
            bench.pins.try_one().unwrap().unwrap().was_right().unwrap();
        }
    }

    #[test]
    fn the_note_does_not_hold_the_pin() {
        let bench = Bench::new("27182818");
        bench.pins.try_one().unwrap().unwrap();
        let note = fs::read(&bench.pins.note).unwrap();
        assert_eq!(note.len(), 33);
        assert!(!note.windows(4).any(|window| window == b"2718"));
    }

    #[test]
    fn a_pin_is_read_from_a_private_file_only() {
        let bench = Bench::new("");
        assert!(bench.refusal().contains("empty"));
        fs::write(&bench.file, "1234").unwrap();
        fs::set_permissions(&bench.file, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(bench.refusal().contains("0600"));
        fs::remove_file(&bench.file).unwrap();
        assert!(bench.refusal().contains("pin"));
    }
}
