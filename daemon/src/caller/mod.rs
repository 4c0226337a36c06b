//! Who asks: the user, as the kernel notes it with the connection, and which of the
//! configured apps the process is.
//!
//! `process` looks at the process, `units` and `sandbox` read what it is in, `apps`
//! says which app that is. A process is looked at before and after it has answered a
//! challenge, and `writer` sees that it answers itself: so what was written while it ran
//! another program, or by its child, is not taken for its own.

mod apps;
mod digest;
mod process;
mod sandbox;
mod units;
mod writer;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::Arc;

use mlskeyd_policies::{CallerFacts, Identified};
use mlskeyd_protocol::v1::Owner;
use nix::unistd::{Group, Uid, User, getgrouplist};

pub(crate) use self::apps::Apps;
pub(crate) use self::process::{Peer, Process, Seen, Unseen, receive_from_anybody};
pub(crate) use self::sandbox::{MAX_ID, is_id};
use crate::audit::AuditCaller;

/// The app of callers that are none which the configuration names.
pub(crate) const DEFAULT_APP: &str = "default";

/// The verified identity of the process at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The user and the app: who owns what this caller makes.
    pub owner: Owner,
    /// The process id when it connected, for the records; it may be another
    /// process's by now. `None`: the process has none here.
    pub pid: Option<i32>,
    /// What policies may know of the caller.
    pub facts: Arc<CallerFacts>,
    /// What it runs, for the records.
    program: Option<String>,
    /// The process itself, while it may be asked about. `None`: nobody will, or it is not to
    /// be seen.
    pub(crate) process: Option<Arc<Process>>,
    /// Is it in a sandbox, or is that not to be seen? Then its user's rights are not its own.
    pub(crate) is_confined: bool,
    /// Has the process itself answered? On a bus nobody does.
    pub(crate) is_proven: bool,
}

/// Which app a process is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct App {
    name: String,
    identified: Identified,
    program: Option<String>,
    /// Is it in a sandbox, or is that not to be seen?
    is_confined: bool,
}

impl Default for App {
    fn default() -> Self {
        Self {
            name: DEFAULT_APP.to_owned(),
            identified: Identified::Unknown,
            program: None,
            is_confined: false,
        }
    }
}

impl Caller {
    /// The caller with this user id and process id, of which no more is known. A process id
    /// that is not positive is none: the kernel gives 0 for a process in another PID
    /// namespace.
    #[must_use]
    pub fn new(uid: u32, pid: Option<i32>) -> Self {
        Self::of_app(uid, pid, App::default())
    }

    /// The caller that is this app.
    pub(crate) fn of_app(uid: u32, pid: Option<i32>, app: App) -> Self {
        let facts = CallerFacts {
            uid,
            user: number(uid),
            groups: BTreeSet::new(),
            app: app.name.clone(),
            identified: app.identified,
        };
        Self {
            owner: Owner { uid, app: app.name },
            pid: pid.filter(|pid| *pid > 0),
            facts: Arc::new(facts),
            program: app.program,
            process: None,
            // Root makes sandboxes, and is in none that would hold it.
            is_confined: app.is_confined && uid != 0,
            is_proven: true,
        }
    }

    /// The same, with the process that was identified.
    pub(crate) fn with_process(self, process: Option<Arc<Process>>) -> Self {
        Self { process, ..self }
    }

    /// The same, as a bus says who it is.
    pub(crate) fn unproven(self) -> Self {
        Self {
            is_proven: false,
            ..self
        }
    }

    /// The same, with the names of the user and its groups, which the system looks up: that
    /// may take long, where they are in a directory of the company.
    #[must_use]
    pub fn looked_up(self) -> Self {
        let (user, groups) = names(self.owner.uid);
        let facts = CallerFacts {
            user,
            groups,
            ..(*self.facts).clone()
        };
        Self {
            facts: Arc::new(facts),
            ..self
        }
    }

    /// The caller, as the audit log names it.
    #[must_use]
    pub fn for_audit(&self) -> AuditCaller {
        AuditCaller {
            owner: self.owner.clone(),
            pid: self.pid,
            program: self.program.clone(),
        }
    }
}

/// The name of a user, and those of its groups.
fn names(uid: u32) -> (String, BTreeSet<String>) {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else {
        return (number(uid), BTreeSet::new());
    };
    let groups = CString::new(user.name.as_str())
        .ok()
        .and_then(|name| getgrouplist(&name, user.gid).ok());
    let groups = groups.unwrap_or_default().into_iter().map(|gid| {
        let group = Group::from_gid(gid).ok().flatten();
        group.map_or_else(|| number(gid.as_raw()), |group| group.name)
    });
    (user.name, groups.collect())
}

/// What has no name has a number.
fn number(id: u32) -> String {
    format!("#{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_the_app_stays() {
        let wire = App {
            name: "wire".to_owned(),
            identified: Identified::Observed,
            program: Some("/opt/wire".to_owned()),
            is_confined: false,
        };
        let caller = Caller::of_app(0, None, wire).looked_up();
        let root = &caller.facts;
        assert_eq!(root.user, "root");
        assert!(root.groups.contains("root"), "{root:?}");
        assert_eq!(
            (root.app.as_str(), root.identified),
            ("wire", Identified::Observed)
        );
        assert_eq!(caller.owner.to_string(), "0/wire");
        assert_eq!(caller.for_audit().program.as_deref(), Some("/opt/wire"));
        let nobody = Caller::new(3_999_999_999, None).looked_up().facts;
        assert_eq!(
            (nobody.user.as_str(), nobody.groups.len()),
            ("#3999999999", 0)
        );
    }

    #[test]
    fn a_process_of_another_namespace_has_no_id() {
        for pid in [None, Some(0), Some(-1)] {
            assert_eq!(Caller::new(1000, pid).pid, None);
        }
    }
}
