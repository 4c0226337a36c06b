//! Asks the daemon, and makes its answer readable.

use std::time::{SystemTime, UNIX_EPOCH};

use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig, default_socket};
use mlskeyd_protocol::v1::{
    AcceptDevice, AcceptedDevice, AdoptIdentity, Algorithm, CreateIdentityFor, Credential,
    DaemonStatus, Freeze, Frozen, IdentityInfo, Interaction, KeyId, KeyInfo, KeyPin, KeyQuery,
    LockDevice, LockIdentity, OwnedIdentity, OwnedKey, Owner, Placement, ReadFrozen, ReadRefusals,
    ReassignKeys, Reassigned, RegistryRestored, ReloadPolicies, ResetGuard, RotateIdentity,
    SecretBytes, StorageInfo, Swept, Thaw, Tier, Unlock, UnlockIdentity, Unlocked,
};
use serde_json::Value;

use super::args::{
    Args, Command, DevicesCommand, GuardCommand, IdentitiesCommand, KeysCommand, PolicyCommand,
    ReassignArgs, StorageCommand,
};
use super::progress::Progress;
#[cfg(feature = "yubikey")]
use super::provision;
use super::table::{date, duration, printable, table, terminal_width};
use super::{
    CtlError, agent, attest, certificates, confirm, devices, json, manifest, measurements, pin,
    policy, replay,
};
use crate::policy_files::Known;

/// What is frozen, in JSON or as text.
fn frozen(now: &Frozen, show: impl Fn(Value, String) -> String) -> String {
    let json =
        |it: &Freeze| serde_json::json!({ "target": it.target.to_string(), "reason": it.reason });
    let lines = now.frozen.iter().map(|it| {
        if it.reason.is_empty() {
            return format!("{}\n", it.target);
        }
        format!("{}: {}\n", it.target, printable(&it.reason))
    });
    let text: String = lines.collect();
    show(
        json::list(&now.frozen, json),
        or_none(&now.frozen, text, "nothing is frozen\n"),
    )
}

const NO_DEVICES: &str = "no devices\n";

/// What to print, and the exit code.
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) code: u8,
}

/// The exit code of an unlocking for which no PIN was needed.
const NOT_TRIED: u8 = 5;

/// Does what the command line asks.
pub(super) fn run(args: &Args) -> Result<Answer, CtlError> {
    let socket = args.socket.clone().unwrap_or_else(default_socket);
    if let Command::Agent { pinentry } = &args.command {
        match agent::run(socket, pinentry.clone())? {}
    }
    let software = concat!("mlskeyctl/", env!("CARGO_PKG_VERSION"));
    let client = AdminClient::new(ClientConfig::new(socket, software));
    // An administrator wants to know at once that the daemon is away.
    let call = Call {
        interaction: Interaction::Never,
        ..Call::default()
    };
    let show = |json: Value, text: String| {
        if args.json {
            format!("{json:#}\n")
        } else {
            text
        }
    };
    let mut code = 0;
    let text = match &args.command {
        Command::Status => {
            let status = client.status(&call)?;
            show(json::status(&status), status_text(&status))
        }
        Command::Devices {
            command: None | Some(DevicesCommand::List),
        } => {
            let devices = client.devices(&call)?;
            let text = devices::text(&devices, terminal_width());
            show(
                json::list(&devices, json::device),
                or_none(&devices, text, NO_DEVICES),
            )
        }
        Command::Devices {
            command: Some(DevicesCommand::Accept { device, yes }),
        } => {
            let accepted = accept(&client, device, *yes, &call)?;
            show(json::accepted(&accepted), accepted_text(&accepted))
        }
        Command::Devices {
            command: Some(DevicesCommand::Measurements { device, out }),
        } => {
            let shown = measurements::measurements(&client, device, out.as_deref(), &call)?;
            show(shown.0, shown.1)
        }
        Command::Devices {
            command: Some(DevicesCommand::Approve { device, signature }),
        } => {
            let shown = measurements::approve(&client, device, signature, &call)?;
            show(shown.0, shown.1)
        }
        Command::Identities {
            command: None | Some(IdentitiesCommand::List),
        } => {
            let identities = client.identities(&call)?;
            show(
                json::list(&identities, json::identity),
                identities_text(&identities),
            )
        }
        Command::Identities {
            command:
                Some(IdentitiesCommand::Create {
                    owner,
                    name,
                    device,
                    tier,
                    scheme,
                    credential,
                    pin,
                }),
        } => {
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
                pin: new_pin(*pin, name)?,
            };
            let identity = client.create_identity_for(request, &call)?;
            let owned = owned(owner, identity);
            show(json::identity(&owned), identity_text(&owned))
        }
        Command::Identities {
            command:
                Some(IdentitiesCommand::Unlock {
                    owner,
                    name,
                    key,
                    last_try,
                }),
        } => {
            let request = UnlockIdentity {
                owner: owner.clone(),
                name: name.clone(),
                key: *key,
                pin: pin::read(&printable(name))?,
                last_try: *last_try,
            };
            let unlocked = client.unlock_identity(request, &call)?;
            if !unlocked.pin_tried {
                code = NOT_TRIED;
            }
            let owned = owned(owner, unlocked.identity);
            let mut text = identity_text(&owned);
            if !unlocked.pin_tried {
                text.push_str("it was unlocked already, and the PIN was NOT tried\n");
            }
            show(json::unlocked_identity(&owned, unlocked.pin_tried), text)
        }
        Command::Identities {
            command: Some(IdentitiesCommand::Lock { owner, name }),
        } => {
            let request = LockIdentity {
                owner: owner.clone(),
                name: name.clone(),
            };
            let owned = owned(owner, client.lock_identity(request, &call)?);
            show(json::identity(&owned), identity_text(&owned))
        }
        Command::Identities {
            command:
                Some(IdentitiesCommand::Rotate {
                    owner,
                    name,
                    device,
                    tier,
                    grace,
                    pin,
                    no_pin,
                }),
        } => {
            let request = RotateIdentity {
                owner: owner.clone(),
                name: name.clone(),
                placement: Placement {
                    device: device.clone(),
                    tier: *tier,
                },
                grace: *grace,
                pin: new_pin(*pin, name)?,
                drop_pin: *no_pin,
            };
            let identity = client.rotate_identity(request, &call)?;
            let owned = owned(owner, identity);
            show(json::identity(&owned), identity_text(&owned))
        }
        Command::Identities {
            command: Some(IdentitiesCommand::Csr(args)),
        } => {
            let (json, text) = certificates::csr(args, &client, &call)?;
            show(json, text)
        }
        Command::Identities {
            command: Some(IdentitiesCommand::Import(args)),
        } => {
            let owned = certificates::import(args, &client, &call)?;
            show(json::identity(&owned), identity_text(&owned))
        }
        Command::Identities {
            command: Some(IdentitiesCommand::Credential(args)),
        } => {
            let owned = certificates::credential(args, &client, &call)?;
            show(json::identity(&owned), identity_text(&owned))
        }
        Command::Identities {
            command:
                Some(IdentitiesCommand::Adopt {
                    owner,
                    name,
                    device,
                    label,
                    scheme,
                    credential,
                }),
        } => {
            let content = credential.as_ref().unwrap_or(name);
            let request = AdoptIdentity {
                owner: owner.clone(),
                name: name.clone(),
                credential: Credential::Basic(content.as_bytes().into()),
                scheme: *scheme,
                device: device.clone(),
                label: label.clone(),
            };
            let identity = client.adopt_identity(request, &call)?;
            let owned = owned(owner, identity);
            show(json::identity(&owned), identity_text(&owned))
        }
        Command::Unlock { device, last_try } => {
            let request = Unlock {
                device: device.clone(),
                pin: pin::read(&printable(device))?,
                last_try: *last_try,
            };
            let unlocked = client.unlock(request, &call)?;
            if !unlocked.pin_tried {
                code = NOT_TRIED;
            }
            show(json::unlocked(&unlocked), unlocked_text(&unlocked))
        }
        Command::Policy { command } => {
            let shown = match command {
                PolicyCommand::Check {
                    dir,
                    vendor,
                    signer,
                    config,
                } => {
                    let config = manifest::config(config.as_deref())?;
                    let signers = manifest::signers(signer.as_deref(), config.as_ref())?;
                    let known = config.as_ref().map(Known::of).unwrap_or_default();
                    policy::check(vendor, dir, signers.as_ref(), &known)?
                }
                PolicyCommand::Manifest {
                    dir,
                    serial,
                    expires,
                } => manifest::write(dir, *serial, *expires)?,
                PolicyCommand::Test { dir, vendor } => policy::test(vendor, dir.as_deref())?,
                PolicyCommand::Explain { all, record } => {
                    let request = ReadRefusals { record: *record };
                    policy::explain(&client.refusals(request, &call)?, *all)
                }
                PolicyCommand::Replay {
                    audit,
                    dir,
                    vendor,
                    record,
                } => match record {
                    None => replay::all(audit, vendor, dir)?,
                    Some(number) => replay::one(audit, *number, vendor, dir)?,
                },
                PolicyCommand::Reload => {
                    let now = client.reload_policies(ReloadPolicies {}, &call)?;
                    policy::Shown {
                        json: json::policies(&now),
                        text: policy::in_force(&now),
                        is_good: true,
                    }
                }
            };
            code = u8::from(!shown.is_good);
            show(shown.json, shown.text)
        }
        Command::Freeze { target, reason } => {
            let request = Freeze {
                target: target.target(),
                reason: reason.clone(),
            };
            frozen(&client.freeze(request, &call)?, show)
        }
        Command::Thaw { target } => {
            let target = target.target();
            frozen(&client.thaw(Thaw { target }, &call)?, show)
        }
        Command::Frozen => frozen(&client.frozen(ReadFrozen {}, &call)?, show),
        Command::Guard {
            command: GuardCommand::Restored,
        } => {
            client.registry_restored(RegistryRestored {}, &call)?;
            let text = "all groups of before are to be entered again, or reset\n";
            show(serde_json::json!({ "restored": true }), text.to_owned())
        }
        Command::Guard {
            command:
                GuardCommand::Reset {
                    owner,
                    identity,
                    group,
                },
        } => {
            let request = ResetGuard {
                owner: owner.clone(),
                identity: identity.clone(),
                group: group.clone(),
            };
            let reset = client.reset_guard(request, &call)?;
            let text = format!("forgotten; the newest epoch was {}\n", reset.epoch);
            show(serde_json::json!({ "epoch": reset.epoch }), text)
        }
        // It is told above, and stays.
        Command::Agent { .. } => String::new(),
        Command::Lock { device } => {
            let request = LockDevice {
                device: device.clone(),
            };
            let locked = client.lock_device(request, &call)?;
            let text = format!("device {} is {}\n", printable(&locked.name), locked.state);
            show(json::device(&locked), text)
        }
        #[cfg(feature = "yubikey")]
        Command::Provision { command } => {
            let shown = provision::run(command)?;
            show(shown.0, shown.1)
        }
        Command::Attest { command } => return attest::run(command, &client, &call, show),
        Command::Keys {
            command: Some(KeysCommand::Sweep),
            ..
        } => {
            let swept = sweep(&client, args.json, &call)?;
            let mut text = format!(
                "{} keys destroyed; {} wait until their storage is connected\n",
                swept.destroyed, swept.waiting
            );
            if swept.stuck > 0 {
                text.push_str(&format!(
                    "{} generations of destroyed keys wait until their device is ready: see `mlskeyctl devices`\n",
                    swept.stuck
                ));
            }
            show(json::swept(&swept), text)
        }
        Command::Keys {
            command: Some(KeysCommand::Reassign(args)),
            ..
        } => {
            let reassigned = reassign(&client, args, &call)?;
            let text = reassigned_text(&args.to, &reassigned);
            show(json::reassigned(&args.from, &args.to, &reassigned), text)
        }
        Command::Keys { all, command } => {
            let list_all = matches!(command, Some(KeysCommand::List { all: true }));
            let keys = keys(&client, *all || list_all, &call)?;
            show(json::list(&keys, json::key), keys_text(&keys))
        }
        Command::Storage {
            command: None | Some(StorageCommand::List),
        } => {
            let storages = client.storages(&call)?;
            show(
                json::list(&storages, json::storage),
                storages_text(&storages),
            )
        }
        Command::Storage {
            command: Some(StorageCommand::Forget { owner, name, yes }),
        } => {
            let records = forget(&client, owner, name, *yes, &call)?;
            show(
                json::forgotten(records),
                format!("{records} records forgotten\n"),
            )
        }
    };
    Ok(Answer { text, code })
}

/// All portions. Each is whole by itself: whoever has enough may end the command.
fn sweep(client: &AdminClient, json: bool, call: &Call<'_>) -> Result<Swept, CtlError> {
    let mut progress = Progress::new(json);
    let mut destroyed = 0;
    let swept = client.sweep_all(call, |so_far| {
        destroyed = so_far.destroyed;
        progress.show(&format!("{destroyed} keys destroyed, and there are more"));
    });
    match swept {
        Err(error) if destroyed > 0 => Err(CtlError::Swept {
            destroyed,
            source: Box::new(error.into()),
        }),
        swept => Ok(swept?),
    }
}

/// All pages.
fn keys(client: &AdminClient, destroyed: bool, call: &Call<'_>) -> Result<Vec<OwnedKey>, CtlError> {
    let mut keys: Vec<OwnedKey> = Vec::new();
    loop {
        let after = keys.last().map(|last| last.key.id);
        let page = client.keys(KeyQuery { after, destroyed }, call)?;
        // A page that does not go on would be asked for again for ever.
        let goes_on = page.last().is_some_and(|last| Some(last.key.id) > after);
        keys.extend(page);
        if !goes_on {
            return Ok(keys);
        }
    }
}

/// The PIN that an identity's key is to have, if it is to have one.
pub(super) fn new_pin(wanted: bool, identity: &str) -> Result<Option<SecretBytes>, CtlError> {
    if wanted {
        pin::read_new(&printable(identity)).map(Some)
    } else {
        Ok(None)
    }
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

fn accept(
    client: &AdminClient,
    device: &str,
    yes: bool,
    call: &Call<'_>,
) -> Result<AcceptedDevice, CtlError> {
    if !yes {
        let devices = client.devices(call)?;
        let mut devices = devices.iter();
        let kind = devices.find(|one| one.name == device).map(|it| &*it.kind);
        confirm(&accept_question(device, kind.unwrap_or_default()))?;
    }
    let request = AcceptDevice {
        device: device.to_owned(),
    };
    Ok(client.accept_device(request, call)?)
}

fn accept_question(device: &str, kind: &str) -> String {
    let device = printable(device);
    let noun = noun(kind);
    let fate = match kind {
        "tpm2" => "lost for good, even if it is accepted again",
        _ => "missing",
    };
    format!(
        "The keys of the {noun} that device {device} had so far will be {fate}, and what waits there \
         to be destroyed will count as destroyed. Accept the {noun} that is there now?"
    )
}

/// What people call what is behind a device of this kind.
fn noun(kind: &str) -> &'static str {
    match kind {
        "tpm2" => "TPM",
        "yubikey" => "YubiKey",
        _ => "token",
    }
}

fn accepted_text(accepted: &AcceptedDevice) -> String {
    let device = &accepted.device;
    let before = accepted.before.as_ref().map_or_else(String::new, |before| {
        format!(", in the place of {}", printable(before))
    });
    format!(
        "the {} with serial number {} is the own one of device {}{before}\ndevice {} is {}\n",
        noun(&device.kind),
        printable(&accepted.serial),
        printable(&device.name),
        printable(&device.name),
        device.state,
    )
}

fn forget(
    client: &AdminClient,
    owner: &Owner,
    name: &str,
    yes: bool,
    call: &Call<'_>,
) -> Result<u32, CtlError> {
    if !yes {
        confirm(&format!(
            "Keys that only the storage {} of {} needs will be destroyed for good. Forget it?",
            printable(name),
            printable(&owner.to_string()),
        ))?;
    }
    Ok(client.forget_storage(owner.clone(), name, call)?)
}

fn reassign(
    client: &AdminClient,
    args: &ReassignArgs,
    call: &Call<'_>,
) -> Result<Reassigned, CtlError> {
    if !args.yes {
        let all = args.identity.is_empty() && args.storage.is_empty();
        confirm(&format!(
            "Apps that are {} lose {} to {}. Do that?",
            printable(&args.from.to_string()),
            if all { "all that they have" } else { "it" },
            printable(&args.to.to_string()),
        ))?;
    }
    let request = ReassignKeys {
        from: args.from.clone(),
        to: args.to.clone(),
        identities: args.identity.clone(),
        storages: args.storage.clone(),
    };
    Ok(client.reassign_keys(request, call)?)
}

fn reassigned_text(to: &Owner, reassigned: &Reassigned) -> String {
    let to = printable(&to.to_string());
    let of_kind = |kind: &str, names: &[String]| {
        let line = |name: &String| format!("{kind} {} is {to}'s\n", printable(name));
        names.iter().map(line).collect::<String>()
    };
    format!(
        "{}{}{} signature keys and {} HPKE keys are {to}'s\n",
        of_kind("identity", &reassigned.identities),
        of_kind("storage", &reassigned.storages),
        reassigned.signature_keys,
        reassigned.hpke_keys,
    )
}

fn status_text(status: &DaemonStatus) -> String {
    let mut text = format!(
        "mlskeyd {}, process {}, up for {}\n{} keys, connections: {}, audit record {}\n",
        printable(&status.version),
        status.pid,
        duration(status.uptime),
        status.keys,
        status.connections,
        status.audit_sequence,
    );
    if let Some(reason) = &status.read_only {
        text.push_str(&format!("READ-ONLY: {}\n", printable(reason)));
    }
    text.push_str(&policy::in_force(&status.policies));
    text.push('\n');
    text.push_str(&or_none(
        &status.devices,
        devices::table(&status.devices),
        NO_DEVICES,
    ));
    text
}

fn unlocked_text(unlocked: &Unlocked) -> String {
    let device = &unlocked.device;
    let (name, state) = (printable(&device.name), device.state);
    if unlocked.pin_tried {
        return format!("device {name} is {state}\n");
    }
    format!("device {name} is {state}: it was unlocked already, and the PIN was NOT tried\n")
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

fn keys_text(keys: &[OwnedKey]) -> String {
    let now = now();
    let rows = keys.iter().map(|owned| {
        let key = &owned.key;
        [
            key.id.to_string(),
            owned.owner.to_string(),
            key.purpose.to_string(),
            key.algorithm.to_string(),
            key.tier.to_string(),
            key.device.clone(),
            state_text(key),
            owned.claims.to_string(),
            duration(now.saturating_sub(key.created)),
            owned.identity.clone().unwrap_or_default(),
        ]
    });
    let titles = [
        "KEY",
        "OWNER",
        "PURPOSE",
        "ALGORITHM",
        "TIER",
        "DEVICE",
        "STATE",
        "CLAIMS",
        "AGE",
        "IDENTITY",
    ];
    or_none(keys, table(titles, rows), "no keys\n")
}

/// What a key's state needs said: the end of one that retires, and whose it is.
fn state_text(key: &KeyInfo) -> String {
    let mut text = key.state.to_string();
    if let Some(ends) = key.ends {
        text.push_str(&format!(" until {}", date(ends)));
    }
    if key.adopted {
        text.push_str(", adopted");
    }
    text.push_str(pin_text(key.pin));
    text
}

/// What is said of a key that has a PIN of its own.
const fn pin_text(pin: KeyPin) -> &'static str {
    match pin {
        KeyPin::None => "",
        KeyPin::Locked => ", PIN locked",
        KeyPin::Unlocked => ", PIN unlocked",
    }
}

fn storages_text(storages: &[StorageInfo]) -> String {
    let now = now();
    let rows = storages.iter().map(|storage| {
        let seen = if storage.attached {
            "connected".to_owned()
        } else {
            format!(
                "{} ago",
                duration(now.saturating_sub(storage.last_attached))
            )
        };
        [
            storage.owner.to_string(),
            storage.name.clone(),
            seen,
            storage.records.to_string(),
            storage.keys.to_string(),
        ]
    });
    let text = table(["OWNER", "STORAGE", "SEEN", "RECORDS", "KEYS"], rows);
    or_none(storages, text, "no storages\n")
}

fn or_none<T>(items: &[T], text: String, none: &str) -> String {
    if items.is_empty() {
        none.to_owned()
    } else {
        text
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_accepting_costs_is_said_before_it_is_done() {
        let of_token = accept_question("hsm", "pkcs11");
        assert!(of_token.contains("of the token that device hsm had so far will be missing,"));
        let of_tpm = accept_question("tpm", "tpm2");
        assert!(of_tpm.contains("will be lost for good, even if it is accepted again,"));
        assert!(of_tpm.ends_with("Accept the TPM that is there now?"));
    }
}
