//! Who calls on the bus: looked up once, looked at with each call, and forgotten when they
//! leave the bus.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::v1::Owner;
use tokio::sync::{AcquireError, OnceCell, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use zbus::fdo::ConnectionCredentials;
use zbus::message::{Header, Message};
use zbus::names::OwnedUniqueName;
use zbus::{Connection, MatchRule};

use crate::custody::Session;

/// Most clients that are known at a time.
const MAX_CLIENTS: usize = 4096;

/// Most clients of one user that are told what happens.
const MAX_SUBSCRIBERS: usize = 64;

/// Most calls of one client that are under way.
const MAX_CALLS: usize = 32;

/// Most calls of all clients of one user that are under way.
const MAX_CALLS_OF_USER: usize = 64;

const BUS: &str = "org.freedesktop.DBus";

/// Everybody who has called and is still there.
#[derive(Default)]
pub(super) struct Clients(Mutex<Known>);

#[derive(Default)]
struct Known {
    clients: HashMap<OwnedUniqueName, Arc<Client>>,
    /// The turns of users who have clients.
    turns: HashMap<u32, Arc<Turns>>,
}

/// The turns of all of a user's clients together.
struct Turns {
    calls: Arc<Semaphore>,
    /// One lists all keys at a time: the registry reads for others in between.
    listing: Semaphore,
}

/// One connection to the bus.
pub(super) struct Client {
    pub(super) name: OwnedUniqueName,
    turns: Arc<Semaphore>,
    /// Whose it is.
    pub(super) user: OnceCell<User>,
    /// Who it is.
    pub(super) session: OnceCell<Session>,
    /// Is it told what happens?
    subscribed: AtomicBool,
}

/// The user of a client.
pub(super) struct User {
    pub(super) uid: u32,
    turns: Arc<Turns>,
}

/// A turn of a client, or of its user.
pub(super) type Turn = OwnedSemaphorePermit;

impl Clients {
    /// The client of this name; `None`: there are too many.
    pub(super) fn get(&self, name: OwnedUniqueName) -> Option<Arc<Client>> {
        let mut known = self.known();
        if let Some(client) = known.clients.get(&name) {
            return Some(Arc::clone(client));
        }
        if known.clients.len() >= MAX_CLIENTS {
            return None;
        }
        let client = Arc::new(Client {
            name: name.clone(),
            turns: Arc::new(Semaphore::new(MAX_CALLS)),
            user: OnceCell::new(),
            session: OnceCell::new(),
            subscribed: AtomicBool::new(false),
        });
        known.clients.insert(name, Arc::clone(&client));
        Some(client)
    }

    /// The user with this id.
    pub(super) fn user(&self, uid: u32) -> User {
        let mut known = self.known();
        // Nobody else holds those of users who have gone.
        known.turns.retain(|_, turns| Arc::strong_count(turns) > 1);
        let turns = known.turns.entry(uid);
        let turns = turns.or_insert_with(|| {
            Arc::new(Turns {
                calls: Arc::new(Semaphore::new(MAX_CALLS_OF_USER)),
                listing: Semaphore::new(1),
            })
        });
        let turns = Arc::clone(turns);
        User { uid, turns }
    }

    /// From now on the client is told what happens; `false`: too many of its user are.
    pub(super) fn subscribe(&self, client: &Client, uid: u32) -> bool {
        let known = self.known();
        let is_of_user = |it: &&Arc<Client>| it.is_subscribed() && it.uid() == Some(uid);
        let others = known.clients.values().filter(is_of_user).count();
        let may = client.is_subscribed() || others < MAX_SUBSCRIBERS;
        if may {
            client.subscribed.store(true, Ordering::Relaxed);
        }
        may
    }

    /// Those who are told what happens, and who they are.
    pub(super) fn subscribers(&self) -> Vec<(OwnedUniqueName, Owner)> {
        let known = self.known();
        let subscribed = known.clients.values().filter(|it| it.is_subscribed());
        let named = subscribed.filter_map(|client| {
            let session = client.session.get()?;
            Some((client.name.clone(), session.caller().owner.clone()))
        });
        named.collect()
    }

    /// Forgets a client if this says that it has left the bus.
    pub(super) fn note_end(&self, signal: &Message) {
        let header = signal.header();
        let is_end = header
            .member()
            .is_some_and(|it| it.as_str() == "NameOwnerChanged");
        if !is_end || !is_of_the_bus(&header) {
            return;
        }
        let body = signal.body();
        if let Ok((name, _, "")) = body.deserialize::<(&str, &str, &str)>()
            && let Ok(name) = OwnedUniqueName::try_from(name)
        {
            let gone = self.known().clients.remove(&name);
            // Not under the lock: its session ends with it.
            drop(gone);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // Nothing in here is left half done by a panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    /// Its turn for one more call; `None`: it has too many under way.
    pub(super) fn turn(&self) -> Option<Turn> {
        Arc::clone(&self.turns).try_acquire_owned().ok()
    }

    pub(super) fn unsubscribe(&self) {
        self.subscribed.store(false, Ordering::Relaxed);
    }

    fn is_subscribed(&self) -> bool {
        self.subscribed.load(Ordering::Relaxed)
    }

    fn uid(&self) -> Option<u32> {
        self.user.get().map(|it| it.uid)
    }
}

impl User {
    /// Its turn for one more call; `None`: there are too many under way.
    pub(super) fn turn(&self) -> Option<Turn> {
        Arc::clone(&self.turns.calls).try_acquire_owned().ok()
    }

    /// Its turn to list all keys, when nobody else of the user's does.
    ///
    /// # Errors
    /// None that happens: the semaphore is never closed.
    pub(super) async fn listing(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.turns.listing.acquire().await
    }
}

/// Is it the bus itself that says this? Nobody else has that name.
pub(super) fn is_of_the_bus(header: &Header<'_>) -> bool {
    header.sender().is_some_and(|sender| sender.as_str() == BUS)
}

/// Has the bus tell when somebody leaves it.
pub(super) async fn watch_their_ends(bus: &Connection) -> zbus::Result<()> {
    let ends = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender(BUS)
        .interface(BUS)
        .member("NameOwnerChanged")
        .arg(2, "")
        .build()?;
    ask(bus, "AddMatch", &ends.to_string()).await?;
    Ok(())
}

/// What the bus says of a client: never longer than it takes the bus to answer.
pub(super) async fn credentials(
    bus: &Connection,
    name: &OwnedUniqueName,
) -> zbus::Result<ConnectionCredentials> {
    let answer = ask(bus, "GetConnectionCredentials", name).await?;
    answer.body().deserialize()
}

async fn ask<B>(bus: &Connection, member: &str, body: &B) -> zbus::Result<Message>
where
    B: serde::Serialize + zbus::DynamicType,
{
    let path = "/org/freedesktop/DBus";
    bus.call_method(Some(BUS), path, Some(BUS), member, body)
        .await
}
