//! Proposals that were signed here, so that a commit which names them by reference (RFC 9420,
//! 12.4) can be judged by what they do.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlskeyd_policies::{Action, ContextFacts};
use mlskeyd_protocol::v1::Owner;

use super::facts::Effects;
use crate::mls::{
    Body, FramedContent, ProposalOrRef, RawContent, Signable, hash_of_cipher_suite,
    proposal_reference_content,
};

/// So many proposals of each owner are remembered, and of so many owners.
const MAX_PROPOSALS: usize = 256;
const MAX_OWNERS: usize = 1024;

/// Longest name of somebody who is added that is remembered, in bytes: a proposal with a longer
/// one is unresolved, as somebody else's.
const MAX_NAME: usize = 1024;

/// What was signed lately, in memory: what a daemon that started again does not know is
/// unresolved, as somebody else's.
#[derive(Debug, Default)]
pub(super) struct References(Mutex<HashMap<Owner, Proposals>>);

/// Those of one owner, by their ProposalRef (RFC 9420, 5.2).
#[derive(Debug, Default)]
struct Proposals {
    known: HashMap<Vec<u8>, Known>,
    /// The oldest first.
    order: VecDeque<Vec<u8>>,
}

impl Proposals {
    fn add(&mut self, reference: Vec<u8>, known: Known) {
        if self.known.insert(reference.clone(), known).is_some() {
            return;
        }
        self.order.push_back(reference);
        if self.order.len() > MAX_PROPOSALS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// Those of an owner, of whom nothing may be known yet.
fn of<'a>(all: &'a mut HashMap<Owner, Proposals>, owner: &Owner) -> &'a mut Proposals {
    if all.len() >= MAX_OWNERS && !all.contains_key(owner) {
        // What is forgotten is unresolved, which policies can refuse.
        all.clear();
    }
    all.entry(owner.clone()).or_default()
}

/// A proposal that was signed.
#[derive(Clone, Debug)]
struct Known {
    group: Vec<u8>,
    epoch: u64,
    action: Action,
    effects: Effects,
}

/// A proposal that is to be signed: its reference is over its signature, too.
#[derive(Debug)]
pub(super) struct Proposed {
    group: Vec<u8>,
    epoch: u64,
    cipher_suite: u16,
    raw: Vec<u8>,
    action: Action,
    effects: Effects,
}

impl Proposed {
    /// `None`: it is no proposal that a commit could name.
    pub(super) fn of(signable: &Signable<'_>) -> Option<Self> {
        let cipher_suite = signable.cipher_suite()?;
        let Signable::FramedContent(content) = signable else {
            return None;
        };
        let Body::Proposal(proposal) = &content.body else {
            return None;
        };
        let effects = Effects::of(proposal);
        if matches!(&effects, Effects::Adds(Some(name)) if name.len() > MAX_NAME) {
            return None;
        }
        Some(Self {
            group: content.group_id.to_vec(),
            epoch: content.epoch,
            cipher_suite,
            raw: content.raw.0.to_vec(),
            action: proposal.action(),
            effects,
        })
    }

    fn signed(self, signature: &[u8]) -> Option<(Vec<u8>, Known)> {
        let hashed = proposal_reference_content(RawContent(&self.raw), signature)?;
        let reference = hash_of_cipher_suite(self.cipher_suite, &hashed)?;
        let known = Known {
            group: self.group,
            epoch: self.epoch,
            action: self.action,
            effects: self.effects,
        };
        Some((reference, known))
    }
}

impl References {
    /// Remembers a proposal with its signature.
    pub(super) fn remember(&self, owner: &Owner, proposed: Proposed, signature: &[u8]) {
        let Some((reference, known)) = proposed.signed(signature) else {
            return;
        };
        of(&mut self.all(), owner).add(reference, known);
    }

    /// What was signed for one owner is known of the other's, too, who has its groups now.
    pub(super) fn know_of(&self, to: &Owner, from: &Owner) {
        let mut all = self.all();
        let Some(theirs) = all.get(from) else { return };
        let one =
            |reference: &Vec<u8>| Some((reference.clone(), theirs.known.get(reference)?.clone()));
        let known: Vec<_> = theirs.order.iter().filter_map(one).collect();
        let proposals = of(&mut all, to);
        for (reference, known) in known {
            proposals.add(reference, known);
        }
    }

    /// Adds what a commit's references are to what is known of it; answers their actions.
    pub(super) fn resolve(
        &self,
        owner: &Owner,
        content: &FramedContent<'_>,
        facts: &mut ContextFacts,
    ) -> Vec<Action> {
        let Body::Commit(commit) = &content.body else {
            return Vec::new();
        };
        let mut references = commit.proposals.iter().filter_map(|it| match it {
            ProposalOrRef::Reference(reference) => Some(*reference),
            ProposalOrRef::Proposal(_) => None,
        });
        let Some(first) = references.next() else {
            return Vec::new();
        };
        let all = self.all();
        let proposals = all.get(owner);
        let mut actions = Vec::new();
        for reference in std::iter::once(first).chain(references) {
            let known = proposals.and_then(|it| it.known.get(reference));
            let fits = |it: &&Known| it.epoch == content.epoch && it.group == content.group_id;
            let Some(known) = known.filter(fits) else {
                facts.unresolved_references = facts.unresolved_references.saturating_add(1);
                continue;
            };
            facts.proposals.insert(known.action.name().to_owned());
            known.effects.add_to(facts);
            if !actions.contains(&known.action) {
                actions.push(known.action);
            }
        }
        actions
    }

    fn all(&self) -> MutexGuard<'_, HashMap<Owner, Proposals>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proposed(raw: &[u8], cipher_suite: u16) -> Proposed {
        Proposed {
            group: b"group".to_vec(),
            epoch: 3,
            cipher_suite,
            raw: raw.to_vec(),
            action: Action::SignProposalRemove,
            effects: Effects::Removes(7),
        }
    }

    fn owner(uid: u32) -> Owner {
        Owner {
            uid,
            app: "default".to_owned(),
        }
    }

    fn count(references: &References, uid: u32) -> usize {
        references
            .all()
            .get(&owner(uid))
            .map_or(0, |it| it.known.len())
    }

    #[test]
    fn the_newest_are_remembered_for_each_owner() {
        let references = References::default();
        for number in 0..=MAX_PROPOSALS {
            let raw = number.to_be_bytes();
            references.remember(&owner(1), proposed(&raw, 1), b"signature");
        }
        references.remember(&owner(2), proposed(b"one", 1), b"signature");
        references.remember(&owner(2), proposed(b"one", 1), b"signature");
        assert_eq!(count(&references, 1), MAX_PROPOSALS);
        assert_eq!(count(&references, 2), 1);
        let (first, _) = proposed(&0_usize.to_be_bytes(), 1)
            .signed(b"signature")
            .unwrap();
        assert!(!references.all()[&owner(1)].known.contains_key(&first));
    }

    #[test]
    fn who_gets_the_keys_of_another_knows_what_that_one_proposed() {
        let references = References::default();
        for (uid, raw) in [(1, b"one"), (1, b"two"), (2, b"six")] {
            references.remember(&owner(uid), proposed(raw, 1), b"signature");
        }
        references.know_of(&owner(2), &owner(1));
        references.know_of(&owner(3), &owner(4));
        assert_eq!([1, 2, 3].map(|uid| count(&references, uid)), [2, 3, 0]);
    }

    #[test]
    fn the_hash_is_the_suites() {
        let length = |suite| {
            let signed = proposed(b"x", suite).signed(b"s");
            signed.map(|(reference, _)| reference.len())
        };
        assert_eq!(
            [1, 2, 3, 7, 5].map(length),
            [Some(32), Some(32), Some(32), Some(48), None]
        );
    }
}
