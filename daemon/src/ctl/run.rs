//! Asks the daemon, and makes its answer readable.

use std::time::{SystemTime, UNIX_EPOCH};

use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig, default_socket};
use mlskeyd_protocol::v1::{
    AcceptDevice, AcceptedDevice, AdoptIdentity, Algorithm, Credential, DaemonStatus, DeviceInfo,
    IdentityInfo, Interaction, KeyId, KeyInfo, KeyQuery, OwnedIdentity, OwnedKey, Owner, Placement,
    RotateIdentity, StorageInfo, Tier, Unlock,
};
use serde_json::Value;

use super::args::{Args, Command, DevicesCommand, IdentitiesCommand, KeysCommand, StorageCommand};
use super::table::{date, duration, printable, table};
use super::{CtlError, confirm, json, pin, suites};

/// Does what the command line asks, and answers what to print.
pub(super) fn run(args: &Args) -> Result<String, CtlError> {
    let socket = args.socket.clone().unwrap_or_else(default_socket);
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
    Ok(match &args.command {
        Command::Status => {
            let status = client.status(&call)?;
            show(json::status(&status), status_text(&status))
        }
        Command::Devices {
            command: None | Some(DevicesCommand::List),
        } => {
            let devices = client.devices(&call)?;
            let text = format!("{}\n{}", devices_text(&devices), suites_text(&devices));
            show(json::list(&devices, json::device), text)
        }
        Command::Devices {
            command: Some(DevicesCommand::Accept { device, yes }),
        } => {
            let accepted = accept(&client, device, *yes, &call)?;
            show(json::accepted(&accepted), accepted_text(&accepted))
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
                Some(IdentitiesCommand::Rotate {
                    owner,
                    name,
                    device,
                    tier,
                    grace,
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
            };
            let identity = client.rotate_identity(request, &call)?;
            let owned = owned(owner, identity);
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
            let device = client.unlock(request, &call)?;
            let text = format!("device {} is {}\n", printable(&device.name), device.state);
            show(json::device(&device), text)
        }
        Command::Keys {
            command: Some(KeysCommand::Sweep),
            ..
        } => {
            let swept = client.sweep(&call)?;
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
    })
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

fn owned(owner: &Owner, identity: IdentityInfo) -> OwnedIdentity {
    OwnedIdentity {
        owner: owner.clone(),
        identity,
    }
}

fn identity_text(owned: &OwnedIdentity) -> String {
    let identity = &owned.identity;
    let mut text = format!(
        "{} of {} signs with key {} on device {} ({})\n",
        printable(&identity.name),
        printable(&owned.owner.to_string()),
        identity.key,
        printable(&identity.device),
        identity.tier,
    );
    for key in &identity.retiring {
        text.push_str(&format!("key {} is {}\n", key.id, state_text(key)));
    }
    text
}

fn accept(
    client: &AdminClient,
    device: &str,
    yes: bool,
    call: &Call<'_>,
) -> Result<AcceptedDevice, CtlError> {
    if !yes {
        confirm(&format!(
            "The keys of the token that device {} had so far will be missing, and what waits there \
             to be destroyed will count as destroyed. Accept the token that is there now?",
            printable(device),
        ))?;
    }
    let request = AcceptDevice {
        device: device.to_owned(),
    };
    Ok(client.accept_device(request, call)?)
}

fn accepted_text(accepted: &AcceptedDevice) -> String {
    let device = &accepted.device;
    let before = accepted.before.as_ref().map_or_else(String::new, |before| {
        format!(", in the place of {}", printable(before))
    });
    format!(
        "the token with serial number {} is the own one of device {}{before}\ndevice {} is {}\n",
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
    text.push('\n');
    text.push_str(&devices_text(&status.devices));
    text
}

fn devices_text(devices: &[DeviceInfo]) -> String {
    let rows = devices.iter().map(|device| {
        // Algorithms of the same tiers together: a terminal is not wide.
        let mut offers: Vec<(Vec<String>, Vec<String>)> = Vec::new();
        for same in device.offers.chunk_by(|(one, _), (other, _)| one == other) {
            let tiers: Vec<_> = same.iter().map(|(_, tier)| tier.to_string()).collect();
            let algorithm = same
                .iter()
                .map(|(algorithm, _)| algorithm.to_string())
                .next();
            match offers.iter_mut().find(|(_, known)| *known == tiers) {
                Some((algorithms, _)) => algorithms.extend(algorithm),
                None => offers.push((algorithm.into_iter().collect(), tiers)),
            }
        }
        let offers: Vec<_> = offers
            .iter()
            .map(|(algorithms, tiers)| format!("{}: {}", tiers.join(", "), algorithms.join(", ")))
            .collect();
        [
            format!("{}{}", device.name, if device.default { " *" } else { "" }),
            device.kind.clone(),
            device.state.to_string(),
            offers.join("; "),
            device.detail.clone().unwrap_or_default(),
        ]
    });
    let text = table(["DEVICE", "KIND", "STATE", "OFFERS", "DETAIL"], rows);
    or_none(devices, text, "no devices\n")
}

/// Which cipher suites the devices serve.
fn suites_text(devices: &[DeviceInfo]) -> String {
    let rows = devices.iter().flat_map(|device| {
        suites::of(device).into_iter().map(|suite| {
            [
                device.name.clone(),
                format!("{:#06x}", suite.number),
                suite
                    .tier
                    .map_or_else(|| "not possible".to_owned(), |tier| tier.to_string()),
                suite.why.join("; "),
            ]
        })
    });
    table(["DEVICE", "SUITE", "TIER", "WHY NO BETTER"], rows)
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
            "current".to_owned(),
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
    text
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
