//! Asks polkit whether somebody may administer who is neither root nor the daemon's own
//! user: docs/polkit.md is the manual.
//!
//! polkit is asked about a process: the one that was identified, which has to run the same
//! program when polkit has answered. A person may be asked meanwhile, by the agent of the
//! desktop, so answers may take minutes. Nobody waits for another user's.

mod right;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zbus::message::Flags;
use zbus::{Connection, Message, Variant, fdo};

pub use self::right::Right;
use crate::caller::Process;
use crate::config::Bus;
use crate::machine_bus;

/// Most questions of one user that wait for an answer: each may be a dialog in front of a
/// person.
const MAX_OF_USER: usize = 4;

/// How long a bus may take to hear that a question is given up.
const GIVE_UP_WITHIN: Duration = Duration::from_secs(5);

const NAME: &str = "org.freedesktop.PolicyKit1";
const PATH: &str = "/org/freedesktop/PolicyKit1/Authority";
const AUTHORITY: &str = "org.freedesktop.PolicyKit1.Authority";

/// polkit's `AllowUserInteraction`.
const MAY_ASK_A_PERSON: u32 = 1;

/// The polkit of the bus that the configuration names.
pub(crate) struct Polkit {
    bus: Bus,
    /// Made with the first question, and again when it broke.
    connection: tokio::sync::Mutex<Option<Connection>>,
    /// The turns of users who ask.
    turns: Mutex<HashMap<u32, Arc<Semaphore>>>,
    next: AtomicU64,
}

/// What polkit is asked.
pub(crate) struct Question {
    /// The process that asks.
    pub(crate) process: Arc<Process>,
    /// Its user, when it connected.
    pub(crate) uid: u32,
    /// Its app, for rules.
    pub(crate) app: String,
    /// What it wants to do.
    pub(crate) right: Right,
    /// The request, for rules.
    pub(crate) request: &'static str,
    /// May a person be asked?
    pub(crate) interactive: bool,
    /// Until when an answer is waited for.
    pub(crate) until: Instant,
}

/// Why it may not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// polkit says so.
    No,
    /// It may if a person says so, and none may be asked.
    TakesAPerson,
    /// It may if a person says so, and there is nothing to ask one with.
    NobodyToAsk,
    /// A person was asked, and would not say so.
    Dismissed,
    /// Nobody has answered in time.
    TooLate,
    /// The process has ended, or become another program.
    Changed,
    /// Too many questions of this user wait already.
    Busy,
    /// There is no polkit to ask: why.
    Absent(String),
}

/// What `CheckAuthorization` answers: is it authorized, could a person make it so, and more.
type Said = (bool, bool, HashMap<String, String>);

impl Polkit {
    /// That of this bus. `None`: there is none, as of a bus that is a user's own.
    pub(crate) fn of(bus: Option<&Bus>) -> Option<Self> {
        let bus = bus.filter(|bus| **bus != Bus::Session)?;
        Some(Self {
            bus: bus.clone(),
            connection: tokio::sync::Mutex::default(),
            turns: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Asks whether it may. To drop this takes the question back.
    pub(crate) async fn ask(&self, question: &Question) -> Result<(), Refusal> {
        let turn = self.turn(question.uid).ok_or(Refusal::Busy)?;
        let answer = async {
            self.answer(question).await?;
            // What is permitted is so to the process that asked.
            match is_same(&question.process, turn).await {
                true => Ok(()),
                false => Err(Refusal::Changed),
            }
        };
        let answer = tokio::time::timeout_at(question.until.into(), answer);
        answer.await.unwrap_or(Err(Refusal::TooLate))
    }

    async fn answer(&self, question: &Question) -> Result<(), Refusal> {
        let mut said = self.check(question).await;
        // Asking again is harmless, and polkit may have been started again.
        if said.as_ref().is_err_and(is_lost) {
            said = self.check(question).await;
        }
        Err(match said {
            Ok((true, _, _)) => return Ok(()),
            Ok((false, true, _)) if question.interactive => Refusal::NobodyToAsk,
            Ok((false, true, _)) => Refusal::TakesAPerson,
            Ok((false, false, more)) if more.contains_key("polkit.dismissed") => Refusal::Dismissed,
            Ok((false, false, _)) => Refusal::No,
            Err(error) => Refusal::Absent(error.to_string()),
        })
    }

    /// The user's turn for one more question.
    fn turn(&self, uid: u32) -> Option<OwnedSemaphorePermit> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asks just now holds the user's.
        turns.retain(|_, turns| turns.available_permits() < MAX_OF_USER);
        let turns = turns.entry(uid);
        let turns = turns.or_insert_with(|| Arc::new(Semaphore::new(MAX_OF_USER)));
        Arc::clone(turns).try_acquire_owned().ok()
    }

    async fn check(&self, question: &Question) -> zbus::Result<Said> {
        let connection = self.connection().await?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let check = Check {
            connection,
            id: number.to_string(),
            is_answered: false,
        };
        check.answer(question).await
    }

    async fn connection(&self) -> zbus::Result<Connection> {
        let mut kept = self.connection.lock().await;
        if let Some(connection) = kept.as_ref().filter(|it| !it.is_closed()) {
            return Ok(connection.clone());
        }
        let connection = machine_bus::builder(&self.bus).build().await?;
        machine_bus::check_owner(&connection).await?;
        Ok(kept.insert(connection).clone())
    }
}

/// One question that polkit was asked. It is taken back if it was not answered.
struct Check {
    connection: Connection,
    id: String,
    is_answered: bool,
}

impl Check {
    async fn answer(mut self, question: &Question) -> zbus::Result<Said> {
        let process = &question.process;
        // polkit from 124 on takes the descriptor, earlier ones the other three.
        let subject = HashMap::from([
            ("pid", Variant::from(process.pid().cast_unsigned())),
            ("start-time", Variant::from(process.started())),
            ("uid", Variant::from(question.uid.cast_signed())),
            ("pidfd", Variant::Fd(process.pidfd().into())),
        ]);
        let details = HashMap::from([
            ("app", question.app.as_str()),
            ("request", question.request),
        ]);
        let flags = if question.interactive {
            MAY_ASK_A_PERSON
        } else {
            0
        };
        let right = question.right.id();
        let body = (
            ("unix-process", subject),
            right,
            details,
            flags,
            self.id.as_str(),
        );
        let answer = self
            .connection
            .call_method(
                Some(NAME),
                PATH,
                Some(AUTHORITY),
                "CheckAuthorization",
                &body,
            )
            .await;
        self.is_answered = true;
        let (said,) = answer?.body().deserialize()?;
        Ok(said)
    }

    async fn take_back(connection: Connection, id: String) -> zbus::Result<()> {
        let method = "CancelCheckAuthorization";
        let message = Message::method_call(PATH, method)
            .destination(NAME)
            .interface(AUTHORITY)
            .with_flags(Flags::NO_REPLY_EXPECTED)
            .build(&id)?;
        connection.send(&message).await
    }
}

impl Drop for Check {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (connection, id) = (self.connection.clone(), std::mem::take(&mut self.id));
            runtime.spawn(async move {
                let told = Self::take_back(connection, id);
                if let Ok(Err(error)) = tokio::time::timeout(GIVE_UP_WITHIN, told).await {
                    tracing::debug!(%error, "polkit is not told that a question is given up");
                }
            });
        }
    }
}

/// Has polkit, or the bus, gone away in the middle?
fn is_lost(error: &zbus::Error) -> bool {
    match error {
        zbus::Error::InputOutput(_) => true,
        zbus::Error::FDO(error) => {
            matches!(
                **error,
                fdo::Error::NoReply(_) | fdo::Error::Disconnected(_)
            )
        }
        _ => false,
    }
}

/// Is the process what it was? That may take long, since a file system does: the turn is over
/// when it has been seen, also if nobody waits for that any more.
async fn is_same(process: &Arc<Process>, turn: OwnedSemaphorePermit) -> bool {
    let process = Arc::clone(process);
    let looked = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        process.look_again()
    });
    matches!(looked.await, Ok(Ok(true)))
}
