//! How much each owner was permitted, lately.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mlskeyd_policies::{Action, Rates as RateFacts};
use mlskeyd_protocol::v1::Owner;

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// Owners that are remembered; who asked least lately is forgotten.
const MAX_OWNERS: usize = 4096;

/// What is counted for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Signatures,
    Opens,
    Keys,
}

impl Counted {
    pub(super) const fn of(action: Action) -> Option<Self> {
        use Action as A;
        match action {
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
            | A::SignProposalPrivateUse
            | A::SignTargetedMessage
            | A::SignLeafNode
            | A::SignKeyPackage
            | A::SignGroupInfo
            | A::SignApp => Some(Self::Signatures),
            A::OpenWelcome | A::OpenPathSecret => Some(Self::Opens),
            A::CreateIdentity | A::GenerateHpke => Some(Self::Keys),
            A::SignUnknown
            | A::OpenUnknown
            | A::Prepare
            | A::LeaveCustody
            | A::ManageStorage
            | A::Look
            | A::RotateIdentity
            | A::UpdateCredential
            | A::SignCsr
            | A::AdoptIdentity
            | A::CreateIdentityFor
            | A::ReassignKeys
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
            | A::AnswerPrompt
            | A::Administer => None,
        }
    }
}

/// The counts of all owners. They are forgotten when the daemon ends, which no app can
/// bring about.
#[derive(Debug, Default)]
pub(super) struct Rates(Mutex<HashMap<Owner, Counts>>);

#[derive(Debug)]
struct Counts {
    /// Of the last minute and hour, for each that is counted.
    windows: [[Window; 2]; 3],
    last: Instant,
}

impl Rates {
    /// What an owner was permitted until now.
    pub(super) fn of(&self, owner: &Owner, now: Instant) -> RateFacts {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(counts) = all.get(owner) else {
            return RateFacts::default();
        };
        let [signatures, opens, keys] = &counts.windows;
        let both = |[minute, hour]: &[Window; 2]| (minute.count(now), hour.count(now));
        let (signatures_minute, signatures_hour) = both(signatures);
        let (opens_minute, opens_hour) = both(opens);
        let (keys_minute, keys_hour) = both(keys);
        RateFacts {
            signatures_minute,
            signatures_hour,
            opens_minute,
            opens_hour,
            keys_minute,
            keys_hour,
        }
    }

    /// Counts what an owner is permitted now.
    pub(super) fn count(&self, owner: &Owner, counted: Counted, now: Instant) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.contains_key(owner) && all.len() >= MAX_OWNERS {
            let oldest = all.iter().min_by_key(|(_, counts)| counts.last);
            if let Some(oldest) = oldest.map(|(owner, _)| owner.clone()) {
                all.remove(&oldest);
            }
        }
        let counts = all.entry(owner.clone()).or_insert_with(|| Counts {
            windows: std::array::from_fn(|_| [Window::new(MINUTE, now), Window::new(HOUR, now)]),
            last: now,
        });
        counts.last = now;
        let [signatures, opens, keys] = &mut counts.windows;
        let windows = match counted {
            Counted::Signatures => signatures,
            Counted::Opens => opens,
            Counted::Keys => keys,
        };
        windows.iter_mut().for_each(|window| window.add(now));
    }
}

/// Counts what happened in the last so much of time, as well as two numbers can: as if what
/// happened in the part before had been spread evenly over it.
#[derive(Debug)]
struct Window {
    length: Duration,
    /// When the part began that goes on.
    start: Instant,
    before: u64,
    current: u64,
}

impl Window {
    const fn new(length: Duration, now: Instant) -> Self {
        Self {
            length,
            start: now,
            before: 0,
            current: 0,
        }
    }

    /// The part before, the part that goes on, and how much of that is over, in thousandths.
    fn at(&self, now: Instant) -> (u64, u64, u64) {
        let since = now.saturating_duration_since(self.start);
        let length = self.length.as_millis().max(1);
        let parts = since.as_millis().checked_div(length).unwrap_or(0);
        let over = since.as_millis().checked_rem(length).unwrap_or(0);
        let over = over.saturating_mul(1000).checked_div(length).unwrap_or(0);
        let over = u64::try_from(over).unwrap_or(1000);
        match parts {
            0 => (self.before, self.current, over),
            1 => (self.current, 0, over),
            _ => (0, 0, over),
        }
    }

    fn count(&self, now: Instant) -> u64 {
        let (before, current, over) = self.at(now);
        let left = before.saturating_mul(1000_u64.saturating_sub(over));
        current.saturating_add(left.div_ceil(1000))
    }

    fn add(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.start);
        if since >= self.length {
            let (before, current, _) = self.at(now);
            (self.before, self.current) = (before, current);
            let length = self.length.as_millis().max(1);
            let over = since.as_millis().checked_rem(length).unwrap_or(0);
            let over = Duration::from_millis(u64::try_from(over).unwrap_or(0));
            self.start = now.checked_sub(over).unwrap_or(now);
        }
        self.current = self.current.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: u32) -> Owner {
        Owner {
            uid,
            app: "default".to_owned(),
        }
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let (rates, start) = (Rates::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..30 {
            rates.count(&owner(1), Counted::Signatures, at(second));
        }
        let counts = |seconds| {
            let rates = rates.of(&owner(1), at(seconds));
            (rates.signatures_minute, rates.signatures_hour)
        };
        assert_eq!(counts(30), (30, 30));
        assert_eq!(counts(59), (30, 30));
        // Half of the minute before is in the last one.
        assert_eq!(counts(90), (15, 30));
        assert_eq!(counts(121), (0, 30));
        assert_eq!(counts(3 * 3600), (0, 0));
        rates.count(&owner(1), Counted::Signatures, at(90));
        assert_eq!(counts(90), (16, 31));
        assert_eq!(counts(119), (2, 31));
        assert_eq!(rates.of(&owner(2), at(1)), RateFacts::default());
        assert_eq!(rates.of(&owner(1), at(1)).opens_minute, 0);
    }

    #[test]
    fn who_asked_least_lately_is_forgotten() {
        let (rates, start) = (Rates::default(), Instant::now());
        for uid in 0..=u32::try_from(MAX_OWNERS).unwrap() {
            let at = start + Duration::from_millis(uid.into());
            rates.count(&owner(uid), Counted::Keys, at);
        }
        let keys = |uid| {
            rates
                .of(&owner(uid), start + Duration::from_secs(10))
                .keys_minute
        };
        assert_eq!((keys(0), keys(1)), (0, 1));
    }
}
