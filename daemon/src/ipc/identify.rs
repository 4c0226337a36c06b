//! Who is at the other end of a connection: looked at, challenged, and looked at again.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;

use mlskeyd_protocol::handshake::{Nonce, Service};
use mlskeyd_protocol::server::{Greeting, TransportError};
use rand_core::{OsRng, RngCore};
use tokio::net::UnixStream;
use tokio::task::spawn_blocking;

use super::crowd::Crowd;
use crate::caller::{App, Apps, Caller, Peer, Process, Seen, Unseen, receive_from_anybody};

/// A connection, and who is said to be there.
pub(super) struct Arrival {
    pub(super) stream: UnixStream,
    pub(super) uid: u32,
    /// As the kernel or the bus says; for the log.
    pub(super) pid: Option<i32>,
    pub(super) origin: Origin,
}

/// Where a connection comes from, which says how it is known whose it is.
pub(super) enum Origin {
    /// Somebody has connected to the socket: the kernel knows who.
    Socket,
    /// It was given to a process that asked on a bus.
    Bus {
        /// The process, as the bus says.
        process: Result<Peer, Unseen>,
        /// Is the bus the machine's own? What another one says is not sure.
        of_machine: bool,
    },
}

/// Why somebody is not served.
pub(super) enum NotServed {
    /// They are told.
    Refused(&'static str),
    /// The connection is at its end.
    Ended(TransportError),
}

impl<E: Into<TransportError>> From<E> for NotServed {
    fn from(error: E) -> Self {
        Self::Ended(error.into())
    }
}

const GONE: NotServed = NotServed::Refused(
    "the process that connected has ended; each process makes a connection of its own",
);

const ANOTHER: NotServed = NotServed::Refused(
    "another process has answered than the one that connected; each process, also a forked one, makes a connection of its own",
);

const CHANGED: NotServed =
    NotServed::Refused("the process has started another program since it connected; connect again");

/// Identifies the caller. What it sends is taken only if the process that connected has sent
/// it, knowing a nonce that it got after it was looked at; and if it still runs the same
/// program then.
pub(super) async fn identify(
    greeting: &mut Greeting,
    apps: &Arc<Apps>,
    (uid, pid): (u32, Option<i32>),
    origin: Origin,
    crowd: &Arc<Crowd>,
) -> Result<Caller, NotServed> {
    let (peer, from_bus, sure) = match origin {
        Origin::Socket => (Peer::of(greeting.as_fd(), pid), false, true),
        Origin::Bus {
            process,
            of_machine,
        } => (process, true, of_machine),
    };
    let peer = match peer {
        Ok(peer) if from_bus => Ok(Arc::new(peer.proves_itself(greeting.as_fd())?)),
        Ok(peer) => Ok(Arc::new(peer)),
        Err(Unseen::Gone) => return Err(GONE),
        Err(why) => Err(why),
    };
    let seen = match peer {
        Ok(peer) => {
            let it = Arc::clone(&peer);
            let before = aside(crowd, uid, move || it.look()).await?;
            if matches!(before, Err(Unseen::Gone)) {
                return Err(GONE);
            }
            let may_be_another = from_bus && before.as_ref().is_ok_and(Seen::is_in_sandbox);
            let other = challenge(greeting, &peer, may_be_another).await?;
            before.map(|before| Answered {
                peer,
                before,
                other,
                sure,
            })
        }
        Err(why) => {
            greeting.challenge(nonce()?, receive_from_anybody).await?;
            Err(why)
        }
    };
    let apps = Arc::clone(apps);
    // Of others nobody asks again what they are, so nothing of them is held.
    let administers = greeting.hello().service == Service::Admin;
    let name = move || {
        let (app, process) = match seen {
            Ok(answered) => {
                let (app, process) = answered.app(&apps, uid)?;
                (app, administers.then(|| Arc::new(process)))
            }
            Err(Unseen::Gone) => return Err(GONE),
            Err(why) => (apps.hidden(&why), None),
        };
        let caller = Caller::of_app(uid, pid, app).with_process(process);
        Ok(caller.looked_up())
    };
    aside(crowd, uid, name).await?
}

/// Who has answered a challenge.
struct Answered {
    peer: Arc<Peer>,
    /// What the peer was before.
    before: Seen,
    /// Another process, for which the peer has connected: that is to be in its sandbox.
    other: Option<Peer>,
    /// Is it sure which process the peer is?
    sure: bool,
}

impl Answered {
    /// Which app it is, and the process, if the peer is what it was before.
    fn app(self, apps: &Apps, uid: u32) -> Result<(App, Process), NotServed> {
        let now = match self.peer.look() {
            Ok(now) if self.before.is_same(&now) => now,
            Err(Unseen::Gone) => return Err(GONE),
            Ok(_) | Err(_) => return Err(CHANGED),
        };
        let (peer, seen) = match self.other {
            None => (self.peer, now),
            Some(other) => match other.look() {
                Ok(seen) if seen.shares_sandbox_with(&now) => (Arc::new(other), seen),
                Ok(_) | Err(_) => return Err(ANOTHER),
            },
        };
        let seen = if self.sure { seen } else { seen.doubtful() };
        let app = apps.of(uid, &seen);
        Ok((app, Process::new(peer, seen)))
    }
}

/// Answers the process that has answered, if that is another one and may be.
async fn challenge(
    greeting: &mut Greeting,
    peer: &Peer,
    may_be_another: bool,
) -> Result<Option<Peer>, NotServed> {
    // Before it is challenged: what is sent earlier comes without its writer.
    peer.tell_writers(greeting.as_fd(), true)?;
    let mut other = None;
    let answer = greeting.challenge(nonce()?, |socket, room| {
        peer.receive(socket, room, may_be_another.then_some(&mut other))
    });
    match answer.await {
        Err(TransportError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
            Err(ANOTHER)
        }
        answered => {
            answered?;
            peer.tell_writers(greeting.as_fd(), false)?;
            Ok(other)
        }
    }
}

fn nonce() -> io::Result<Nonce> {
    let mut nonce = Nonce::default();
    OsRng.try_fill_bytes(&mut nonce).map_err(io::Error::other)?;
    Ok(nonce)
}

/// Does what may take long, since a file system or a directory of the company does, where
/// nobody else waits; few such things at a time for each user.
pub(super) async fn aside<T: Send + 'static>(
    crowd: &Arc<Crowd>,
    uid: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let turn = crowd.turn_to_look(uid).await;
    let done = spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    done.await.map_err(io::Error::other)
}
