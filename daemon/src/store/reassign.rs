//! What is one owner's becomes another's, all of it or a part, in one transaction.
//!
//! - An identity goes with its signature keys, its permits to leave and what the guard
//!   remembers of it. The guard remembers that for the owner before, too: what went on record
//!   under that name is held against it (`custody::recall`), also what is under way just now.
//! - A storage goes with its records, and with the keys that these name. No connection of the
//!   owner before has it any more. One of the new owner's that has the same name and holds
//!   nothing makes way, and its connections have the other one from then on: an app that came
//!   before its keys finds them.
//! - A key that is being made stays with the owner that it is made for. There it is finished
//!   or, if what it is for has gone, undone. One that is being destroyed goes with the others.
//!
//! A row that does not verify goes nowhere, as it is used by nobody.

use std::collections::BTreeSet;

use mlskeyd_protocol::v1::{Algorithm, FreezeTarget, KeyId, Owner, ReassignKeys, Reassigned};
use rusqlite::Connection;
use rusqlite::types::Value;
use serde::{Deserialize, Serialize};

use super::claims::{self, StorageRow};
use super::error::StoreError;
use super::guard;
use super::identities::{self, MAX_IDENTITIES};
use super::keys::{self, MAX_UNCLAIMED};
use super::mac::{RowMac, name_id};
use super::row::{self, Row};
use super::types::{IdentityRecord, KeyRecord, LifeState};
use super::writer::{Effect, Tx};
use crate::failpoint;

/// Why nothing got another owner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReassigned {
    /// There is nothing to give.
    #[error("{0} owns nothing")]
    Nothing(Owner),
    /// There is no such thing to give.
    #[error("{owner} has no {what} {name:?}")]
    Unknown {
        /// Who has it not.
        owner: Owner,
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The new owner has such a thing.
    #[error("{owner} has {what} {name:?} already")]
    Taken {
        /// The new owner.
        owner: Owner,
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The new owner has a key with the same public half.
    #[error("{owner} has the key {key} already, under another name")]
    Twin {
        /// The new owner.
        owner: Owner,
        /// The key that it was to have.
        key: KeyId,
    },
    /// Keys of a storage are another storage's, too.
    #[error("the storage {storage:?} shares the key {key} with another one, which was not named")]
    Shared {
        /// The storage.
        storage: String,
        /// The key.
        key: KeyId,
    },
    /// The new owner would have too many of something.
    #[error("{owner} would have too many {what}")]
    Full {
        /// The new owner.
        owner: Owner,
        /// Of what.
        what: &'static str,
    },
    /// Something of it is frozen.
    #[error("{0} is frozen, and would not be any more")]
    Frozen(FreezeTarget),
    /// The identities are not those that were judged.
    #[error("the identities of {0} changed meanwhile")]
    Outrun(Owner),
}

/// That an app took over once what was a user's under another name.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct TakeOver {
    to: Owner,
}

impl Row for TakeOver {
    const TABLE: &'static str = "takeovers";
}

/// Has this owner taken over what was somebody else's, once?
pub(super) fn has_taken_over(
    conn: &Connection,
    mac: &RowMac,
    to: &Owner,
) -> Result<bool, StoreError> {
    let row: Option<TakeOver> = row::get(conn, mac, &name_id(to)?)?;
    Ok(row.is_some_and(|row| row.to == *to))
}

/// It has, and does so never again.
pub(super) fn mark_taken_over(tx: &Tx<'_>, to: &Owner) -> Result<(), StoreError> {
    let id = Value::Blob(name_id(to)?.to_vec());
    row::put(tx.conn, tx.mac, id, &TakeOver { to: to.clone() })
}

/// What is to have another owner.
struct Plan {
    identities: Vec<IdentityRecord>,
    storages: Vec<StorageRow>,
    /// Storages of the new owner that hold nothing and are in the way.
    make_way: Vec<StorageRow>,
    /// All of them, those that are destroyed, too.
    keys: BTreeSet<KeyId>,
    /// Those of them that are not destroyed.
    signature_keys: BTreeSet<KeyId>,
    hpke_keys: BTreeSet<KeyId>,
    unclaimed: BTreeSet<KeyId>,
}

impl Plan {
    fn told(&self) -> Reassigned {
        let count = |keys: &BTreeSet<KeyId>| u32::try_from(keys.len()).unwrap_or(u32::MAX);
        Reassigned {
            identities: self.identities.iter().map(|it| it.name.clone()).collect(),
            storages: self
                .storages
                .iter()
                .map(|it| it.name().to_owned())
                .collect(),
            signature_keys: count(&self.signature_keys),
            hpke_keys: count(&self.hpke_keys),
        }
    }

    fn add(&mut self, key: &KeyRecord) {
        self.keys.insert(key.id);
        if key.state == LifeState::Destroyed {
            return;
        }
        match key.algorithm {
            Algorithm::Signature(_) => self.signature_keys.insert(key.id),
            Algorithm::Hpke(_) => self.hpke_keys.insert(key.id),
        };
        if key.is_unclaimed() {
            self.unclaimed.insert(key.id);
        }
    }
}

/// What would get another owner. Changes nothing.
pub(super) fn plan(
    tx: &Tx<'_>,
    order: &ReassignKeys,
) -> Result<Result<Reassigned, NotReassigned>, StoreError> {
    Ok(find(tx, order)?.map(|plan| plan.told()))
}

/// Gives all of it to the new owner, or nothing: `permit` has the last word, and sees the
/// identities. `once`: and that is a taking over, which is noted.
pub(super) fn reassign(
    tx: &mut Tx<'_>,
    order: &ReassignKeys,
    once: bool,
    permit: impl FnOnce(&[IdentityRecord]) -> Result<(), NotReassigned>,
) -> Result<Result<Reassigned, NotReassigned>, StoreError> {
    if once && has_taken_over(tx.conn, tx.mac, &order.to)? {
        // Another connection came first. What is there now came later.
        return Ok(Err(NotReassigned::Nothing(order.from.clone())));
    }
    let plan = match find(tx, order)? {
        Ok(plan) => plan,
        Err(why) => return Ok(Err(why)),
    };
    if let Err(why) = permit(&plan.identities) {
        return Ok(Err(why));
    }
    let told = plan.told();
    let Plan {
        identities,
        storages,
        make_way,
        keys,
        ..
    } = plan;
    let names: BTreeSet<String> = identities.iter().map(|it| it.name.clone()).collect();
    for identity in identities {
        identities::delete(tx, &order.from, &identity.name)?;
        let owner = order.to.clone();
        identities::put(tx, &IdentityRecord { owner, ..identity })?;
    }
    for id in keys {
        let key = keys::get(tx.conn, tx.mac, &id)?.ok_or(StoreError::NotFound("key"))?;
        let owner = order.to.clone();
        let id = Value::Blob(key.id.as_bytes().to_vec());
        // They may be many: they are not kept in memory until somebody uses them.
        tx.then(Effect::KeyRemoved(key.id));
        row::put(tx.conn, tx.mac, id, &KeyRecord { owner, ..key })?;
    }
    let owners = (&order.from, &order.to);
    guard::remember_for(tx, owners, &names)?;
    identities::hand_over_permits(tx, owners, &names)?;
    claims::hand_over(tx, &order.to, storages, make_way)?;
    if once {
        mark_taken_over(tx, &order.to)?;
    }
    failpoint::hit("store.reassign.before_commit");
    Ok(Ok(told))
}

/// Finds all that is to have another owner, and whether it can.
fn find(tx: &Tx<'_>, order: &ReassignKeys) -> Result<Result<Plan, NotReassigned>, StoreError> {
    let (from, to) = (&order.from, &order.to);
    let all = order.identities.is_empty() && order.storages.is_empty();
    let mut plan = Plan {
        identities: identities::list(tx.conn, tx.mac, Some(from))?,
        storages: claims::storages_of(tx, from)?,
        make_way: Vec::new(),
        keys: BTreeSet::new(),
        signature_keys: BTreeSet::new(),
        hpke_keys: BTreeSet::new(),
        unclaimed: BTreeSet::new(),
    };
    if !all {
        plan.identities
            .retain(|it| order.identities.contains(&it.name));
        plan.storages
            .retain(|it| order.storages.iter().any(|name| name == it.name()));
    }
    let unknown = |what, name: &String| NotReassigned::Unknown {
        owner: from.clone(),
        what,
        name: name.clone(),
    };
    for name in &order.identities {
        if !plan.identities.iter().any(|it| it.name == *name) {
            return Ok(Err(unknown("identity", name)));
        }
    }
    for name in &order.storages {
        if !plan.storages.iter().any(|it| it.name() == name) {
            return Ok(Err(unknown("storage", name)));
        }
    }
    if let Err(why) = find_keys(tx, order, all, &mut plan)? {
        return Ok(Err(why));
    }
    let nothing = plan.signature_keys.is_empty() && plan.hpke_keys.is_empty();
    if nothing && plan.identities.is_empty() && plan.storages.is_empty() {
        return Ok(Err(NotReassigned::Nothing(from.clone())));
    }
    if let Err(why) = find_room(tx, to, &mut plan)? {
        return Ok(Err(why));
    }
    Ok(Ok(plan))
}

/// Finds the keys, and whether the new owner can have them.
fn find_keys(
    tx: &Tx<'_>,
    order: &ReassignKeys,
    all: bool,
    plan: &mut Plan,
) -> Result<Result<(), NotReassigned>, StoreError> {
    let named = match keys_of_storages(tx, all, &plan.storages)? {
        Ok(named) => named,
        Err(why) => return Ok(Err(why)),
    };
    let mut twin = None;
    let look = |key: &KeyRecord| {
        let of_identity = |name: &String| order.identities.contains(name);
        let goes = all || named.contains(&key.id) || key.identity.as_ref().is_some_and(of_identity);
        if goes {
            plan.add(key);
            let lives = key.state != LifeState::Destroyed;
            if lives && keys::lives(tx, &order.to, &key.public_key)? {
                twin = Some(key.id);
            }
        }
        // Nothing is kept but what was noted.
        Ok(false)
    };
    // What is being made is not there yet.
    let condition = "uid = ?1 AND app = ?2 AND state != 0";
    let owner = (order.from.uid, &order.from.app);
    row::first::<KeyRecord>(tx, condition, owner, usize::MAX, look)?;
    Ok(match twin {
        Some(key) => Err(NotReassigned::Twin {
            owner: order.to.clone(),
            key,
        }),
        None => Ok(()),
    })
}

/// The keys that records of these storages name, or named last; a part of the storages can go
/// only if no other one names these.
fn keys_of_storages(
    tx: &Tx<'_>,
    all: bool,
    storages: &[StorageRow],
) -> Result<Result<BTreeSet<KeyId>, NotReassigned>, StoreError> {
    let mut named = BTreeSet::new();
    if all {
        return Ok(Ok(named));
    }
    for storage in storages {
        for key in claims::keys_of(tx, storage)? {
            let others = claims::storages_naming(tx, &key)?;
            let stays = |id: &u64| !storages.iter().any(|it| it.id() == *id);
            if others.iter().any(stays) {
                return Ok(Err(NotReassigned::Shared {
                    storage: storage.name().to_owned(),
                    key,
                }));
            }
            named.insert(key);
        }
    }
    Ok(Ok(named))
}

/// Has the new owner room for all of it, and nothing of the same name?
fn find_room(
    tx: &Tx<'_>,
    to: &Owner,
    plan: &mut Plan,
) -> Result<Result<(), NotReassigned>, StoreError> {
    let taken = |what, name: &str| NotReassigned::Taken {
        owner: to.clone(),
        what,
        name: name.to_owned(),
    };
    for identity in &plan.identities {
        if identities::get(tx.conn, tx.mac, to, &identity.name)?.is_some() {
            return Ok(Err(taken("an identity", &identity.name)));
        }
    }
    for storage in &plan.storages {
        match claims::storage(tx, to, storage.name())? {
            None => {}
            Some(there) if claims::holds_nothing(tx, &there)? => plan.make_way.push(there),
            Some(_) => return Ok(Err(taken("a storage", storage.name()))),
        }
    }
    let room = [
        (
            "SELECT count(*) FROM identities WHERE uid = ?1 AND app = ?2",
            plan.identities.len(),
            MAX_IDENTITIES,
            "identities",
        ),
        (
            "SELECT count(*) FROM storages WHERE uid = ?1 AND app = ?2",
            plan.storages.len().saturating_sub(plan.make_way.len()),
            claims::MAX_STORAGES,
            "storages",
        ),
        (
            "SELECT count(*) FROM keys WHERE uid = ?1 AND app = ?2 AND wait <= 2",
            plan.unclaimed.len(),
            MAX_UNCLAIMED,
            "keys that no record claims",
        ),
    ];
    for (sql, more, most, what) in room {
        let has: u32 = tx
            .conn
            .prepare_cached(sql)?
            .query_row((to.uid, &to.app), |row| row.get(0))?;
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        if more > 0 && has.saturating_add(more) > most {
            let owner = to.clone();
            return Ok(Err(NotReassigned::Full { owner, what }));
        }
    }
    Ok(Ok(()))
}
