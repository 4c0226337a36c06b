//! Who is connected: bounds per user, so that no user takes the daemon from the
//! others.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlskeyd_protocol::frame::Budget;
use mlskeyd_protocol::limits::MAX_MEMORY_PER_USER;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Most connections of one user that have not said their greeting. One more
/// ends the oldest: an honest client says it at once.
const MAX_GREETING: usize = 64;

/// Most connections of one user whose process is looked at, or whose user is looked up, at a
/// time: that may hang in a file system, or in a directory of the company.
const MAX_LOOKING: usize = 4;

/// How many connections may be open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of all users together. Root and the daemon's own user get in
    /// nevertheless, to see what is going on.
    pub connections: usize,
    /// Of one user.
    pub per_user: usize,
}

/// Everybody who is connected.
#[derive(Debug)]
pub(super) struct Crowd {
    bounds: Bounds,
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    by_uid: HashMap<u32, User>,
    connections: usize,
    next: u64,
}

#[derive(Debug)]
struct User {
    connections: usize,
    greeting: VecDeque<(u64, oneshot::Sender<()>)>,
    budget: Budget,
    looking: Arc<Semaphore>,
}

impl Default for User {
    fn default() -> Self {
        Self {
            connections: 0,
            greeting: VecDeque::new(),
            budget: Budget::new(MAX_MEMORY_PER_USER),
            looking: Arc::new(Semaphore::new(MAX_LOOKING)),
        }
    }
}

/// A connection that is to say its greeting.
#[derive(Debug)]
pub(super) struct Newcomer {
    crowd: Arc<Crowd>,
    uid: u32,
    number: u64,
    /// The memory that the user's requests share.
    pub(super) budget: Budget,
}

/// A user's turn to have something looked at, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    crowd: Arc<Crowd>,
    uid: u32,
    permit: Option<OwnedSemaphorePermit>,
}

/// A connection's place in the crowd, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    crowd: Arc<Crowd>,
    uid: u32,
}

impl Crowd {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            users: Mutex::default(),
        }
    }

    /// Lets a connection in to say its greeting; it is to leave when the
    /// receiver resolves.
    pub(super) fn arrive(self: &Arc<Self>, uid: u32) -> (Newcomer, oneshot::Receiver<()>) {
        let (evict, evicted) = oneshot::channel();
        let mut users = self.users();
        users.next = users.next.wrapping_add(1);
        let number = users.next;
        let user = users.by_uid.entry(uid).or_default();
        user.greeting.push_back((number, evict));
        if user.greeting.len() > MAX_GREETING {
            // Dropping the sender resolves the receiver.
            user.greeting.pop_front();
        }
        let budget = user.budget.clone();
        drop(users);
        (
            Newcomer {
                crowd: Arc::clone(self),
                uid,
                number,
                budget,
            },
            evicted,
        )
    }

    /// The user's turn to have a process looked at, or a name looked up.
    pub(super) async fn turn_to_look(self: &Arc<Self>, uid: u32) -> Turn {
        let turn = |permit| Turn {
            crowd: Arc::clone(self),
            uid,
            permit,
        };
        let looking = {
            let mut users = self.users();
            let looking = Arc::clone(&users.by_uid.entry(uid).or_default().looking);
            // Here, so that the entry is not forgotten before the turn is taken.
            if let Ok(permit) = Arc::clone(&looking).try_acquire_owned() {
                return turn(Some(permit));
            }
            looking
        };
        // The semaphore is never closed.
        turn(looking.acquire_owned().await.ok())
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        // Nothing in here is left half done by a panic.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Newcomer {
    /// Gives a connection that has said its greeting a place; `None` if the
    /// user, or everybody together, has too many.
    pub(super) fn take_place(&self, privileged: bool) -> Option<Place> {
        let mut users = self.crowd.users();
        let bounds = self.crowd.bounds;
        if users.connections >= bounds.connections && !privileged {
            return None;
        }
        let user = users.by_uid.get_mut(&self.uid)?;
        if user.connections >= bounds.per_user {
            return None;
        }
        user.connections = user.connections.saturating_add(1);
        users.connections = users.connections.saturating_add(1);
        drop(users);
        Some(Place {
            crowd: Arc::clone(&self.crowd),
            uid: self.uid,
        })
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let mut users = self.crowd.users();
        if let Some(user) = users.by_uid.get_mut(&self.uid) {
            user.greeting.retain(|(number, _)| *number != self.number);
        }
        users.forget_if_gone(self.uid);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.permit = None;
        self.crowd.users().forget_if_gone(self.uid);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.crowd.users();
        users.connections = users.connections.saturating_sub(1);
        if let Some(user) = users.by_uid.get_mut(&self.uid) {
            user.connections = user.connections.saturating_sub(1);
        }
        users.forget_if_gone(self.uid);
    }
}

impl Users {
    fn forget_if_gone(&mut self, uid: u32) {
        // Whoever still looks for a user that has gone has its turn still: else who connects
        // and goes, again and again, would have any number of them.
        let gone = |user: &User| {
            user.connections == 0
                && user.greeting.is_empty()
                && user.looking.available_permits() == MAX_LOOKING
        };
        if self.by_uid.get(&uid).is_some_and(gone) {
            self.by_uid.remove(&uid);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn crowd() -> Arc<Crowd> {
        Arc::new(Crowd::new(Bounds {
            connections: 5,
            per_user: 3,
        }))
    }

    #[test]
    fn each_user_has_so_many_places() {
        let crowd = crowd();
        let places: Vec<_> = (0..3)
            .map(|_| crowd.arrive(7).0.take_place(false).unwrap())
            .collect();
        assert!(crowd.arrive(7).0.take_place(true).is_none());
        assert!(crowd.arrive(8).0.take_place(false).is_some());
        drop(places);
        assert!(crowd.arrive(7).0.take_place(false).is_some());
        assert!(crowd.users().by_uid.is_empty());
    }

    /// A look that hangs goes on when its connection has gone.
    #[tokio::test]
    async fn who_comes_again_has_no_more_turns_to_be_looked_at() {
        let crowd = crowd();
        let mut hanging = Vec::new();
        for _ in 0..MAX_LOOKING {
            let (newcomer, _) = crowd.arrive(7);
            hanging.push(crowd.turn_to_look(7).await);
            drop(newcomer);
        }
        let mut waits = Box::pin(crowd.turn_to_look(7));
        assert!(waits.as_mut().now_or_never().is_none());
        drop(crowd.turn_to_look(8).await);
        assert!(!crowd.users().by_uid.contains_key(&8));
        drop(hanging);
        let last = waits.await;
        assert!(crowd.users().by_uid.contains_key(&7));
        drop(last);
        assert!(!crowd.users().by_uid.contains_key(&7));
    }

    #[test]
    fn all_together_have_so_many_places_and_the_admin_gets_in() {
        let crowd = crowd();
        let places: Vec<_> = (0..5)
            .map(|uid| crowd.arrive(uid).0.take_place(false).unwrap())
            .collect();
        assert!(crowd.arrive(5_000).0.take_place(false).is_none());
        assert!(crowd.arrive(0).0.take_place(true).is_some());
        drop(places);
    }

    #[test]
    fn the_oldest_silent_connection_makes_room() {
        let crowd = crowd();
        let mut waiting: Vec<_> = (0..=MAX_GREETING).map(|_| crowd.arrive(7)).collect();
        assert!(waiting[0].1.try_recv() == Err(oneshot::error::TryRecvError::Closed));
        assert!(waiting[1].1.try_recv() == Err(oneshot::error::TryRecvError::Empty));
    }
}
