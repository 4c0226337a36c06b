//! Who asks.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::Arc;

use mlskeyd_policies::{CallerFacts, Identified};
use mlskeyd_protocol::v1::Owner;
use nix::unistd::{Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;

use crate::audit::AuditCaller;

/// The app of every caller, as long as the configuration names none.
pub(crate) const DEFAULT_APP: &str = "default";

/// The verified identity of the process at the other end of a connection: as
/// the kernel noted it when the process connected (`SO_PEERCRED`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user and the app: who owns what this caller makes.
    pub owner: Owner,
    /// The process id when it connected, for the records; it may be another
    /// process's by now. `None`: the process has none here.
    pub pid: Option<i32>,
    /// What policies may know of the caller.
    pub facts: Arc<CallerFacts>,
}

impl Caller {
    /// The caller with this user id and process id. A process id that is not
    /// positive is none: the kernel gives 0 for a process in another PID
    /// namespace.
    #[must_use]
    pub fn new(uid: u32, pid: Option<i32>) -> Self {
        Self::with(uid, pid, number(uid), BTreeSet::new())
    }

    /// The same, with the names of the user and its groups, which the system looks up: that
    /// may take long, where they are in a directory of the company.
    #[must_use]
    pub fn looked_up(uid: u32, pid: Option<i32>) -> Self {
        let known = User::from_uid(Uid::from_raw(uid));
        let Ok(Some(user)) = known else {
            return Self::new(uid, pid);
        };
        let groups = CString::new(user.name.as_str())
            .ok()
            .and_then(|name| getgrouplist(&name, user.gid).ok());
        let groups = groups.unwrap_or_default().into_iter().map(|gid| {
            let group = Group::from_gid(gid).ok().flatten();
            group.map_or_else(|| number(gid.as_raw()), |group| group.name)
        });
        Self::with(uid, pid, user.name, groups.collect())
    }

    fn with(uid: u32, pid: Option<i32>, user: String, groups: BTreeSet<String>) -> Self {
        let owner = Owner {
            uid,
            app: DEFAULT_APP.to_owned(),
        };
        let facts = CallerFacts {
            uid,
            user,
            groups,
            app: owner.app.clone(),
            identified: Identified::Unknown,
        };
        Self {
            owner,
            pid: pid.filter(|pid| *pid > 0),
            facts: Arc::new(facts),
        }
    }

    /// The caller with these peer credentials.
    #[must_use]
    pub fn from_peer(peer: &UCred) -> Self {
        Self::new(peer.uid(), peer.pid())
    }

    /// The caller, as the audit log names it.
    #[must_use]
    pub fn for_audit(&self) -> AuditCaller {
        AuditCaller {
            owner: self.owner.clone(),
            pid: self.pid,
        }
    }
}

/// What has no name has a number.
fn number(id: u32) -> String {
    format!("#{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        let root = Caller::looked_up(0, None).facts;
        assert_eq!(root.user, "root");
        assert!(root.groups.contains("root"), "{root:?}");
        let nobody = Caller::looked_up(3_999_999_999, None).facts;
        assert_eq!(
            (nobody.user.as_str(), nobody.groups.len()),
            ("#3999999999", 0)
        );
    }

    #[test]
    fn the_peer_of_a_socket_is_its_process_and_user() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let (socket, _peer) = tokio::net::UnixStream::pair().unwrap();
        let caller = Caller::from_peer(&socket.peer_cred().unwrap());
        assert_eq!(caller.owner.uid, rustix::process::geteuid().as_raw());
        assert_eq!(caller.owner.app, "default");
        assert_eq!(caller.pid, i32::try_from(std::process::id()).ok());
    }

    #[test]
    fn a_process_of_another_namespace_has_no_id() {
        for pid in [None, Some(0), Some(-1)] {
            assert_eq!(Caller::new(1000, pid).pid, None);
        }
    }
}
