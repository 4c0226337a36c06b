//! The daemon's side of a connection: the handshake, and a transport for
//! tarpc's server.
//!
//! Everything is done by the task that owns the connection. What a peer sends
//! costs memory only as it arrives and as its user's
//! [`Budget`](crate::frame::Budget) allows; a peer that lets a frame or the
//! replies wait for longer than [`FRAME_TIME`](crate::limits::FRAME_TIME) is
//! disconnected.

mod greeting;
mod transport;

pub use greeting::{Connection, Greeting, turn_away};
pub use transport::{LongRequests, ProgressSender, Reporter, Transport};

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use futures::future::{FusedFuture, FutureExt};
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::ChannelError;
use tarpc::server::{BaseChannel, Channel, Serve};

use crate::frame::FrameError;
use crate::limits::MAX_IN_FLIGHT;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The peer closed it. Calls under way are no longer wanted.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer sent what is no frame, or no frame that belongs here.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The peer did not finish its handshake or a frame, or did not take its
    /// replies, in time.
    #[error("the peer took too long")]
    TooSlow,
    /// No wire version in common; the peer was told.
    #[error("no wire version in common with the peer")]
    Incompatible,
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Serves a connection: its calls run concurrently in this one task, at most
/// [`MAX_IN_FLIGHT`]. A call's future is dropped, at whichever await it is, when
/// the call is cancelled, its deadline passes, or the connection ends.
///
/// Once `stop` is done, no further call begins, and it ends with the last reply.
///
/// # Errors
/// Why the connection ended; [`TransportError::Closed`] is how a peer leaves.
pub async fn serve<S>(
    transport: Transport<S::Req, S::Resp>,
    service: S,
    stop: impl Future<Output = ()>,
) -> Result<(), Arc<TransportError>>
where
    S: Serve + Clone,
    S::Req: DeserializeOwned + LongRequests,
    S::Resp: Serialize,
{
    let config = tarpc::server::Config {
        pending_response_buffer: MAX_IN_FLIGHT,
    };
    let channel = BaseChannel::new(config, transport).max_concurrent_requests(MAX_IN_FLIGHT);
    let mut requests = pin!(channel.requests());
    let mut stop = pin!(stop.fuse());
    let mut calls = FuturesUnordered::new();
    poll_fn(|cx| {
        loop {
            let stopping = stop.as_mut().poll(cx).is_ready() || stop.is_terminated();
            match requests.as_mut().poll_next(cx) {
                Poll::Ready(Some(Ok(_))) if stopping => continue,
                Poll::Ready(Some(Ok(request))) => {
                    calls.push(request.execute(service.clone()));
                    continue;
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(cause(error))),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending => {}
            }
            // A call that ends may have left a reply to write.
            match calls.poll_next_unpin(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) if stopping && requests.channel().transport().is_flushed() => {
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await
}

fn cause(error: ChannelError<TransportError>) -> Arc<TransportError> {
    match error {
        ChannelError::Read(error)
        | ChannelError::Ready(error)
        | ChannelError::Write(error)
        | ChannelError::Flush(error)
        | ChannelError::Close(error) => error,
    }
}
