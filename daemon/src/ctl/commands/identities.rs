//! `identities`.

use clap::Subcommand;
use mlskeyd_protocol::v1::{
    AdoptIdentity, Algorithm, CreateIdentityFor, Credential, IdentityInfo, KeyId, LockIdentity,
    OwnedIdentity, Owner, Placement, RotateIdentity, SignatureScheme, Tier, UnlockIdentity,
};

use super::values::{grace, scheme, tier};
use super::{Answer, Context, NOT_TRIED, or_none, pin_text, state_text};
use crate::ctl::certificates::{self, CredentialArgs, CsrArgs, ImportArgs};
use crate::ctl::table::{printable, table};
use crate::ctl::{CtlError, json, pin};
use crate::freeze_target::owner;

#[derive(Debug, Subcommand)]
pub(in crate::ctl) enum IdentitiesCommand {
    /// List identities (the default)
    List,
    /// Make an identity for an app, with a new signature key
    ///
    /// The app finds it under its name if it asks for the same credential and
    /// signature scheme. With --pin the key has a PIN of its own, which a TPM keeps:
    /// it signs only once it was unlocked, and the TPM counts wrong PINs.
    Create {
        /// Who is to own the identity: uid/app, as in 1000/default
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// The device of the key [default: the configured one]
        #[arg(long)]
        device: Option<String>,
        /// The tier of the key [default: the highest that the device has]
        #[arg(long, value_parser = tier())]
        tier: Option<Tier>,
        /// What the key signs
        #[arg(long, value_parser = scheme(), default_value = "ed25519")]
        scheme: SignatureScheme,
        /// The basic credential to pin [default: the identity's name]
        #[arg(long, value_name = "TEXT")]
        credential: Option<String>,
        /// Give the key a PIN: asked for twice on the terminal, or a line of standard
        /// input if that is no terminal
        #[arg(long)]
        pin: bool,
    },
    /// Unlock an identity's signature key with its PIN
    ///
    /// The PIN is asked for on the terminal, or is a line of standard input if that
    /// is no terminal. It is tried once; what waits for the key then goes on. The key
    /// stays unlocked until `identities lock`, or until the daemon ends. One that is
    /// unlocked already does not look at the PIN: exit code 5.
    Unlock {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// A key of the identity's that retires [default: the current one]
        #[arg(long, value_parser = key_id)]
        key: Option<KeyId>,
        /// Try the PIN even if one more wrong one would lock the device
        #[arg(long)]
        last_try: bool,
    },
    /// Lock an identity's signature keys that have a PIN
    Lock {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
    },
    /// Make a new signature key for an identity: the one before retires
    ///
    /// The app gets the new key when it asks for the identity again, and has to
    /// bring it into each of its groups by a commit. Until the grace is over the
    /// old key signs, too; then it is destroyed, and a group that still knows it
    /// has to be joined anew. Name and credential stay. Works also if the device
    /// of the old key is gone: name another one.
    Rotate {
        /// As `identities` shows it: uid/app
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// The device of the new key [default: the old key's]
        #[arg(long)]
        device: Option<String>,
        /// The tier of the new key [default: the old key's, or a higher one on
        /// another device]
        #[arg(long, value_parser = tier())]
        tier: Option<Tier>,
        /// For how long the old key still signs, as in 0s, 12h or 30d [default: as
        /// the daemon's configuration says, 30d]
        #[arg(long, value_name = "DURATION", value_parser = grace)]
        grace: Option<u64>,
        /// Give the new key a PIN, asked for as by `identities create`; the old key
        /// keeps the one that it has
        #[arg(long)]
        pin: bool,
        /// Give the new key no PIN even if the old key has one
        #[arg(long, conflicts_with = "pin")]
        no_pin: bool,
    },
    /// Have an identity's key sign a request for a certificate (PKCS#10), as PEM
    ///
    /// The daemon builds it, and signs nothing else for it.
    Csr(CsrArgs),
    /// Pin the certificate that was issued as an identity's credential
    ///
    /// It has to lead to an issuer that the configuration pins, to be for the identity's own
    /// key, or for the new one that was asked for last, and to have only names that the user
    /// may have. The app takes it into its groups with its next commit.
    Import(ImportArgs),
    /// Pin another basic credential to an identity
    Credential(CredentialArgs),
    /// Make an identity whose signature key is on a device already
    ///
    /// The device's own object is not changed. When the key ends here, as by
    /// `identities rotate`, it is forgotten, and stays on the device.
    Adopt {
        /// Who is to own the identity: uid/app, as in 1000/default
        #[arg(value_parser = owner)]
        owner: Owner,
        /// The identity's name
        name: String,
        /// The device
        #[arg(long)]
        device: String,
        /// The key's name on the device
        #[arg(long)]
        label: String,
        /// What the key signs
        #[arg(long, value_parser = scheme(), default_value = "ed25519")]
        scheme: SignatureScheme,
        /// The basic credential to pin [default: the identity's name]
        #[arg(long, value_name = "TEXT")]
        credential: Option<String>,
    },
}

fn key_id(text: &str) -> Result<KeyId, String> {
    let mut id = [0; KeyId::LEN];
    hex::decode_to_slice(text, &mut id)
        .map_err(|_| format!("a key's name has {} hexadecimal digits", 2 * KeyId::LEN))?;
    Ok(KeyId::from_bytes(id))
}

pub(super) fn run(
    command: Option<&IdentitiesCommand>,
    context: &Context,
) -> Result<Answer, CtlError> {
    let Context { client, call, .. } = context;
    let owned = match command {
        None | Some(IdentitiesCommand::List) => {
            let identities = client.identities(call)?;
            let text = identities_text(&identities);
            return Ok(context.answer(json::list(&identities, json::identity), text));
        }
        Some(IdentitiesCommand::Unlock {
            owner,
            name,
            key,
            last_try,
        }) => {
            let request = UnlockIdentity {
                owner: owner.clone(),
                name: name.clone(),
                key: *key,
                pin: pin::read(&printable(name))?,
                last_try: *last_try,
            };
            return unlock(owner, request, context);
        }
        Some(IdentitiesCommand::Csr(args)) => {
            let (json, text) = certificates::csr(args, client, call)?;
            return Ok(context.answer(json, text));
        }
        Some(IdentitiesCommand::Create {
            owner,
            name,
            device,
            tier,
            scheme,
            credential,
            pin,
        }) => {
            let content = credential.as_ref().unwrap_or(name);
            let request = CreateIdentityFor {
                owner: owner.clone(),
                name: name.clone(),
                credential: Credential::Basic(content.as_bytes().into()),
                scheme: *scheme,
                placement: Placement {
                    device: device.clone(),
                    tier: *tier,
                },
                pin: pin::of_new_key(*pin, name)?,
            };
            owned(owner, client.create_identity_for(request, call)?)
        }
        Some(IdentitiesCommand::Lock { owner, name }) => {
            let request = LockIdentity {
                owner: owner.clone(),
                name: name.clone(),
            };
            owned(owner, client.lock_identity(request, call)?)
        }
        Some(IdentitiesCommand::Rotate {
            owner,
            name,
            device,
            tier,
            grace,
            pin,
            no_pin,
        }) => {
            let request = RotateIdentity {
                owner: owner.clone(),
                name: name.clone(),
                placement: Placement {
                    device: device.clone(),
                    tier: *tier,
                },
                grace: *grace,
                pin: pin::of_new_key(*pin, name)?,
                drop_pin: *no_pin,
            };
            owned(owner, client.rotate_identity(request, call)?)
        }
        Some(IdentitiesCommand::Import(args)) => certificates::import(args, client, call)?,
        Some(IdentitiesCommand::Credential(args)) => certificates::credential(args, client, call)?,
        Some(IdentitiesCommand::Adopt {
            owner,
            name,
            device,
            label,
            scheme,
            credential,
        }) => {
            let content = credential.as_ref().unwrap_or(name);
            let request = AdoptIdentity {
                owner: owner.clone(),
                name: name.clone(),
                credential: Credential::Basic(content.as_bytes().into()),
                scheme: *scheme,
                device: device.clone(),
                label: label.clone(),
            };
            owned(owner, client.adopt_identity(request, call)?)
        }
    };
    Ok(context.answer(json::identity(&owned), identity_text(&owned)))
}

fn unlock(owner: &Owner, request: UnlockIdentity, context: &Context) -> Result<Answer, CtlError> {
    let unlocked = context.client.unlock_identity(request, &context.call)?;
    let owned = owned(owner, unlocked.identity);
    let mut text = identity_text(&owned);
    let mut code = 0;
    if !unlocked.pin_tried {
        code = NOT_TRIED;
        text.push_str("it was unlocked already, and the PIN was NOT tried\n");
    }
    let json = json::unlocked_identity(&owned, unlocked.pin_tried);
    let answer = context.answer(json, text);
    Ok(Answer { code, ..answer })
}

fn owned(owner: &Owner, identity: IdentityInfo) -> OwnedIdentity {
    OwnedIdentity {
        owner: owner.clone(),
        identity,
    }
}

fn identity_text(owned: &OwnedIdentity) -> String {
    let identity = &owned.identity;
    let mut text = format!(
        "{} of {} signs with key {} on device {} ({}{})\n",
        printable(&identity.name),
        printable(&owned.owner.to_string()),
        identity.key,
        printable(&identity.device),
        identity.tier,
        pin_text(identity.pin),
    );
    for key in &identity.retiring {
        text.push_str(&format!("key {} is {}\n", key.id, state_text(key)));
    }
    let credential = certificates::shown(&identity.credential);
    text.push_str(&format!("its credential: {credential}\n"));
    text
}

fn identities_text(identities: &[OwnedIdentity]) -> String {
    let rows = identities.iter().flat_map(|owned| {
        let identity = &owned.identity;
        let row = |device: &str, tier: Tier, key: KeyId, state: String| {
            [
                owned.owner.to_string(),
                identity.name.clone(),
                Algorithm::Signature(identity.scheme).to_string(),
                device.to_owned(),
                tier.to_string(),
                key.to_string(),
                state,
            ]
        };
        let current = row(
            &identity.device,
            identity.tier,
            identity.key,
            format!(
                "current{}{}",
                pin_text(identity.pin),
                certificates::state(&identity.credential)
            ),
        );
        let before = identity.retiring.iter();
        let before = before.map(|key| row(&key.device, key.tier, key.id, state_text(key)));
        std::iter::once(current).chain(before).collect::<Vec<_>>()
    });
    let titles = [
        "OWNER",
        "IDENTITY",
        "ALGORITHM",
        "DEVICE",
        "TIER",
        "KEY",
        "STATE",
    ];
    let text = table(titles, rows);
    or_none(identities, text, "no identities\n")
}
