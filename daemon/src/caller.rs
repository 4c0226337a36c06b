//! Who asks.

use mlskeyd_protocol::v1::Owner;
use tokio::net::unix::UCred;

use crate::audit::AuditCaller;

/// The app of every caller, as long as the configuration names none.
const DEFAULT_APP: &str = "default";

/// The verified identity of the process at the other end of a connection: as
/// the kernel noted it when the process connected (`SO_PEERCRED`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The user and the app: who owns what this caller makes.
    pub owner: Owner,
    /// The process id when it connected, for the records; it may be another
    /// process's by now. `None`: the process has none here.
    pub pid: Option<i32>,
}

impl Caller {
    /// The caller with this user id and process id. A process id that is not
    /// positive is none: the kernel gives 0 for a process in another PID
    /// namespace.
    #[must_use]
    pub fn new(uid: u32, pid: Option<i32>) -> Self {
        let owner = Owner {
            uid,
            app: DEFAULT_APP.to_owned(),
        };
        Self {
            owner,
            pid: pid.filter(|pid| *pid > 0),
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

#[cfg(test)]
mod tests {
    use super::*;

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
