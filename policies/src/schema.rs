//! The schema, and facts as it has them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::LazyLock;

use cedar_policy::{
    Context, Entity, EntityId, EntityTypeName, EntityUid, RestrictedExpression as Value, Schema,
};

use crate::asked::Asked;
use crate::facts::{
    CallerFacts, ContextFacts, GuardFacts, Moment, Rates, ResourceFacts, SenderKind,
};
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
    PathSecret,
    Leave,
    App,
    TargetedMessage,
    Leaf,
    KeyPackage,
    GroupInfo,
    NewKey,
    NewIdentity,
    NewCredential,
    NewOwner,
    Csr,
}

impl Kind {
    /// Does the guard look at it?
    const fn is_guarded(self) -> bool {
        matches!(
            self,
            Self::Message | Self::TargetedMessage | Self::GroupInfo
        )
    }
}

impl Action {
    /// Does the guard look at it? A message of somebody outside of the group it only looks over.
    #[must_use]
    pub const fn is_guarded(self) -> bool {
        match kind(self) {
            Some((_, kind)) => kind.is_guarded(),
            None => false,
        }
    }
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
        | A::SignProposalSelfRemove
        | A::SignProposalPrivateUse => (Uses::Key, Kind::Message),
        A::SignTargetedMessage => (Uses::Key, Kind::TargetedMessage),
        A::SignLeafNode => (Uses::Key, Kind::Leaf),
        A::SignKeyPackage => (Uses::Key, Kind::KeyPackage),
        A::SignGroupInfo => (Uses::Key, Kind::GroupInfo),
        A::SignApp => (Uses::Key, Kind::App),
        A::OpenWelcome | A::Prepare => (Uses::Key, Kind::Plain),
        A::OpenPathSecret => (Uses::Key, Kind::PathSecret),
        A::LeaveCustody => (Uses::Key, Kind::Leave),
        A::RotateIdentity => (Uses::Key, Kind::NewKey),
        A::UpdateCredential => (Uses::Key, Kind::NewCredential),
        A::SignCsr => (Uses::Key, Kind::Csr),
        A::CreateIdentity | A::CreateIdentityFor | A::AdoptIdentity => {
            (Uses::Identity, Kind::NewIdentity)
        }
        A::GenerateHpke => (Uses::Device, Kind::NewKey),
        A::Look | A::ManageStorage | A::AnswerPrompt => (Uses::Service, Kind::Plain),
        A::ReassignKeys => (Uses::Service, Kind::NewOwner),
        A::SignUnknown
        | A::OpenUnknown
        | A::UnlockIdentity
        | A::LockIdentity
        | A::UnlockDevice
        | A::LockDevice
        | A::AcceptDevice
        | A::AttestIdentity
        | A::AnswerChallenge
        | A::ApproveMeasurements
        | A::ResetGuard
        | A::Freeze
        | A::Thaw
        | A::Administer => return None,
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
        ("wrapped", Value::new_bool(resource.wrapped)),
        ("age_days", number(resource.age_days)),
        ("attested", Value::new_bool(resource.attested)),
        ("suites", numbers(&resource.suites)),
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

/// The context of a request, as far as policies ask for it.
pub(crate) fn context(
    action: Action,
    facts: &ContextFacts,
    asked: &Asked,
) -> Result<Context, Unfit> {
    let (_, kind) = kind(action).ok_or(Unfit)?;
    let mut all = Fields {
        asked,
        fields: Vec::new(),
    };
    all.record("now", |out| now(&facts.now, out))?;
    all.record("rates", |out| rates(&facts.rates, out))?;
    if kind.is_guarded() {
        all.record("guard", |out| guard(&facts.guard, out))?;
    }
    if kind.is_guarded() || matches!(kind, Kind::PathSecret | Kind::Leave) {
        let group = facts.group.as_deref().ok_or(Unfit)?;
        all.put("group", || text(group));
    }
    if kind.is_guarded() || matches!(kind, Kind::PathSecret) {
        all.put("epoch", || number(facts.epoch));
    }
    match kind {
        Kind::Plain | Kind::Leave => {}
        Kind::Message => message(facts, &mut all)?,
        Kind::PathSecret => all.put_if("cipher_suite", facts.cipher_suite, small),
        Kind::App => all.put("label", || text(&facts.label)),
        Kind::TargetedMessage => {
            all.put("recipient_leaf", || number(facts.recipient_leaf.into()));
        }
        Kind::Leaf => {
            all.put("source", || text(&facts.source));
            all.put_if("lifetime_days", facts.lifetime_days, number);
            all.put_if("group", facts.group.as_deref(), text);
            leaf(facts, &mut all);
        }
        Kind::KeyPackage => {
            all.put_if("cipher_suite", facts.cipher_suite, small);
            let days = facts.lifetime_days.ok_or(Unfit)?;
            all.put("lifetime_days", || number(days));
            all.put("last_resort", || Value::new_bool(facts.last_resort));
            leaf(facts, &mut all);
        }
        Kind::GroupInfo => {
            all.put_if("cipher_suite", facts.cipher_suite, small);
            all.put("lets_join", || Value::new_bool(facts.lets_join));
            required(facts, &mut all)?;
        }
        Kind::NewKey => new_key(facts, &mut all),
        Kind::NewIdentity => {
            new_key(facts, &mut all);
            credential(facts, &mut all);
            all.put("exists", || Value::new_bool(facts.exists));
            all.put("others", || number(facts.others));
            permitted(facts, &mut all);
        }
        Kind::NewCredential => {
            credential(facts, &mut all);
            certificate(facts, &mut all);
            permitted(facts, &mut all);
            all.put("new_key", || Value::new_bool(facts.new_key));
        }
        Kind::NewOwner => {
            all.put("from_user", || text(&facts.from_user));
            all.put("from_app", || text(&facts.from_app));
            all.put("to_user", || text(&facts.to_user));
            all.put("to_app", || text(&facts.to_app));
            all.put("identities", || texts(&facts.identities));
            permitted(facts, &mut all);
        }
        Kind::Csr => {
            new_key(facts, &mut all);
            all.put_if("credential", facts.credential.as_deref(), text);
            permitted(facts, &mut all);
            all.put("new_key", || Value::new_bool(facts.new_key));
        }
    }
    Context::from_pairs(all.fields).map_err(|_| Unfit)
}

/// Fields of the context, or of a record in it: only those are made that are asked for.
struct Fields<'a> {
    asked: &'a Asked,
    fields: Vec<(String, Value)>,
}

impl Fields<'_> {
    fn put(&mut self, name: &str, value: impl FnOnce() -> Value) {
        if self.asked.has(name) {
            self.fields.push((name.to_owned(), value()));
        }
    }

    fn put_if<T>(&mut self, name: &str, field: Option<T>, value: impl FnOnce(T) -> Value) {
        if let Some(field) = field {
            self.put(name, || value(field));
        }
    }

    fn record(&mut self, name: &str, fill: impl FnOnce(&mut Fields<'_>)) -> Result<(), Unfit> {
        if self.asked.has(name) {
            let mut inner = Fields {
                asked: self.asked.within(name),
                fields: Vec::new(),
            };
            fill(&mut inner);
            let record = Value::new_record(inner.fields).map_err(|_| Unfit)?;
            self.fields.push((name.to_owned(), record));
        }
        Ok(())
    }
}

fn message(facts: &ContextFacts, all: &mut Fields<'_>) -> Result<(), Unfit> {
    let joins = facts.sender == SenderKind::NewMemberCommit;
    all.put("sender", || text(facts.sender.name()));
    all.put_if("sender_leaf", facts.sender_leaf, |leaf| number(leaf.into()));
    all.put("external_join", || Value::new_bool(joins));
    all.put("encrypted", || Value::new_bool(facts.encrypted));
    all.put_if("cipher_suite", facts.cipher_suite, small);
    all.put("in_commit", || Value::new_bool(facts.in_commit));
    all.put("proposals", || texts(&facts.proposals));
    all.put("private_proposals", || numbers(&facts.private_proposals));
    all.put("unresolved_references", || {
        number(facts.unresolved_references)
    });
    all.put("members_added", || number(facts.members_added));
    all.put("added_names", || texts(&facts.added_names));
    all.put("members_removed", || number(facts.members_removed));
    all.put("removed_leaves", || {
        let leaves = facts.removed_leaves.iter();
        Value::new_set(leaves.map(|leaf| number((*leaf).into())))
    });
    all.put("uses_psk", || Value::new_bool(facts.uses_psk));
    required(facts, all)
}

fn required(facts: &ContextFacts, all: &mut Fields<'_>) -> Result<(), Unfit> {
    let Some(required) = &facts.required_capabilities else {
        return Ok(());
    };
    all.record("required_capabilities", |out| {
        out.put("extensions", || numbers(&required.extensions));
        out.put("proposals", || numbers(&required.proposals));
        out.put("credentials", || numbers(&required.credentials));
    })
}

fn leaf(facts: &ContextFacts, all: &mut Fields<'_>) {
    credential(facts, all);
    certificate(facts, all);
    all.put("credential_matches", || {
        Value::new_bool(!facts.credential_differs)
    });
}

fn credential(facts: &ContextFacts, all: &mut Fields<'_>) {
    all.put("credential_type", || text(&facts.credential_type));
    all.put_if("credential", facts.credential.as_deref(), text);
}

fn certificate(facts: &ContextFacts, all: &mut Fields<'_>) {
    all.put("certificate_names", || texts(&facts.certificate_names));
    all.put_if(
        "certificate_issuer",
        facts.certificate_issuer.as_deref(),
        text,
    );
}

fn permitted(facts: &ContextFacts, all: &mut Fields<'_>) {
    all.put("credential_permitted", || {
        Value::new_bool(!facts.credential_forbidden)
    });
}

fn new_key(facts: &ContextFacts, all: &mut Fields<'_>) {
    all.put("algorithm", || text(&facts.algorithm));
    all.put("tier", || text(&facts.tier));
}

fn now(now: &Moment, out: &mut Fields<'_>) {
    out.put("hour", || small(now.hour.into()));
    out.put("minute", || small(now.minute.into()));
    out.put("weekday", || small(now.weekday.into()));
    out.put("time", || Value::new_datetime(&now.time));
}

fn rates(rates: &Rates, out: &mut Fields<'_>) {
    out.put("signatures_minute", || number(rates.signatures_minute));
    out.put("signatures_hour", || number(rates.signatures_hour));
    out.put("opens_minute", || number(rates.opens_minute));
    out.put("opens_hour", || number(rates.opens_hour));
    out.put("keys_minute", || number(rates.keys_minute));
    out.put("keys_hour", || number(rates.keys_hour));
}

fn guard(guard: &GuardFacts, out: &mut Fields<'_>) {
    out.put("known", || Value::new_bool(guard.known));
    out.put("epochs_behind", || number(guard.epochs_behind));
    out.put("epochs_ahead", || number(guard.epochs_ahead));
    out.put("commits", || number(guard.commits));
    out.put("restored", || Value::new_bool(guard.restored));
}

fn texts(texts: &BTreeSet<String>) -> Value {
    Value::new_set(texts.iter().map(|one| text(one)))
}

fn numbers(numbers: &BTreeSet<u16>) -> Value {
    Value::new_set(numbers.iter().map(|number| small(*number)))
}

fn small(number: u16) -> Value {
    Value::new_long(number.into())
}

fn text(text: &str) -> Value {
    Value::new_string(text.to_owned())
}

/// Cedar's numbers are signed: what is larger counts as the largest.
fn number(number: u64) -> Value {
    Value::new_long(i64::try_from(number).unwrap_or(i64::MAX))
}
