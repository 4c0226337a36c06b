//! The schema, and facts as it has them.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression as Value, Schema,
};

use crate::facts::{CallerFacts, ContextFacts, GuardFacts, Moment, Rates, ResourceFacts};
use crate::{Action, Unfit};

/// The schema's text, which policies are checked against.
pub const SCHEMA: &str = include_str!("schema.cedarschema");

/// The schema. `None`: the daemon is broken, and nothing is decided.
pub(crate) static PARSED: LazyLock<Option<Schema>> = LazyLock::new(|| {
    Schema::from_cedarschema_str(SCHEMA)
        .ok()
        .map(|(schema, _)| schema)
});

/// Each action with the groups that it is in, itself among them: by its name.
pub(crate) static ACTIONS: LazyLock<HashMap<String, Vec<Entity>>> = LazyLock::new(|| {
    let entities = PARSED
        .as_ref()
        .and_then(|schema| schema.action_entities().ok());
    let Some(entities) = entities else {
        return HashMap::new();
    };
    let with_groups = |action: &Entity| {
        let uid = action.uid();
        let ancestors = entities.ancestors(&uid).into_iter().flatten();
        let groups = ancestors.filter_map(|group| entities.get(group));
        let all = groups.chain([action]).cloned().collect();
        (uid.id().unescaped().to_owned(), all)
    };
    entities.iter().map(with_groups).collect()
});

/// May policies speak of this action at all? Those that administrators alone take, and what
/// cannot be read, are decided by rules that are built in.
pub(crate) fn is_known(action: Action) -> bool {
    kind(action).is_some()
}

/// What a request uses or makes.
#[derive(Clone, Copy)]
enum Uses {
    Key,
    Device,
    Identity,
    Service,
}

/// What its context is.
#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Message,
    Leaf,
    KeyPackage,
    GroupInfo,
    NewKey,
    NewIdentity,
}

const fn kind(action: Action) -> Option<(Uses, Kind)> {
    use Action as A;
    Some(match action {
        A::SignApplicationMessage
        | A::SignCommit
        | A::SignProposalAdd
        | A::SignProposalUpdate
        | A::SignProposalRemove
        | A::SignProposalPreSharedKey
        | A::SignProposalReInit
        | A::SignProposalExternalInit
        | A::SignProposalGroupContextExtensions
        | A::SignProposalSelfRemove => (Uses::Key, Kind::Message),
        A::SignLeafNode => (Uses::Key, Kind::Leaf),
        A::SignKeyPackage => (Uses::Key, Kind::KeyPackage),
        A::SignGroupInfo => (Uses::Key, Kind::GroupInfo),
        A::OpenWelcome | A::OpenPathSecret | A::Prepare | A::LeaveCustody => {
            (Uses::Key, Kind::Plain)
        }
        A::CreateIdentity => (Uses::Identity, Kind::NewIdentity),
        A::GenerateHpke => (Uses::Device, Kind::NewKey),
        A::Look | A::ManageStorage | A::AnswerPrompt => (Uses::Service, Kind::Plain),
        _ => return None,
    })
}

/// The entity type of this name.
pub(crate) fn entity_type(name: &str) -> Result<EntityTypeName, Unfit> {
    name.parse().map_err(|_| Unfit)
}

pub(crate) fn uid(kind: &str, id: &str) -> Result<EntityUid, Unfit> {
    Ok(EntityUid::from_type_name_and_id(
        entity_type(kind)?,
        EntityId::new(id),
    ))
}

/// Principal and resource of a request, with all that they are in.
pub(crate) struct Parties {
    pub(crate) principal: EntityUid,
    pub(crate) resource: EntityUid,
    pub(crate) entities: Vec<Entity>,
}

impl Parties {
    pub(crate) fn new(
        action: Action,
        caller: &CallerFacts,
        resource: &ResourceFacts,
    ) -> Result<Self, Unfit> {
        let app = uid("App", &caller.app)?;
        let user = uid("User", &caller.user)?;
        let groups = caller.groups.iter().map(|name| uid("Group", name));
        let groups: HashSet<EntityUid> = groups.collect::<Result<_, _>>()?;
        let principal = uid("Caller", &format!("{}/{}", caller.user, caller.app))?;
        let attributes = [
            ("app", Value::new_entity_uid(app.clone())),
            ("user", Value::new_entity_uid(user.clone())),
            ("identified", text(caller.identified.name())),
        ];
        let mut parents = groups.clone();
        parents.extend([app.clone(), user.clone()]);
        let mut entities = vec![
            entity(principal.clone(), attributes, parents)?,
            entity(
                user,
                [("uid", Value::new_long(caller.uid.into()))],
                groups.clone(),
            )?,
            Entity::with_uid(app),
        ];
        entities.extend(groups.into_iter().map(Entity::with_uid));
        entities.extend(ACTIONS.get(action.name()).ok_or(Unfit)?.iter().cloned());

        let (uses, _) = kind(action).ok_or(Unfit)?;
        let resource = match uses {
            Uses::Service => {
                let service = uid("Service", "mlskeyd")?;
                entities.push(Entity::with_uid(service.clone()));
                service
            }
            Uses::Identity => {
                let identity = resource.identity.as_deref().ok_or(Unfit)?;
                let identity = uid("Identity", identity)?;
                entities.push(Entity::with_uid(identity.clone()));
                identity
            }
            Uses::Device => device(resource, &mut entities)?,
            Uses::Key => key(resource, &mut entities)?,
        };
        Ok(Self {
            principal,
            resource,
            entities,
        })
    }
}

fn device(resource: &ResourceFacts, entities: &mut Vec<Entity>) -> Result<EntityUid, Unfit> {
    let device = uid("Device", &resource.device)?;
    let attributes = [("kind", text(&resource.device_kind))];
    entities.push(entity(device.clone(), attributes, HashSet::new())?);
    Ok(device)
}

fn key(resource: &ResourceFacts, entities: &mut Vec<Entity>) -> Result<EntityUid, Unfit> {
    let device = device(resource, entities)?;
    let mut parents = HashSet::from([device.clone()]);
    if let Some(name) = &resource.identity {
        let identity = uid("Identity", name)?;
        entities.push(Entity::with_uid(identity.clone()));
        parents.insert(identity);
    }
    let key = uid("Key", &resource.key)?;
    let attributes = [
        ("purpose", text(&resource.purpose)),
        ("algorithm", text(&resource.algorithm)),
        ("tier", text(&resource.tier)),
        ("device", Value::new_entity_uid(device)),
    ];
    entities.push(entity(key.clone(), attributes, parents)?);
    Ok(key)
}

fn entity<const N: usize>(
    uid: EntityUid,
    attributes: [(&str, Value); N],
    parents: HashSet<EntityUid>,
) -> Result<Entity, Unfit> {
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value));
    Entity::new(uid, attributes.into_iter().collect(), parents).map_err(|_| Unfit)
}

/// The context of a request. To make the moment costs as much as all else together, so it is
/// left out if no policy asks for it.
pub(crate) fn context(
    action: Action,
    facts: &ContextFacts,
    with_moment: bool,
) -> Result<Context, Unfit> {
    let (_, kind) = kind(action).ok_or(Unfit)?;
    let group = facts.group.as_deref();
    let mut all = vec![
        ("now", now(&facts.now, with_moment)?),
        ("rates", rates(&facts.rates)?),
    ];
    match kind {
        Kind::Plain => {}
        Kind::Message => {
            let proposals = facts.proposals.iter().map(|name| text(name));
            let added = facts.added_names.iter().map(|name| text(name));
            let joins = facts.sender == crate::SenderKind::NewMemberCommit;
            all.extend([
                ("guard", guard(&facts.guard)?),
                ("group", text(group.ok_or(Unfit)?)),
                ("epoch", number(facts.epoch)),
                ("sender", text(facts.sender.name())),
                ("external_join", Value::new_bool(joins)),
                ("encrypted", Value::new_bool(facts.encrypted)),
                ("in_commit", Value::new_bool(facts.in_commit)),
                ("proposals", Value::new_set(proposals)),
                ("unresolved_references", number(facts.unresolved_references)),
                ("members_added", number(facts.members_added)),
                ("added_names", Value::new_set(added)),
                ("members_removed", number(facts.members_removed)),
                ("uses_psk", Value::new_bool(facts.uses_psk)),
            ]);
            all.extend(suite(facts));
        }
        Kind::Leaf => {
            all.push(("source", text(&facts.source)));
            all.extend(
                facts
                    .lifetime_days
                    .map(|days| ("lifetime_days", number(days))),
            );
            all.extend(group.map(|group| ("group", text(group))));
        }
        Kind::KeyPackage => {
            all.extend(suite(facts));
            all.push(("lifetime_days", number(facts.lifetime_days.ok_or(Unfit)?)));
            all.push(("last_resort", Value::new_bool(facts.last_resort)));
        }
        Kind::GroupInfo => {
            all.extend([
                ("guard", guard(&facts.guard)?),
                ("group", text(group.ok_or(Unfit)?)),
                ("epoch", number(facts.epoch)),
                ("lets_join", Value::new_bool(facts.lets_join)),
            ]);
            all.extend(suite(facts));
        }
        Kind::NewKey => all.extend(new_key(facts)),
        Kind::NewIdentity => {
            all.extend(new_key(facts));
            all.extend([
                ("exists", Value::new_bool(facts.exists)),
                ("others", number(facts.others)),
                ("credential_type", text(&facts.credential_type)),
                (
                    "credential_permitted",
                    Value::new_bool(!facts.credential_forbidden),
                ),
            ]);
            all.extend(
                facts
                    .credential
                    .as_deref()
                    .map(|name| ("credential", text(name))),
            );
        }
    }
    let all = all
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Context::from_pairs(all).map_err(|_| Unfit)
}

fn new_key(facts: &ContextFacts) -> [(&'static str, Value); 2] {
    [
        ("algorithm", text(&facts.algorithm)),
        ("tier", text(&facts.tier)),
    ]
}

fn suite(facts: &ContextFacts) -> Option<(&'static str, Value)> {
    let number = facts
        .cipher_suite
        .map(|number| Value::new_long(number.into()));
    number.map(|number| ("cipher_suite", number))
}

fn now(now: &Moment, with_moment: bool) -> Result<Value, Unfit> {
    let mut fields = vec![
        ("hour".to_owned(), Value::new_long(now.hour.into())),
        ("minute".to_owned(), Value::new_long(now.minute.into())),
        ("weekday".to_owned(), Value::new_long(now.weekday.into())),
    ];
    if with_moment {
        fields.push(("time".to_owned(), Value::new_datetime(&now.time)));
    }
    Value::new_record(fields).map_err(|_| Unfit)
}

fn rates(rates: &Rates) -> Result<Value, Unfit> {
    record([
        ("signatures_minute", number(rates.signatures_minute)),
        ("signatures_hour", number(rates.signatures_hour)),
        ("opens_minute", number(rates.opens_minute)),
        ("opens_hour", number(rates.opens_hour)),
        ("keys_minute", number(rates.keys_minute)),
        ("keys_hour", number(rates.keys_hour)),
    ])
}

fn guard(guard: &GuardFacts) -> Result<Value, Unfit> {
    record([
        ("known", Value::new_bool(guard.known)),
        ("epochs_behind", number(guard.epochs_behind)),
        ("epochs_ahead", number(guard.epochs_ahead)),
        ("commits", number(guard.commits)),
    ])
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Result<Value, Unfit> {
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Value::new_record(fields).map_err(|_| Unfit)
}

fn text(text: &str) -> Value {
    Value::new_string(text.to_owned())
}

/// Cedar's numbers are signed: what is larger counts as the largest.
fn number(number: u64) -> Value {
    Value::new_long(i64::try_from(number).unwrap_or(i64::MAX))
}
