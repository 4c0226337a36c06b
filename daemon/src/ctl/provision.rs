//! Getting a device ready that is in front of a person. It takes no daemon.

use std::io::Write as _;
use std::path::Path;

use mlskeyd_protocol::v1::SecretBytes;
use serde_json::{Value, json};

use super::args::ProvisionCommand;
use super::{CtlError, files, pin};
use crate::devices::yubikey::provision::{Order, Person, Provisioned, provision};

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
