//! The stable JSON that `--help` documents.

use mlskeyd_protocol::v1::{
    AcceptedDevice, Algorithm, Credential, DaemonStatus, DeviceInfo, OwnedIdentity, OwnedKey,
    Owner, PoliciesInForce, Reassigned, StorageInfo, Swept, Unlocked,
};
use serde_json::{Map, Value, json};

use super::{certificates, suites};

pub(super) fn status(status: &DaemonStatus) -> Value {
    json!({
        "version": status.version,
        "pid": status.pid,
        "uptime_seconds": status.uptime,
        "connections": status.connections,
        "keys": status.keys,
        "read_only": status.read_only,
        "audit_sequence": status.audit_sequence,
        "policies": policies(&status.policies),
        "devices": list(&status.devices, device),
    })
}

pub(super) fn policies(now: &PoliciesInForce) -> Value {
    json!({
        "policies": now.count,
        "signed": now.signed.as_ref().map(|signed| json!({
            "serial": signed.serial,
            "signer": signed.signer,
            "expires": signed.expires,
        })),
        "warnings": now.warnings,
    })
}

pub(super) fn device(device: &DeviceInfo) -> Value {
    let facts = device.facts.iter();
    let facts = facts.map(|fact| (fact.name.clone(), Value::from(fact.value.as_str())));
    let counts = device.counts.iter().map(|count| {
        let numbers = json!({ "used": count.used, "peak": count.peak, "most": count.most });
        (count.name.clone(), numbers)
    });
    json!({
        "name": device.name,
        "kind": device.kind,
        "state": device.state.to_string(),
        "detail": device.detail,
        "default": device.default,
        "hpke_tier": device.hpke_tier.map(|tier| tier.to_string()),
        "facts": facts.collect::<Map<_, _>>(),
        "counts": counts.collect::<Map<_, _>>(),
        "offers": list(&device.offers, |offer| json!({
            "algorithm": offer.algorithm.to_string(),
            "tier": offer.tier.to_string(),
            "how": offer.how,
        })),
        "suites": list(&suites::of(device), |suite| json!({
            "suite": format!("{:#06x}", suite.number),
            "tier": suite.tier.map(|tier| tier.to_string()),
            "why": suite.why,
        })),
    })
}

/// A device, and whether it looked at the PIN.
pub(super) fn unlocked(unlocked: &Unlocked) -> Value {
    let mut device = device(&unlocked.device);
    if let Value::Object(fields) = &mut device {
        fields.insert("pin_tried".to_owned(), unlocked.pin_tried.into());
    }
    device
}

pub(super) fn accepted(accepted: &AcceptedDevice) -> Value {
    json!({
        "device": device(&accepted.device),
        "serial": accepted.serial,
        "before": accepted.before,
    })
}

pub(super) fn identity(owned: &OwnedIdentity) -> Value {
    let identity = &owned.identity;
    let credential = match &identity.credential {
        Credential::Basic(content) => json!({ "basic": hex::encode(&content.0) }),
        Credential::X509(chain) => json!({ "x509": list(chain, |der| hex::encode(&der.0).into()) }),
    };
    json!({
        "owner": owner(&owned.owner),
        "name": identity.name,
        "credential": credential,
        "certificate_ends": certificates::ends(&identity.credential),
        "key": identity.key.to_string(),
        "algorithm": Algorithm::Signature(identity.scheme).to_string(),
        "public_key": hex::encode(&identity.public_key.0),
        "device": identity.device,
        "tier": identity.tier.to_string(),
        "pin": identity.pin.to_string(),
        "retiring": list(&identity.retiring, |key| json!({
            "key": key.id.to_string(),
            "public_key": hex::encode(&key.public_key.0),
            "device": key.device,
            "tier": key.tier.to_string(),
            "pin": key.pin.to_string(),
            "ends": key.ends,
        })),
    })
}

/// An identity, and whether its key looked at the PIN.
pub(super) fn unlocked_identity(owned: &OwnedIdentity, pin_tried: bool) -> Value {
    let mut identity = identity(owned);
    if let Value::Object(fields) = &mut identity {
        fields.insert("pin_tried".to_owned(), pin_tried.into());
    }
    identity
}

pub(super) fn key(owned: &OwnedKey) -> Value {
    let key = &owned.key;
    json!({
        "owner": owner(&owned.owner),
        "id": key.id.to_string(),
        "algorithm": key.algorithm.to_string(),
        "purpose": key.purpose.to_string(),
        "state": key.state.to_string(),
        "public_key": hex::encode(&key.public_key.0),
        "device": key.device,
        "tier": key.tier.to_string(),
        "created": key.created,
        "ends": key.ends,
        "adopted": key.adopted,
        "pin": key.pin.to_string(),
        "identity": owned.identity,
        "claims": owned.claims,
    })
}

pub(super) fn storage(storage: &StorageInfo) -> Value {
    json!({
        "owner": owner(&storage.owner),
        "name": storage.name,
        "attached": storage.attached,
        "records": storage.records,
        "keys": storage.keys,
        "last_attached": storage.last_attached,
    })
}

pub(super) fn swept(swept: &Swept) -> Value {
    json!({ "destroyed": swept.destroyed, "waiting": swept.waiting, "stuck": swept.stuck })
}

pub(super) fn reassigned(from: &Owner, to: &Owner, reassigned: &Reassigned) -> Value {
    json!({
        "from": owner(from),
        "to": owner(to),
        "identities": reassigned.identities,
        "storages": reassigned.storages,
        "signature_keys": reassigned.signature_keys,
        "hpke_keys": reassigned.hpke_keys,
    })
}

pub(super) fn forgotten(records: u32) -> Value {
    json!({ "records": records })
}

pub(super) fn list<T>(items: &[T], show: impl Fn(&T) -> Value) -> Value {
    items.iter().map(show).collect()
}

pub(super) fn owner(owner: &Owner) -> Value {
    json!({ "uid": owner.uid, "app": owner.app })
}
