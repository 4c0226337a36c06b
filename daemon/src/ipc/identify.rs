//! Who is at the other end of a connection: looked at, challenged, and looked at again.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;

use mlskeyd_protocol::handshake::Nonce;
use mlskeyd_protocol::server::{Greeting, TransportError};
use rand_core::{OsRng, RngCore};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::caller::{App, Apps, Caller, Peer, Seen, Unseen, receive_from_anybody};

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
    looking: &Arc<Semaphore>,
) -> Result<Caller, NotServed> {
    let peer = match Peer::of(greeting.as_fd(), pid) {
        Ok(peer) => Ok(Arc::new(peer)),
        Err(Unseen::Gone) => return Err(GONE),
        Err(why) => Err(why),
    };
    let before = match peer {
        Ok(peer) => {
            let it = Arc::clone(&peer);
            let before = aside(looking, move || it.look()).await?;
            challenge(greeting, &peer).await?;
            before.map(|before| (peer, before))
        }
        Err(why) => {
            greeting.challenge(nonce()?, receive_from_anybody).await?;
            Err(why)
        }
    };
    let apps = Arc::clone(apps);
    let name = move || {
        let app = match before {
            Ok((peer, before)) => which(&apps, uid, &before, &peer)?,
            Err(Unseen::Gone) => return Err(GONE),
            Err(why) => apps.hidden(&why),
        };
        Ok(Caller::of_app(uid, pid, app).looked_up())
    };
    aside(looking, name).await?
}

/// Which app it is, if it is what it was before.
fn which(apps: &Apps, uid: u32, before: &Seen, peer: &Peer) -> Result<App, NotServed> {
    match peer.look() {
        Ok(now) if before.is_same(&now) => Ok(apps.of(uid, &now)),
        Err(Unseen::Gone) => Err(GONE),
        Ok(_) | Err(_) => Err(CHANGED),
    }
}

async fn challenge(greeting: &mut Greeting, peer: &Peer) -> Result<(), NotServed> {
    // Before it is challenged: what is sent earlier comes without its writer.
    peer.tell_writers(greeting.as_fd(), true)?;
    let answer = greeting.challenge(nonce()?, |socket, room| peer.receive(socket, room));
    match answer.await {
        Err(TransportError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
            Err(ANOTHER)
        }
        answered => {
            answered?;
            Ok(peer.tell_writers(greeting.as_fd(), false)?)
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
async fn aside<T: Send + 'static>(
    looking: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, TransportError> {
    let turn = Arc::clone(looking).acquire_owned().await;
    let turn = turn.map_err(io::Error::other)?;
    let done = spawn_blocking(move || {
        let _turn = turn;
        work()
    });
    Ok(done.await.map_err(io::Error::other)?)
}
