//! Getting a device ready that is in front of a person. It takes no daemon.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use mlskeyd_protocol::v1::{SecretBytes, SignatureScheme};
use serde_json::{Value, json};

use super::{CtlError, files, pin};
use crate::config::{NoSlot, Slot};
use crate::devices::yubikey::provision::{Order, Person, Provisioned, provision};

#[derive(Debug, Subcommand)]
pub(super) enum ProvisionCommand {
    /// Give a YubiKey a PIN, a PUK and a management key of its own, and the keys that the
    /// daemon works with
    ///
    /// What is asked for, on the terminal or as lines of standard input: the new PIN and
    /// the new PUK if the YubiKey has those from the factory, each twice on a terminal;
    /// else its PIN. What is done already stays as it is, so this may be repeated. A
    /// slot that has another key is never touched.
    ///
    /// Signature keys are then given to identities by `identities adopt --label SLOT`.
    Yubikey {
        /// The YubiKey's serial number [default: the only one that is there]
        #[arg(long)]
        serial: Option<u32>,
        /// The slot of the key agreement key, under which HPKE keys are sealed
        #[arg(long, value_name = "SLOT", default_value = "9d")]
        agreement: Slot,
        /// Slots of signature keys, as in 9a:p256,82:p384; ed25519 takes firmware 5.7
        #[arg(long, value_name = "SLOT:SCHEME", value_delimiter = ',', value_parser = slot_of_scheme)]
        signature: Vec<(Slot, SignatureScheme)>,
        /// The slot of a consent key, which is touched for each use
        #[arg(long, value_name = "SLOT")]
        consent: Option<Slot>,
        /// Keep the management key in this file, which must not be there yet if the
        /// YubiKey has the one from the factory [default: the YubiKey keeps it, under
        /// its PIN]
        #[arg(long, value_name = "FILE")]
        management_key_file: Option<PathBuf>,
    },
}

fn slot_of_scheme(text: &str) -> Result<(Slot, SignatureScheme), String> {
    let (slot, scheme) = text
        .split_once(':')
        .ok_or("a slot, a colon, a scheme, as in 9a:p256")?;
    let slot = slot.parse().map_err(|error: NoSlot| error.to_string())?;
    let scheme = match scheme {
        "ed25519" => SignatureScheme::Ed25519,
        "p256" => SignatureScheme::EcdsaP256Sha256,
        "p384" => SignatureScheme::EcdsaP384Sha384,
        _ => return Err("a scheme is ed25519, p256 or p384".to_owned()),
    };
    Ok((slot, scheme))
}

/// Does it: JSON, and text.
pub(super) fn run(command: &ProvisionCommand) -> Result<(Value, String), CtlError> {
    let ProvisionCommand::Yubikey {
        serial,
        agreement,
        signature,
        consent,
        management_key_file,
    } = command;
    let order = Order {
        serial: *serial,
        agreement: *agreement,
        signatures: signature.clone(),
        consent: *consent,
        management_key: management_key_file.clone(),
    };
    let ready = provision(&order, &mut Terminal)?;
    Ok((to_json(&ready), text(&ready)))
}

struct Terminal;

impl Person for Terminal {
    type Error = CtlError;

    fn pin(&mut self, card: &str) -> Result<SecretBytes, CtlError> {
        pin::read(card)
    }

    fn new_pin(&mut self, card: &str) -> Result<SecretBytes, CtlError> {
        pin::read_new(card)
    }

    fn new_puk(&mut self, card: &str) -> Result<SecretBytes, CtlError> {
        pin::read_new_puk(card)
    }

    fn keep(&mut self, path: &Path, key: &str) -> Result<(), CtlError> {
        let mut file = files::create_private(path).map_err(|error| files::at(path, error))?;
        let written = file.write_all(key.as_bytes());
        let written = written.and_then(|()| file.write_all(b"\n"));
        let kept = written
            .and_then(|()| file.sync_all())
            .and_then(|()| files::sync_directory_of(path));
        kept.map_err(|error| files::at(path, error))
    }
}

fn to_json(ready: &Provisioned) -> Value {
    let key = |key: &crate::devices::yubikey::provision::ProvisionedKey| {
        json!({
            "slot": key.slot.to_string(),
            "purpose": key.purpose,
            "public_key": hex::encode(&key.public_key),
            "was_there": key.was_there,
        })
    };
    json!({
        "serial": ready.serial.to_string(),
        "firmware": ready.version,
        "keys": ready.keys.iter().map(key).collect::<Vec<_>>(),
    })
}

fn text(ready: &Provisioned) -> String {
    let mut text = format!(
        "YubiKey {}, firmware {}, is ready\n",
        ready.serial, ready.version
    );
    for key in &ready.keys {
        let since = if key.was_there {
            "was there already"
        } else {
            "is new"
        };
        text.push_str(&format!(
            "slot {}: the {} key {since}\n",
            key.slot, key.purpose
        ));
    }
    text
}
