//! The door that apps and `mlskeyctl` come through: tarpc over a Unix socket, which they
//! connect, or are given by way of a bus.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{FutureExt, Shared};
use mlskeyd_protocol::handshake::Service;
use mlskeyd_protocol::server::{self, Greeting, Transport, TransportError};
use mlskeyd_protocol::v1::{Admin as _, Agent as _, Custody as _};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::crowd::{Bounds, Crowd};
use super::identify::{Arrival, NotServed, Origin, identify};
use super::services::{AdminDoor, AgentDoor, CustodyDoor, Way};
use super::{Socket, bus};
use crate::caller::Apps;
use crate::config::{AppConfig, Bus};
use crate::custody::Custody;

/// How long calls under way may take to end when the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// A pause after the process ran out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long the first attempt to be on the bus is waited for.
const FIRST_TRY: Duration = Duration::from_secs(2);

/// Most connections that were given away on the bus and are not served yet.
const MAX_GIVEN: usize = 64;

/// Where the daemon is to be found.
pub struct Doors {
    /// The socket.
    pub socket: Socket,
    /// The bus; `None`: it is on none.
    pub bus: Option<Bus>,
}

/// Serves the socket, and the bus if there is one, until `stop` is done; then takes no more
/// calls, finishes those under way within five seconds, and removes the socket. Calls `ready`
/// once it serves: on the bus, too, if that can be had soon.
pub async fn serve(
    Doors { socket, bus }: Doors,
    custody: Arc<Custody>,
    apps: Vec<AppConfig>,
    bounds: Bounds,
    ready: impl FnOnce(),
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let stop = stop.boxed().shared();
    let crowd = Arc::new(Crowd::new(bounds));
    let apps = Arc::new(Apps::new(apps));
    let (give, mut given) = mpsc::channel(MAX_GIVEN);
    let bus = match bus {
        None => None,
        Some(bus) => {
            let door = bus::Door {
                custody: Arc::clone(&custody),
                apps: Arc::clone(&apps),
                crowd: Arc::clone(&crowd),
                give,
            };
            let (tried, first) = oneshot::channel();
            let serving = tokio::spawn(door.serve(bus, tried));
            // The socket does not wait for a bus that is away or hangs.
            let _ = tokio::time::timeout(FIRST_TRY, first).await;
            Some(serving)
        }
    };
    ready();
    let mut connections = JoinSet::new();
    loop {
        let arrival = tokio::select! {
            () = stop.clone() => break,
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => arrival(stream),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            Some(arrival) = given.recv() => Ok(arrival),
            Some(ended) = connections.join_next() => {
                note_end(ended);
                continue;
            }
        };
        match arrival {
            Ok(arrival) => {
                let door = Door {
                    custody: Arc::clone(&custody),
                    apps: Arc::clone(&apps),
                    stop: stop.clone(),
                };
                connections.spawn(door.connection(arrival, Arc::clone(&crowd)));
            }
            Err(error) => tracing::info!(%error, "a connection ended"),
        }
    }
    drop(socket);
    if let Some(bus) = bus {
        bus.abort();
    }
    custody.dismiss_agents();
    let rest = async {
        while let Some(ended) = connections.join_next().await {
            note_end(ended);
        }
    };
    if tokio::time::timeout(STOP_TIME, rest).await.is_err() {
        tracing::warn!("some calls did not end in time and are given up");
    }
}

/// Somebody who has connected to the socket.
fn arrival(stream: UnixStream) -> std::io::Result<Arrival> {
    let peer = stream.peer_cred()?;
    Ok(Arrival {
        uid: peer.uid(),
        pid: peer.pid(),
        stream,
        origin: Origin::Socket,
    })
}

/// A connection that its own fault or ours has ended harms no other.
fn note_end(ended: Result<Result<(), Arc<TransportError>>, tokio::task::JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) if matches!(*error, TransportError::Closed) => {}
        Ok(Err(error)) => tracing::info!(%error, "a connection ended"),
        Err(error) => tracing::error!(%error, "a connection was ended by a fault of the daemon"),
    }
}

/// What each connection is given.
struct Door<Stop: Future<Output = ()>> {
    custody: Arc<Custody>,
    apps: Arc<Apps>,
    stop: Shared<Stop>,
}

impl<Stop: Future<Output = ()>> Door<Stop> {
    async fn connection(
        self,
        arrival: Arrival,
        crowd: Arc<Crowd>,
    ) -> Result<(), Arc<TransportError>> {
        let Arrival {
            stream,
            uid,
            pid,
            origin,
        } = arrival;
        let (newcomer, evicted) = crowd.arrive(uid);
        let budget = newcomer.budget.clone();
        let mut greeting = tokio::select! {
            greeting = Greeting::read(stream, budget.clone()) => greeting?,
            _ = evicted => return Err(TransportError::TooSlow.into()),
            () = self.stop.clone() => return Ok(()),
        };
        let privileged = is_privileged(uid);
        let Some(place) = newcomer.take_place(privileged) else {
            let reason = "too many connections; close some, or try again later";
            return Ok(greeting.refuse(reason).await?);
        };
        drop(newcomer);
        let service = greeting.hello().service;
        tracing::debug!(uid, pid, ?service, "connected");
        let identified = tokio::select! {
            identified = identify(&mut greeting, &self.apps, (uid, pid), origin, &crowd) => identified,
            () = self.stop.clone() => return Ok(()),
        };
        let caller = match identified {
            Ok(caller) => caller,
            Err(NotServed::Refused(reason)) => {
                tracing::info!(uid, pid, reason, "a caller is not served");
                return Ok(greeting.refuse(reason).await?);
            }
            Err(NotServed::Ended(error)) => return Err(error.into()),
        };
        if service == Service::Agent && caller.is_confined {
            self.custody.turned_away(&caller).await;
            let reason = "an app in a sandbox asks nobody for PINs; run `mlskeyctl agent` in the session itself";
            return Ok(greeting.refuse(reason).await?);
        }
        // A sandbox is there to keep an app from what its user may.
        let privileged = privileged && !caller.is_confined;
        if service == Service::Admin && !privileged && !self.custody.asks_polkit() {
            self.custody.turned_away(&caller).await;
            let reason = "only root and mlskeyd's own user administer it; \
                          run mlskeyctl as one of them (sudo mlskeyctl)";
            return Ok(greeting.refuse(reason).await?);
        }
        let session = self.custody.connect(caller);
        let connection = greeting.welcome(uid).await?;
        let result = match service {
            Service::Custody => {
                let (transport, reporter) = Transport::new(connection);
                let door = CustodyDoor(Way {
                    session,
                    reporter,
                    budget,
                });
                server::serve(transport, door.serve(), self.stop).await
            }
            Service::Agent => {
                let (transport, reporter) = Transport::new(connection);
                let _there = self.custody.agent_arrives(uid);
                let door = AgentDoor(Way {
                    session,
                    reporter,
                    budget,
                });
                server::serve(transport, door.serve(), self.stop).await
            }
            Service::Admin => {
                let (transport, reporter) = Transport::new(connection);
                let door = AdminDoor(Way {
                    session,
                    reporter,
                    budget,
                });
                server::serve(transport, door.serve(), self.stop).await
            }
        };
        drop(place);
        result
    }
}

/// Root, and the user that the daemon runs as.
fn is_privileged(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}
