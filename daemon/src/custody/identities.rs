//! Making identities, and finding them.

use std::sync::Arc;

use mlskeyd_policies::{Action, CallerFacts, ContextFacts};
use mlskeyd_protocol::limits::MAX_CREDENTIAL;
use mlskeyd_protocol::v1::{
    Algorithm, CreateIdentity, Credential, Failure, FailureCode, IdentityInfo, KeyInfo, Owner,
};

use super::certify::user_of;
use super::facts::CredentialSays;
use super::generate::{Place, check_name, read_place};
use super::lifecycle::Order;
use super::request::encoded;
use super::subject::Subject;
use super::{Call, Custody, Request, Session, Settings, failure};
use crate::store::{IdentityRecord, KeyRecord, MadeKey, StoreError};

/// Stands for the user's name in the credentials that the configuration permits.
const USER: &str = "{user}";

/// So often policies are asked again about an identity, since its owner got others meanwhile.
const MAX_TRIES: usize = 8;

/// What was read from a [`CreateIdentity`] request.
pub enum Identity {
    /// It is there already, as asked for.
    Known(Box<IdentityInfo>),
    /// It is to be made.
    New(Place),
}

impl Request for CreateIdentity {
    type Reply = IdentityInfo;
    type Read = Identity;
    const ACTION: Action = Action::CreateIdentity;
    const LEAVES_TRACES: bool = true;

    async fn read(
        &self,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<Identity, Failure> {
        check_name("an identity's name", &self.name)?;
        check_credential(&self.credential)?;
        subject.identity = Some(self.name.clone());
        match session.identity(&self.name).await? {
            Some((record, key)) => {
                let asked = [&record.credential, &record.made_with];
                if !asked.contains(&&self.credential) || record.scheme != self.scheme {
                    return Err(conflict(&self.name));
                }
                session.describe_identity(self, subject).await?;
                subject.about_key(key.clone());
                // To look for what is there leaves no record, a refusal does.
                subject.durability = None;
                subject.context.exists = true;
                subject.context.algorithm = key.algorithm.to_string();
                subject.context.tier = key.tier.to_string();
                let info = session.custody().identity_info(&record, &key).await;
                Ok(Identity::Known(Box::new(info)))
            }
            None if matches!(self.credential, Credential::X509(_)) => Err(for_no_key()),
            None => {
                let registry = &session.custody().registry;
                let room = registry.check_takes_identity(&session.caller().owner);
                room.await.map_err(failure::of_store)?;
                session.describe_identity(self, subject).await?;
                let algorithm = Algorithm::Signature(self.scheme);
                let place = read_place(session, call, &self.placement, algorithm, subject).await;
                place.map(Identity::New)
            }
        }
    }

    fn consents_to(&self, read: &Self::Read) -> Result<Option<Vec<u8>>, Failure> {
        match read {
            // It is there already: nothing is made.
            Identity::Known(_) => Ok(None),
            Identity::New(_) => encoded(self),
        }
    }

    async fn perform(
        self,
        identity: Identity,
        session: &Session,
        call: &Call,
        subject: &mut Subject,
    ) -> Result<IdentityInfo, Failure> {
        let place = match identity {
            Identity::Known(info) => return Ok(*info),
            Identity::New(place) => place,
        };
        let algorithm = Algorithm::Signature(self.scheme);
        let order = Order {
            owner: &session.caller().owner,
            algorithm,
            place: &place,
            identity: Some(&self.name),
            pin: None,
        };
        let made = session.make_key(&order, call).await?;
        subject.made = Some(made.id);
        let record = IdentityRecord {
            owner: session.caller().owner.clone(),
            name: self.name.clone(),
            made_with: self.credential.clone(),
            credential: self.credential.clone(),
            scheme: self.scheme,
            key: made.id,
            retiring: Vec::new(),
            next: None,
        };
        let custody = session.custody();
        let mut refused = outrun();
        for _ in 0..MAX_TRIES {
            let others = Some(subject.context.others);
            let created = custody
                .registry
                .create_identity(record.clone(), made.clone(), others);
            refused = match created.await {
                Ok(key) => {
                    custody.tell_of_new_identity(&key, &record);
                    return Ok(custody.info_with(&record, &key, Vec::new()));
                }
                // The owner got another one meanwhile: policies saw fewer.
                Err(StoreError::Outrun(_)) => match session.permitted_again(&self, subject).await {
                    Ok(()) => continue,
                    Err(failure) => failure,
                },
                // Of two requests at once that make the same identity one wins: the
                // other learns of it when it asks again.
                Err(StoreError::Conflict(_)) => conflict(&self.name),
                Err(error) => failure::of_store(error),
            };
            break;
        }
        custody.undo_creation(made.id).await;
        Err(refused)
    }
}

impl Session {
    /// Do policies permit it with the identities that the owner has now, and ask no more of a
    /// person than was asked?
    async fn permitted_again(
        &self,
        request: &CreateIdentity,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let consented = subject.consent.is_some();
        self.describe_identity(request, subject).await?;
        self.custody().permit(self, subject).await?;
        if subject.consent.is_some() && !consented {
            return Err(outrun());
        }
        Ok(())
    }

    /// What policies may know of an identity that is asked for.
    async fn describe_identity(
        &self,
        request: &CreateIdentity,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        let (custody, caller) = (self.custody(), self.caller());
        let known = custody.registry.identities(Some(&caller.owner)).await;
        let known = known.map_err(failure::of_store)?;
        let others = known.iter().filter(|known| known.name != request.name);
        let user = self.facts().await;
        let context = &mut subject.context;
        context.others = u64::try_from(others.count()).unwrap_or(u64::MAX);
        let says = CredentialSays::of(&request.credential);
        custody.settings.describe(says, &user, context);
        Ok(())
    }
}

impl Settings {
    /// What policies may know of a credential that a user is to have.
    pub(super) fn describe(
        &self,
        says: CredentialSays,
        user: &CallerFacts,
        context: &mut ContextFacts,
    ) {
        let mut names: Vec<_> = says.names().map(Some).collect();
        if names.is_empty() {
            names.push(None);
        }
        let is_permitted = names.iter().all(|name| self.lets_have(user, *name));
        context.credential_forbidden = !is_permitted;
        says.put(context);
    }

    /// May a user have a credential with this name? `None`: it has none.
    fn lets_have(&self, user: &CallerFacts, name: Option<&str>) -> bool {
        if let Some(own) = self.users.get(&user.user) {
            return own.iter().any(|own| Some(own.as_str()) == name);
        }
        // Whose name cannot be looked up may be one of those.
        if !self.users.is_empty() && user.user.starts_with('#') {
            return false;
        }
        let Some(credentials) = &self.credentials else {
            return true;
        };
        // Who has a number only, and no name, has no credential that is made of it.
        let has_name = !user.user.starts_with('#');
        let own = credentials
            .iter()
            .filter(|pattern| has_name || !pattern.contains(USER))
            .map(|pattern| pattern.replace(USER, &user.user));
        own.into_iter().any(|own| Some(own.as_str()) == name)
    }
}

impl Custody {
    /// The identity of this name, which the request is then about.
    pub(super) async fn identity_of(
        &self,
        owner: &Owner,
        name: &str,
        subject: &mut Subject,
    ) -> Result<IdentityRecord, Failure> {
        let identity = self.find_identity(owner, name, subject).await?;
        identity.ok_or_else(|| no_such_identity(owner, name))
    }

    /// May an administrator make an identity of this name, which the request is then
    /// about, with this credential?
    pub(super) async fn check_new_identity(
        &self,
        owner: &Owner,
        name: &str,
        credential: &Credential,
        subject: &mut Subject,
    ) -> Result<(), Failure> {
        check_credential(credential)?;
        if self.find_identity(owner, name, subject).await?.is_some() {
            return Err(taken(owner, name));
        }
        let room = self.registry.check_takes_identity(owner);
        room.await.map_err(failure::of_store)?;
        let others = self.registry.identities(Some(owner)).await;
        let others = others.map_err(failure::of_store)?.len();
        let user = user_of(owner).await;
        let context = &mut subject.context;
        context.others = u64::try_from(others).unwrap_or(u64::MAX);
        self.settings
            .describe(CredentialSays::of(credential), &user, context);
        Ok(())
    }

    async fn find_identity(
        &self,
        owner: &Owner,
        name: &str,
        subject: &mut Subject,
    ) -> Result<Option<IdentityRecord>, Failure> {
        check_name("an identity's name", name)?;
        check_name("an app's name", &owner.app)?;
        subject.owner = Some(owner.clone());
        subject.identity = Some(name.to_owned());
        let identity = self.registry.identity(owner, name).await;
        identity.map_err(failure::of_store)
    }

    /// Makes an identity visible together with its key, or undoes the key.
    pub(super) async fn finish_identity(
        &self,
        record: IdentityRecord,
        made: MadeKey,
    ) -> Result<IdentityInfo, StoreError> {
        let id = made.id;
        match self
            .registry
            .create_identity(record.clone(), made, None)
            .await
        {
            Ok(key) => {
                self.tell_of_new_identity(&key, &record);
                Ok(self.info_with(&record, &key, Vec::new()))
            }
            Err(error) => {
                self.undo_creation(id).await;
                Err(error)
            }
        }
    }

    /// An identity and its key: if it got another one since it was read, as it is
    /// now, for the key before may have ended with that.
    pub(super) async fn with_key(
        &self,
        record: IdentityRecord,
    ) -> Result<(IdentityRecord, Arc<KeyRecord>), Failure> {
        let (mut tried, mut failure) = match self.key(record.key).await {
            Ok(key) => return Ok((record, key)),
            Err(failure) => (None, failure),
        };
        loop {
            let now = self.registry.identity(&record.owner, &record.name).await;
            let now = match now.map_err(failure::of_store)? {
                Some(now) if tried != Some(now.key) => now,
                _ => return Err(failure),
            };
            // The identity's row is on disk a moment before its new key is in memory.
            let key = self.registry.key_on_disk(now.key).await;
            match self.found(now.key, key) {
                Ok(key) => return Ok((now, key)),
                Err(why) => (tried, failure) = (Some(now.key), why),
            }
        }
    }

    /// Identities with their keys. One whose key cannot be used is left out: it must
    /// not hide the others.
    pub(super) async fn identity_infos(
        &self,
        records: Vec<IdentityRecord>,
    ) -> Vec<(Owner, IdentityInfo)> {
        let mut infos = Vec::with_capacity(records.len());
        for record in records {
            let (owner, identity) = (record.owner.clone(), record.name.clone());
            match self.with_key(record).await {
                Ok((record, key)) => {
                    let info = self.identity_info(&record, &key).await;
                    infos.push((owner, info));
                }
                Err(error) => {
                    tracing::error!(identity, %owner, %error, "an identity is left out of the list");
                }
            }
        }
        infos
    }

    /// An identity with its keys, as apps see it.
    pub(super) async fn identity_info(
        &self,
        record: &IdentityRecord,
        key: &KeyRecord,
    ) -> IdentityInfo {
        let mut retiring = Vec::new();
        for id in &record.retiring {
            match self.registry.key(*id).await {
                Ok(Some(key)) if self.signs(&key) => retiring.push(self.key_info(&key)),
                Ok(_) => {}
                // The others are of use all the same.
                Err(error) => tracing::error!(key = %id, %error, "a key that retires is left out"),
            }
        }
        self.info_with(record, key, retiring)
    }

    fn info_with(
        &self,
        record: &IdentityRecord,
        key: &KeyRecord,
        retiring: Vec<KeyInfo>,
    ) -> IdentityInfo {
        IdentityInfo {
            name: record.name.clone(),
            credential: record.credential.clone(),
            key: key.id,
            scheme: record.scheme,
            public_key: key.public_key.clone(),
            device: key.device.clone(),
            tier: key.tier,
            pin: self.devices.pin_of(key),
            retiring,
        }
    }
}

pub(super) fn check_credential(credential: &Credential) -> Result<(), Failure> {
    let length = match credential {
        Credential::Basic(identity) => identity.len(),
        Credential::X509(chain) => {
            let total = chain.iter().map(|certificate| certificate.len()).sum();
            if chain.iter().any(|certificate| certificate.is_empty()) {
                0
            } else {
                total
            }
        }
    };
    if length == 0 || length > MAX_CREDENTIAL {
        return Err(failure::too_much("the credential", MAX_CREDENTIAL));
    }
    Ok(())
}

fn no_such_identity(owner: &Owner, name: &str) -> Failure {
    Failure::new(
        FailureCode::NotFound,
        format!("{owner} has no identity {name:?}"),
        "`mlskeyctl identities` shows those that are there",
    )
}

/// A key that is still to be made has no certificate.
pub(super) fn for_no_key() -> Failure {
    failure::bad_request(
        "a certificate is for a key that is there already",
        "make the identity with its name as a basic credential; the administrator has it certified then (`mlskeyctl identities csr`)",
    )
}

fn taken(owner: &Owner, name: &str) -> Failure {
    Failure::new(
        FailureCode::Conflict,
        format!("{owner} has an identity {name:?} already"),
        "choose another name, or give that one a new key: `mlskeyctl identities rotate`",
    )
}

/// The app got other identities, with which a person has to be asked, or nobody comes to an end.
fn outrun() -> Failure {
    Failure::new(
        FailureCode::Conflict,
        "this app got another identity meanwhile",
        "ask again",
    )
}

pub(super) fn conflict(name: &str) -> Failure {
    Failure::new(
        FailureCode::Conflict,
        format!("there is an identity {name} with another credential or signature scheme"),
        "use that one as it is, or choose another name",
    )
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    fn user(name: &str) -> CallerFacts {
        CallerFacts {
            user: name.to_owned(),
            ..CallerFacts::default()
        }
    }

    #[test]
    fn who_has_names_of_his_own_has_no_other_ones() {
        let settings = Settings {
            credentials: Some(vec!["{user}@bank.example".to_owned(), "desk".to_owned()]),
            users: BTreeMap::from([("chair".to_owned(), vec!["the chair".to_owned()])]),
            consent_device: None,
            takes_over: None,
            issuers: None,
            private_proposals: BTreeSet::new(),
            generation_age: 0,
            rotation_grace: 0,
            bus: None,
        };
        let lets_have = |of: &str, name| settings.lets_have(&user(of), Some(name));
        assert!(lets_have("alice", "alice@bank.example") && lets_have("alice", "desk"));
        assert!(!lets_have("alice", "the chair") && !lets_have("alice", "bob@bank.example"));
        assert!(lets_have("chair", "the chair") && !lets_have("chair", "desk"));
        assert!(!settings.lets_have(&user("alice"), None));
        // Who cannot be looked up may be the chair.
        assert!(!lets_have("#1000", "desk"));
        let for_all = Settings {
            users: BTreeMap::new(),
            ..settings
        };
        assert!(for_all.lets_have(&user("#1000"), Some("desk")));
        assert!(!for_all.lets_have(&user("#1000"), Some("#1000@bank.example")));
    }
}
