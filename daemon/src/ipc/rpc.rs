//! The door that apps and `mlskeyctl` come through: tarpc over a Unix socket.

use std::sync::Arc;
use std::time::Duration;

use futures::future::{FutureExt, Shared};
use mlskeyd_protocol::handshake::Service;
use mlskeyd_protocol::server::{self, Greeting, Transport, TransportError};
use mlskeyd_protocol::v1::{Admin as _, Agent as _, Custody as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use super::Socket;
use super::crowd::{Bounds, Crowd};
use super::identify::{NotServed, identify};
use super::services::{AdminDoor, AgentDoor, CustodyDoor, Way};
use crate::caller::Apps;
use crate::config::AppConfig;
use crate::custody::Custody;

/// How long calls under way may take to end when the daemon stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// A pause after the process ran out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the socket until `stop` is done; then takes no more calls, finishes
/// those under way within five seconds, and removes the socket.
pub async fn serve(
    socket: Socket,
    custody: Arc<Custody>,
    apps: Vec<AppConfig>,
    bounds: Bounds,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let stop = stop.boxed().shared();
    let crowd = Arc::new(Crowd::new(bounds));
    let apps = Arc::new(Apps::new(apps));
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.clone() => break,
            accepted = socket.listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (custody, apps) = (Arc::clone(&custody), Arc::clone(&apps));
                    let door = Door { custody, apps, stop: stop.clone() };
                    connections.spawn(door.connection(stream, Arc::clone(&crowd)));
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next() => note_end(ended),
        }
    }
    drop(socket);
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
        stream: UnixStream,
        crowd: Arc<Crowd>,
    ) -> Result<(), Arc<TransportError>> {
        let peer = stream.peer_cred().map_err(TransportError::from)?;
        let (uid, pid) = (peer.uid(), peer.pid());
        let (newcomer, evicted) = crowd.arrive(uid);
        let budget = newcomer.budget.clone();
        let looking = Arc::clone(&newcomer.looking);
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
            identified = identify(&mut greeting, &self.apps, (uid, pid), &looking) => identified,
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
        if service == Service::Admin && !privileged {
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
