//! The door on a message bus, `org.mlskeyd.Custody1`: for apps in a sandbox, other languages,
//! desktop shells and administrators.
//!
//! It is there to look, to hear what happens, and to be given a connection that speaks the
//! socket's own protocol (`OpenChannel`): requests that use a key go there, since on a bus
//! others may listen, and nobody proves there that a message is its own. Nothing secret is
//! on the bus. docs/dbus.md is its manual, and `introspection/` what it says of itself.
//!
//! Calls are dispatched here (`calls`) and not by zbus's object server: each caller sees
//! objects of its own, these are as many as its keys, and a caller's calls are bounded.

mod calls;
mod clients;
mod errors;
mod introspect;
mod methods;
mod objects;
mod paths;
mod sealed;
mod signals;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use zbus::fdo::RequestNameFlags;
use zbus::message::Type;
use zbus::{Connection, Message, MessageStream};

use self::calls::Calls;
use super::crowd::Crowd;
use super::identify::Arrival;
use crate::caller::Apps;
use crate::config::Bus;
use crate::custody::Custody;
use crate::machine_bus;

/// The daemon's name on the bus.
const NAME: &str = "org.mlskeyd.Custody1";

/// The first and the longest pause between two attempts to connect: a bus that was restarted
/// is there again soon, and nobody is waited for where there is none.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(60));

/// Messages that wait to be dispatched: others wait at the bus.
const MAX_QUEUED: NonZeroUsize = NonZeroUsize::new(8).unwrap();

/// How long it may take to be on the bus.
const JOIN_WITHIN: Duration = Duration::from_secs(10);

/// Most calls that may come before that is known.
const MAX_EARLY: usize = 64;

/// Most calls under way, of all clients.
const MAX_CALLS: usize = 1024;

/// What the door needs.
pub(super) struct Door {
    pub(super) custody: Arc<Custody>,
    pub(super) apps: Arc<Apps>,
    pub(super) crowd: Arc<Crowd>,
    /// Takes the connections that are given away.
    pub(super) give: mpsc::Sender<Arrival>,
}

impl Door {
    /// Is on the bus until it is dropped, and comes back when the bus does. Tells when it has
    /// `tried` that first.
    pub(super) async fn serve(self, bus: Bus, tried: oneshot::Sender<()>) {
        let door = Arc::new(self);
        let (mut pause, mut told, mut tried) = (PAUSES.0, false, Some(tried));
        loop {
            let connected = connect(&bus).await;
            drop(tried.take());
            match connected {
                Ok((connection, early, messages)) => {
                    tracing::info!(NAME, ?bus, "on the bus");
                    (pause, told) = (PAUSES.0, false);
                    let of_machine = bus != Bus::Session;
                    let calls = Calls::new(Arc::clone(&door), connection, of_machine);
                    visit(calls, early, messages).await;
                    tracing::warn!("the bus has gone, or the name on it: the socket serves on");
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(%error, ?bus, NAME, "cannot be on the bus, and goes on trying; the socket serves nevertheless. Check that the bus runs, and that its policy lets this user own the name. This is said once");
                }
                Err(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = pause.saturating_mul(2).min(PAUSES.1);
        }
    }
}

/// A connection, what was heard there before it had the name, and what is heard from then on.
type OnBus = (Connection, Vec<Message>, MessageStream);

async fn connect(bus: &Bus) -> zbus::Result<OnBus> {
    let connecting = machine_bus::builder(bus).max_queued(MAX_QUEUED).build();
    let joined = async {
        let connection = connecting.await?;
        let (early, messages) = join(&connection).await?;
        Ok((connection, early, messages))
    };
    let joined = tokio::time::timeout(JOIN_WITHIN, joined).await;
    joined.unwrap_or_else(|_| {
        let text = format!("the bus does not answer within {} s", JOIN_WITHIN.as_secs());
        Err(zbus::Error::Failure(text))
    })
}

/// Takes the name. Anybody may send something to who has no name yet: that is read all the
/// while, since what waits unread would keep the bus's own answers from being heard.
async fn join(connection: &Connection) -> zbus::Result<(Vec<Message>, MessageStream)> {
    machine_bus::check_owner(connection).await?;
    // Before the name: whoever calls it is heard.
    let mut messages = MessageStream::from(connection);
    let mut early = Vec::new();
    let named = async {
        clients::watch_their_ends(connection).await?;
        let alone = RequestNameFlags::DO_NOT_QUEUE;
        connection.request_name_with_flags(NAME, alone).await
    };
    let mut named = std::pin::pin!(named);
    loop {
        tokio::select! {
            named = &mut named => {
                named?;
                break;
            }
            Some(message) = messages.next() => {
                let message = message?;
                // What is no call is for those who are served already: nobody is.
                if message.message_type() == Type::MethodCall {
                    early.push(message);
                }
                if early.len() > MAX_EARLY {
                    let text = "too many calls came before the name was there".to_owned();
                    return Err(zbus::Error::Failure(text));
                }
            }
        }
    }
    Ok((early, messages))
}

/// Serves until the connection ends.
async fn visit(calls: Calls, early: Vec<Message>, messages: MessageStream) {
    let early = futures::stream::iter(early.into_iter().map(Ok));
    let mut messages = early.chain(messages);
    let calls = Arc::new(calls);
    let mut under_way = JoinSet::new();
    under_way.spawn(signals::tell(Arc::clone(&calls)));
    loop {
        tokio::select! {
            message = messages.next() => {
                let Some(Ok(message)) = message else { return };
                if is_lost(&message) {
                    return;
                }
                match message.message_type() {
                    Type::MethodCall if under_way.len() > MAX_CALLS => calls.is_busy(&message).await,
                    Type::MethodCall => {
                        if let Some(call) = Arc::clone(&calls).begin(message) {
                            under_way.spawn(call);
                        }
                    }
                    Type::Signal => calls.clients().note_end(&message),
                    Type::MethodReturn | Type::Error => {}
                }
            }
            Some(ended) = under_way.join_next(), if !under_way.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, "a call on the bus was ended by a fault of the daemon");
                }
            }
        }
    }
}

/// Has the bus given the name to another one?
fn is_lost(message: &Message) -> bool {
    let header = message.header();
    let is = |member: &str| header.member().is_some_and(|it| it.as_str() == member);
    clients::is_of_the_bus(&header)
        && is("NameLost")
        && message.body().deserialize::<&str>() == Ok(NAME)
}
