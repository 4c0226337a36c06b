//! Certificates of identities: asking for them, and pinning what was issued.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Args;
use mlskeyd_protocol::client::{AdminClient, Call};
use mlskeyd_protocol::v1::{
    Bytes, Credential, NewSignatureKey, OwnedIdentity, Owner, Placement, SignCsr, Tier,
    UpdateCredential,
};
use serde_json::{Value, json};

use super::commands::values::{grace, tier};
use super::table::{date, printable};
use super::{CtlError, files, pin};
use crate::certificates::{self, RENEW_WITHIN};
use crate::freeze_target::owner;

/// Of `identities csr`.
#[derive(Debug, Args)]
pub(super) struct CsrArgs {
    /// As `identities` shows it: uid/app
    #[arg(value_parser = owner)]
    owner: Owner,
    /// The identity's name
    name: String,
    /// The name to be certified: an address, a host or a URI [default: the identity's name]
    #[arg(long)]
    certified: Option<String>,
    /// Ask for a new key, which is the identity's own once its certificate is imported
    #[arg(long)]
    new_key: bool,
    /// The device of the new key [default: the old key's]
    #[arg(long, requires = "new_key")]
    device: Option<String>,
    /// The tier of the new key [default: the old key's, or a higher one on
    /// another device]
    #[arg(long, requires = "new_key", value_parser = tier())]
    tier: Option<Tier>,
    /// Give the new key a PIN, asked for as by `identities create`
    #[arg(long, requires = "new_key")]
    pin: bool,
    /// Give the new key no PIN even if the present key has one
    #[arg(long, requires = "new_key", conflicts_with = "pin")]
    no_pin: bool,
}

/// Of `identities import`.
#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// As `identities` shows it: uid/app
    #[arg(value_parser = owner)]
    owner: Owner,
    /// The identity's name
    name: String,
    /// The certificates in PEM: the identity's own first, then those between it and the
    /// pinned issuer
    chain: PathBuf,
    /// For how long a key that is replaced still signs, as in 0s, 12h or 30d [default: as
    /// the daemon's configuration says, 30d]
    #[arg(long, value_name = "DURATION", value_parser = grace)]
    grace: Option<u64>,
}

/// Of `identities credential`.
#[derive(Debug, Args)]
pub(super) struct CredentialArgs {
    /// As `identities` shows it: uid/app
    #[arg(value_parser = owner)]
    owner: Owner,
    /// The identity's name
    name: String,
    /// The new basic credential
    credential: String,
}

/// Has the identity's key sign a request; shows it as PEM.
pub(super) fn csr(
    args: &CsrArgs,
    client: &AdminClient,
    call: &Call,
) -> Result<(Value, String), CtlError> {
    let new_key = if args.new_key {
        Some(NewSignatureKey {
            placement: Placement {
                device: args.device.clone(),
                tier: args.tier,
            },
            pin: pin::of_new_key(args.pin, &args.name)?,
            drop_pin: args.no_pin,
        })
    } else {
        None
    };
    let request = SignCsr {
        owner: args.owner.clone(),
        name: args.name.clone(),
        certified: args.certified.clone().unwrap_or_else(|| args.name.clone()),
        new_key,
    };
    let signed = client.sign_csr(request, call)?;
    let pem = certificates::pem(&signed.request);
    let json = json!({ "key": signed.key.to_string(), "request": pem });
    Ok((json, pem))
}

/// Pins a certificate.
pub(super) fn import(
    args: &ImportArgs,
    client: &AdminClient,
    call: &Call,
) -> Result<OwnedIdentity, CtlError> {
    let request = UpdateCredential {
        owner: args.owner.clone(),
        name: args.name.clone(),
        credential: Credential::X509(chain(&args.chain)?),
        grace: args.grace,
    };
    let identity = client.update_credential(request, call)?;
    Ok(OwnedIdentity {
        owner: args.owner.clone(),
        identity,
    })
}

/// Pins another basic credential.
pub(super) fn credential(
    args: &CredentialArgs,
    client: &AdminClient,
    call: &Call,
) -> Result<OwnedIdentity, CtlError> {
    let request = UpdateCredential {
        owner: args.owner.clone(),
        name: args.name.clone(),
        credential: Credential::Basic(Bytes::from(args.credential.as_bytes())),
        grace: None,
    };
    let identity = client.update_credential(request, call)?;
    Ok(OwnedIdentity {
        owner: args.owner.clone(),
        identity,
    })
}

fn chain(path: &Path) -> Result<Vec<Bytes>, CtlError> {
    let pem = files::read(path, certificates::MAX_PEM)?;
    certificates::chain(&pem).map_err(|why| files::at(path, why))
}

/// What a credential is, for a person: with the end of a certificate.
pub(super) fn shown(credential: &Credential) -> String {
    match credential {
        Credential::Basic(name) => match std::str::from_utf8(name) {
            Ok(text) => printable(text),
            Err(_) => hex::encode(&**name),
        },
        Credential::X509(chain) => {
            let own = chain.first().and_then(|own| certificates::read(own).ok());
            own.map_or_else(
                || "a certificate that cannot be read".to_owned(),
                |own| {
                    let names = printable(&own.named());
                    format!("certificate for {names}, until {}", date(own.ends))
                },
            )
        }
    }
}

/// What there is to say of a certificate, after the state of a key.
pub(super) fn state(credential: &Credential) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| now.as_secs());
    match ends(credential) {
        None => String::new(),
        Some(ends) if ends <= now => ", its certificate has ended".to_owned(),
        Some(ends) if ends <= now.saturating_add(RENEW_WITHIN) => {
            format!(", its certificate ends {}: renew it", date(ends))
        }
        Some(ends) => format!(", certified until {}", date(ends)),
    }
}

/// Until when a certificate is valid, in seconds since 1970.
pub(super) fn ends(credential: &Credential) -> Option<u64> {
    match credential {
        Credential::Basic(_) => None,
        Credential::X509(chain) => Some(certificates::read(chain.first()?).ok()?.ends),
    }
}
