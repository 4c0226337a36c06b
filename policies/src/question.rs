//! What the policy is asked, and what it answers.

use std::borrow::Cow;

use mlskeyd_protocol::v1::Owner;

use crate::{Action, Said};

/// What the policy is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Who asks.
    pub caller: &'a Owner,
    /// What the request does.
    pub action: Action,
    /// The owner of what it does it with (a key, an identity, a storage).
    /// `None`: with nothing that is there already.
    pub owner: Option<&'a Owner>,
    /// What lets a caller administer who is neither root nor the daemon's own user, by its
    /// name for the records. `None`: nothing does.
    pub administers_by: Option<&'static str>,
}

/// What the policy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The request may be served.
    Permit {
        /// The id of the policy that permits it.
        policy: Cow<'static, str>,
        /// What wants it to be served only once a person has consented to it.
        consent: Option<Said>,
    },
    /// The request is refused, before it reaches a device.
    Deny {
        /// The id of the policy that refuses it.
        policy: Cow<'static, str>,
        /// Why, in words that a user may read.
        reason: Cow<'static, str>,
        /// What can be done next.
        advice: Cow<'static, str>,
    },
}

impl Decision {
    /// May the request be served?
    #[must_use]
    pub const fn is_permit(&self) -> bool {
        matches!(self, Self::Permit { .. })
    }
}
