//! One call: who makes it, is it its turn, and what it is answered.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mlskeyd_protocol::server::Reporter;
use mlskeyd_protocol::v1::{CallOptions, Failure, Interaction, Owner, Priority};
use zbus::Connection;
use zbus::message::{Body, Flags, Header, Message};
use zbus::names::OwnedUniqueName;

use super::Door;
use super::clients::{Client, Clients, credentials};
use super::errors::{NotDone, Wrong};
use crate::caller::{Caller, Peer, Process, Unseen};
use crate::custody::{Asker, Call, Request, Session};
use crate::ipc::identify::{Arrival, Origin, aside};

/// Longest body of a call that is read, in bytes: what is longer comes in a descriptor.
const MAX_BODY: usize = 64 * 1024;

/// How long a call may take, of a caller that does not say how long it waits: the usual 25
/// seconds (D-Bus Specification has none; libdbus, GDBus and sd-bus have these).
const PATIENCE: Duration = Duration::from_secs(20);

/// How long a call may take that may wait for a person.
const PATIENCE_WITH_A_PERSON: Duration = Duration::from_secs(120);

/// All calls on one connection to the bus.
pub(super) struct Calls {
    door: Arc<Door>,
    bus: Connection,
    /// Is the bus the machine's own?
    of_machine: bool,
    clients: Clients,
}

/// What a bus says of a client.
struct Said {
    uid: u32,
    pid: Option<i32>,
    process: Result<Peer, Unseen>,
}

/// A call whose caller is known.
pub(super) struct Asked<'a> {
    pub(super) calls: &'a Calls,
    pub(super) client: &'a Arc<Client>,
    pub(super) session: &'a Session,
    pub(super) message: &'a Message,
    pub(super) header: Header<'a>,
    pub(super) body: Body,
}

impl Calls {
    pub(super) fn new(door: Arc<Door>, bus: Connection, of_machine: bool) -> Self {
        Self {
            door,
            bus,
            of_machine,
            clients: Clients::default(),
        }
    }

    pub(super) fn door(&self) -> &Door {
        &self.door
    }

    pub(super) fn bus(&self) -> &Connection {
        &self.bus
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.clients
    }

    /// Answers that too much goes on.
    pub(super) async fn is_busy(&self, call: &Message) {
        self.answer(call, Err(NotDone::busy())).await;
    }

    /// Begins with a call, in the order in which they come; what is left to do of it. `None`:
    /// nobody has called, as a bus never has it.
    pub(super) fn begin(
        self: Arc<Self>,
        call: Message,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let name = call.header().sender().map(|it| it.to_owned().into());
        let client = self.clients.get(name?);
        let turn = client.as_ref().and_then(|client| client.turn());
        Some(async move {
            let answer = match (client, turn) {
                (Some(client), Some(_turn)) => self.serve(&client, &call).await,
                _ => Err(NotDone::busy()),
            };
            self.answer(&call, answer).await;
        })
    }

    async fn serve(&self, client: &Arc<Client>, message: &Message) -> Result<Message, NotDone> {
        let body = message.body();
        if body.len() > MAX_BODY {
            let text = "the call is too large; give what is large by a sealed descriptor";
            return Err(NotDone::call(Wrong::Limits, text));
        }
        let user = client.user.get_or_try_init(|| async {
            let said = self.peer(&client.name).await?;
            Ok::<_, NotDone>(self.clients.user(said.uid))
        });
        let user = user.await?;
        // Before its process is looked at, since that may hang.
        let _turn = user.turn().ok_or_else(NotDone::busy)?;
        let identified = client.session.get_or_try_init(|| self.identify(client));
        let session = identified.await?;
        self.look_again(user.uid, session).await?;
        let asked = Asked {
            calls: self,
            client,
            session,
            message,
            header: message.header(),
            body,
        };
        super::methods::serve(&asked).await
    }

    /// Who a client is: the user as the bus says, the app as its process looks. That is how
    /// it is shown what is its own. It proves nothing: who uses a key does that on a channel.
    async fn identify(&self, client: &Client) -> Result<Session, NotDone> {
        let Said { uid, pid, process } = self.peer(&client.name).await?;
        let apps = Arc::clone(&self.door.apps);
        let peer = match process {
            Err(Unseen::Gone) => return Err(gone()),
            peer => peer,
        };
        let look = move || {
            let looked = peer.and_then(|peer| peer.look().map(|seen| (peer, seen)));
            let (app, process) = match looked {
                Ok((peer, seen)) => {
                    // It may be a child's connection that it gave away.
                    let seen = seen.doubtful();
                    let app = apps.of(uid, &seen);
                    (app, Some(Arc::new(Process::new(Arc::new(peer), seen))))
                }
                Err(Unseen::Gone) => return Err(gone()),
                Err(why) => (apps.hidden(&why), None),
            };
            let caller = Caller::of_app(uid, pid, app).with_process(process);
            Ok(caller.unproven().looked_up())
        };
        let looked = aside(&self.door.crowd, uid, look).await;
        let caller = looked.map_err(|error| fault(&error))??;
        // Without the process's descriptor its id may have become another one's before it was
        // looked at; not if the client is there still, and has it.
        if self.peer(&client.name).await?.pid != pid {
            return Err(gone());
        }
        Ok(self.door.custody.connect(caller))
    }

    /// It still runs the program that it was identified by.
    async fn look_again(&self, uid: u32, session: &Session) -> Result<(), NotDone> {
        let Some(process) = session.caller().process.clone() else {
            return Ok(());
        };
        let is_same = aside(&self.door.crowd, uid, move || process.look_again()).await;
        match is_same.map_err(|error| fault(&error))? {
            Ok(true) => Ok(()),
            Err(Unseen::Gone) => Err(gone()),
            Ok(false) | Err(_) => {
                let text = "the process has started another program since it connected to the bus; connect again";
                Err(NotDone::call(Wrong::Gone, text))
            }
        }
    }

    /// What the bus says of a client.
    async fn peer(&self, name: &OwnedUniqueName) -> Result<Said, NotDone> {
        let said = credentials(&self.bus, name).await.map_err(|_| gone())?;
        let uid = said.unix_user_id().ok_or_else(gone)?;
        // A session's bus is its user's: it cannot say who others are.
        if !self.of_machine && uid != rustix::process::geteuid().as_raw() {
            let text = "mlskeyd is on a session's bus here, and serves its own user alone; others use its socket, or the machine's bus";
            return Err(NotDone::call(Wrong::Gone, text));
        }
        let pid = said.process_id().and_then(|pid| i32::try_from(pid).ok());
        let process = said.into_process_fd().map(Into::into);
        let process = Peer::on_bus(process, pid);
        Ok(Said { uid, pid, process })
    }

    /// Sends the answer, if one is wanted.
    async fn answer(&self, call: &Message, answer: Result<Message, NotDone>) {
        let flags = call.primary_header().flags();
        if flags.contains(Flags::NO_REPLY_EXPECTED) {
            return;
        }
        let message = answer.or_else(|error| error.to_message(&call.header()));
        let sent = match &message {
            Ok(message) => self.bus.send(message).await,
            Err(error) => Err(error.clone()),
        };
        if let Err(error) = sent {
            tracing::debug!(%error, "an answer was not sent on the bus");
        }
    }
}

impl Asked<'_> {
    /// The one path of a request.
    pub(super) async fn go<R: Request>(&self, request: R) -> Result<R::Reply, Failure> {
        let flags = self.message.primary_header().flags();
        let (interaction, patience) = match flags.contains(Flags::ALLOW_INTERACTIVE_AUTH) {
            true => (Interaction::UpTo(120_000), PATIENCE_WITH_A_PERSON),
            false => (Interaction::Never, PATIENCE),
        };
        let options = CallOptions {
            interaction,
            priority: Priority::Interactive,
            token: 0,
        };
        let now = Instant::now();
        // On a bus nobody is told how far a call is.
        let (reporter, _) = Reporter::channel();
        let call = Call {
            options,
            deadline: now.checked_add(patience).unwrap_or(now),
            progress: reporter.for_call(options.token),
            asker: Asker {
                owner: self.owner().clone(),
                action: R::ACTION,
            },
        };
        self.session.serve(call, request).await
    }

    pub(super) fn owner(&self) -> &Owner {
        &self.session.caller().owner
    }

    /// Gives the caller a connection.
    pub(super) async fn channel(&self) -> Result<std::os::fd::OwnedFd, NotDone> {
        let Said { uid, pid, process } = self.calls.peer(&self.client.name).await?;
        let pair = || {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
            ours.set_nonblocking(true)?;
            Ok((tokio::net::UnixStream::from_std(ours)?, theirs))
        };
        let (stream, theirs) = pair().map_err(|error: std::io::Error| fault(&error))?;
        let arrival = Arrival {
            stream,
            uid,
            pid,
            origin: Origin::Bus {
                process,
                of_machine: self.calls.of_machine,
            },
        };
        let given = self.calls.door.give.try_send(arrival);
        given.map_err(|_| NotDone::busy())?;
        Ok(theirs.into())
    }
}

fn gone() -> NotDone {
    let text = "the process that connected to the bus has ended; each process connects by itself";
    NotDone::call(Wrong::Gone, text)
}

fn fault(error: &std::io::Error) -> NotDone {
    NotDone::call(Wrong::Gone, format!("mlskeyd cannot do this now: {error}"))
}
