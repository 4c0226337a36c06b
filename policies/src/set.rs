//! A set of policies: read as a whole, checked as a whole, and asked.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use cedar_policy::{
    ActionConstraint, Authorizer, Decision, Effect, Entities, EntityUid, Policy, PolicySet,
    PrincipalConstraint, Request, ResourceConstraint, Response,
};

use serde::Serialize;

use crate::asked::Asked;
use crate::check;
use crate::facts::{CallerFacts, ContextFacts, ResourceFacts};
use crate::ids::{NOT_PERMITTED, UNDECIDABLE};
use crate::problem::{Place, Problem};
use crate::schema::{self, Parties};
use crate::{Action, Unfit};

/// So many different callers, resources and actions are kept prepared, and so many
/// different selections of policies that can apply to them.
const MAX_PREPARED: usize = 2048;
const MAX_SLICES: usize = 256;

/// Policies that were checked, and what is prepared for asking them.
#[derive(Debug)]
pub struct Set {
    rules: Vec<Rule>,
    authorizer: Authorizer,
    prepared: Mutex<HashMap<Subject, Arc<Prepared>>>,
    /// By the places of their rules: most subjects have the same.
    slices: Mutex<HashMap<Vec<usize>, Arc<Slice>>>,
}

/// One policy.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) policy: Policy,
    pub(crate) place: Place,
    pub(crate) text: String,
    pub(crate) mode: Mode,
}

/// What comes of a `forbid` that applies, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mode {
    /// It goes on record.
    Report,
    /// The request takes a person's consent.
    Consent,
    /// The request is refused.
    Enforced,
}

/// Who asks for what with what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    action: Action,
    caller: Arc<CallerFacts>,
    resource: ResourceFacts,
}

/// What a set has to say of a subject.
#[derive(Debug)]
struct Prepared {
    action: EntityUid,
    principal: EntityUid,
    resource: EntityUid,
    entities: Entities,
    slice: Arc<Slice>,
}

/// Policies that can apply, without their scopes.
#[derive(Debug)]
struct Slice {
    /// What they ask for.
    asked: Asked,
    enforced: PolicySet,
    consent: PolicySet,
    report: PolicySet,
}

/// What a request is, to policies. As JSON it is a case, but for what is expected.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Facts<'a> {
    /// What it does.
    pub action: Action,
    /// Who asks.
    pub caller: &'a Arc<CallerFacts>,
    /// What it uses.
    pub resource: &'a ResourceFacts,
    /// All else.
    pub context: &'a ContextFacts,
}

/// A policy, for whoever is told of what it decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its id.
    pub policy: String,
    /// Its reason.
    pub reason: String,
    /// What can be done next, if it says.
    pub advice: Option<String>,
}

/// What a set answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Is the request permitted?
    pub is_permit: bool,
    /// The policy that permits or refuses it; of several the first, by its id.
    pub by: Said,
    /// The ids of all policies that apply and say so.
    pub all: Vec<String>,
    /// The policy for which it takes a person's consent.
    pub consent: Option<Said>,
    /// Policies that are only reported, and would refuse it.
    pub would_deny: Vec<String>,
}

impl Set {
    /// Reads and checks the policies of some files: their names and texts.
    ///
    /// # Errors
    /// All that is wrong, if anything is.
    pub fn new<'t>(
        files: impl IntoIterator<Item = (&'t str, &'t str)>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut rules: BTreeMap<String, Rule> = BTreeMap::new();
        for (file, text) in files {
            for statement in crate::statement::split(file, text) {
                let parsed = check::parse(&statement);
                let (id, policy) = match parsed {
                    Ok(parsed) => parsed,
                    Err(mut found) => {
                        problems.append(&mut found);
                        continue;
                    }
                };
                let place = statement.place.clone();
                if let Some(other) = rules.get(&id) {
                    let Place { file, line } = &other.place;
                    problems.push(place.error(format!(
                        "the policy at {file}:{line} has the same @id({id:?}): each has its own"
                    )));
                    continue;
                }
                let rule = Rule {
                    mode: mode(&policy),
                    policy,
                    place,
                    text: statement.text,
                };
                rules.insert(id, rule);
            }
        }
        let rules: Vec<Rule> = rules.into_values().collect();
        problems.extend(check::validate(&rules));
        if !problems.is_empty() {
            problems.sort();
            return Err(problems);
        }
        Ok(Self::of(rules))
    }

    /// How many policies there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Are there none, so that nothing is permitted?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The ids of all policies.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| id(&rule.policy))
    }

    pub(crate) fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The same set without one policy: for those that test policies.
    #[must_use]
    pub fn without(&self, policy: &str) -> Self {
        let rules = self.rules.iter().filter(|rule| id(&rule.policy) != policy);
        Self::of(rules.cloned().collect())
    }

    /// Decides. Equal facts have equal answers.
    #[must_use]
    pub fn decide(&self, facts: &Facts<'_>) -> Answer {
        self.try_to_decide(facts).unwrap_or_else(|Unfit| Answer {
            is_permit: false,
            by: Said {
                policy: UNDECIDABLE.to_owned(),
                reason: "a policy has an error with this request".to_owned(),
                advice: Some(
                    "tell the administrator: `mlskeyctl policy explain` shows what was asked"
                        .to_owned(),
                ),
            },
            all: Vec::new(),
            consent: None,
            would_deny: Vec::new(),
        })
    }

    /// What would permit a request that is refused, if the policies did not apply that refuse
    /// it. `None`: no policy would.
    #[must_use]
    pub fn else_permitted_by(&self, facts: &Facts<'_>) -> Option<String> {
        let answer = self.decide(facts);
        let refusing = answer.all;
        let rules = self.rules.iter().filter(|rule| {
            let id = id(&rule.policy);
            !refusing.iter().any(|refusing| refusing == id)
        });
        let others = Self::of(rules.cloned().collect()).decide(facts);
        others.is_permit.then_some(others.by.policy)
    }

    fn of(rules: Vec<Rule>) -> Self {
        Self {
            rules,
            authorizer: Authorizer::new(),
            prepared: Mutex::default(),
            slices: Mutex::default(),
        }
    }

    fn try_to_decide(&self, facts: &Facts<'_>) -> Result<Answer, Unfit> {
        let prepared = self.prepared(facts)?;
        let slice = &prepared.slice;
        let request = |asked, schema| {
            let context = schema::context(facts.action, facts.context, asked)?;
            let request = Request::new(
                prepared.principal.clone(),
                prepared.action.clone(),
                prepared.resource.clone(),
                context,
                schema,
            );
            request.map_err(|_| Unfit)
        };
        if cfg!(debug_assertions) {
            // Tests check that what is built here is as the schema has it, and that what is
            // left out decides nothing.
            let schema = schema::PARSED.as_ref().ok_or(Unfit)?;
            let whole = request(&Asked::All, Some(schema))?;
            let part = request(&slice.asked, None)?;
            let ask = |request, policies| {
                let entities = &prepared.entities;
                self.authorizer.is_authorized(request, policies, entities)
            };
            for policies in [&slice.enforced, &slice.consent, &slice.report] {
                debug_assert_eq!(ask(&part, policies), ask(&whole, policies));
            }
        }
        let request = request(&slice.asked, None)?;
        let ask = |policies: &PolicySet| {
            let response = self
                .authorizer
                .is_authorized(&request, policies, &prepared.entities);
            // A `forbid` that fails is skipped by Cedar.
            let has_failed = response.diagnostics().errors().next().is_some();
            if has_failed { Err(Unfit) } else { Ok(response) }
        };
        let response = ask(&slice.enforced)?;
        let is_permit = response.decision() == Decision::Allow;
        let by = match decisive(&response, &slice.enforced) {
            Some(policy) => said(policy),
            None => Said {
                policy: NOT_PERMITTED.to_owned(),
                reason: "no policy permits this".to_owned(),
                advice: None,
            },
        };
        let consent = if is_permit && !slice.consent.is_empty() {
            decisive(&ask(&slice.consent)?, &slice.consent).map(said)
        } else {
            None
        };
        let would_deny = if slice.report.is_empty() {
            Vec::new()
        } else {
            // What is only reported refuses nothing, also by an error.
            ask(&slice.report).map_or_else(|Unfit| vec![UNDECIDABLE.to_owned()], |it| ids(&it))
        };
        let all = ids(&response);
        Ok(Answer {
            is_permit,
            by,
            all,
            consent,
            would_deny,
        })
    }

    fn prepared(&self, facts: &Facts<'_>) -> Result<Arc<Prepared>, Unfit> {
        let subject = Subject {
            action: facts.action,
            caller: Arc::clone(facts.caller),
            resource: facts.resource.clone(),
        };
        let lock = || self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(prepared) = lock().get(&subject) {
            return Ok(Arc::clone(prepared));
        }
        let prepared = Arc::new(self.prepare(&subject)?);
        let mut all = lock();
        if all.len() >= MAX_PREPARED {
            all.clear();
        }
        all.insert(subject, Arc::clone(&prepared));
        Ok(prepared)
    }

    /// What of the set can apply to a subject: Cedar itself looks at each policy.
    fn prepare(&self, subject: &Subject) -> Result<Prepared, Unfit> {
        let Subject {
            action,
            caller,
            resource,
        } = subject;
        let parties = Parties::new(*action, caller, resource)?;
        let entities = Entities::from_entities(parties.entities, None).map_err(|_| Unfit)?;
        let of = |uid: &EntityUid| {
            let ancestors = entities.ancestors(uid).into_iter().flatten().cloned();
            ancestors.chain([uid.clone()]).collect::<BTreeSet<_>>()
        };
        let (principals, resources) = (of(&parties.principal), of(&parties.resource));
        let action = schema::uid("Action", action.name())?;
        let actions = of(&action);
        let applies = |policy: &Policy| {
            let by_action = match policy.action_constraint() {
                ActionConstraint::Any => true,
                ActionConstraint::In(uids) => uids.iter().any(|uid| actions.contains(uid)),
                ActionConstraint::Eq(uid) => uid == action,
            };
            by_action
                && match policy.principal_constraint() {
                    PrincipalConstraint::Any => true,
                    PrincipalConstraint::In(uid) => principals.contains(&uid),
                    PrincipalConstraint::Eq(uid) => uid == parties.principal,
                    PrincipalConstraint::Is(kind) => kind == *parties.principal.type_name(),
                    PrincipalConstraint::IsIn(kind, uid) => {
                        kind == *parties.principal.type_name() && principals.contains(&uid)
                    }
                }
                && match policy.resource_constraint() {
                    ResourceConstraint::Any => true,
                    ResourceConstraint::In(uid) => resources.contains(&uid),
                    ResourceConstraint::Eq(uid) => uid == parties.resource,
                    ResourceConstraint::Is(kind) => kind == *parties.resource.type_name(),
                    ResourceConstraint::IsIn(kind, uid) => {
                        kind == *parties.resource.type_name() && resources.contains(&uid)
                    }
                }
        };
        let places = self.rules.iter().enumerate();
        let places = places.filter(|(_, rule)| applies(&rule.policy));
        let slice = self.slice(places.map(|(place, _)| place).collect())?;
        Ok(Prepared {
            principal: parties.principal,
            resource: parties.resource,
            action,
            entities,
            slice,
        })
    }

    /// The rules at these places.
    fn slice(&self, places: Vec<usize>) -> Result<Arc<Slice>, Unfit> {
        let mut known = self.slices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slice) = known.get(&places) {
            return Ok(Arc::clone(slice));
        }
        let rules = places.iter().filter_map(|place| self.rules.get(*place));
        let rules: Vec<&Rule> = rules.collect();
        let of = |mode| {
            let rules = rules.iter().filter(|rule| rule.mode == mode);
            let policies = rules.map(|rule| without_scope(&rule.policy));
            let policies = policies.collect::<Result<Vec<_>, _>>()?;
            PolicySet::from_policies(policies).map_err(|_| Unfit)
        };
        let slice = Arc::new(Slice {
            asked: Asked::by(rules.iter().map(|rule| &rule.policy))?,
            enforced: of(Mode::Enforced)?,
            consent: of(Mode::Consent)?,
            report: of(Mode::Report)?,
        });
        if known.len() >= MAX_SLICES {
            known.clear();
        }
        known.insert(places, Arc::clone(&slice));
        Ok(slice)
    }
}

/// A policy for whoever its scope is known to fit, so that Cedar need not look at that again
/// for each request.
fn without_scope(policy: &Policy) -> Result<Policy, Unfit> {
    let mut json = policy.to_json().map_err(|_| Unfit)?;
    let fields = json.as_object_mut().ok_or(Unfit)?;
    for part in ["principal", "action", "resource"] {
        fields.insert(part.to_owned(), serde_json::json!({ "op": "All" }));
    }
    Policy::from_json(Some(policy.id().clone()), json).map_err(|_| Unfit)
}

fn mode(policy: &Policy) -> Mode {
    match (policy.annotation("mode"), policy.annotation("consent")) {
        (Some("report"), _) => Mode::Report,
        (_, Some(_)) => Mode::Consent,
        _ => Mode::Enforced,
    }
}

pub(crate) fn id(policy: &Policy) -> &str {
    policy.id().as_ref()
}

/// Those that decided, by their ids.
fn ids(response: &Response) -> Vec<String> {
    let ids = response.diagnostics().reason();
    let mut ids: Vec<String> = ids.map(ToString::to_string).collect();
    ids.sort();
    ids
}

/// The first, by its id, of those that decided.
fn decisive<'s>(response: &Response, policies: &'s PolicySet) -> Option<&'s Policy> {
    let ids = response.diagnostics().reason();
    let policies = ids.filter_map(|id| policies.policy(id));
    policies.min_by_key(|policy| id(policy).to_owned())
}

fn said(policy: &Policy) -> Said {
    let text = |name| policy.annotation(name).filter(|text| !text.is_empty());
    Said {
        policy: id(policy).to_owned(),
        reason: text("reason").unwrap_or("a policy says so").to_owned(),
        advice: text("advice").map(str::to_owned),
    }
}

/// Is it one that refuses, whatever comes of that?
pub(crate) fn refuses(policy: &Policy) -> bool {
    policy.effect() == Effect::Forbid
}
