//! The daemon's side of a connection: the handshake, and a transport for
//! tarpc's server.
//!
//! Everything is done by the task that owns the connection. What a peer sends
//! costs memory only as it arrives and as its user's [`Budget`] allows; a peer
//! that lets a frame or the replies wait for longer than
//! [`FRAME_TIME`](crate::limits::FRAME_TIME) is disconnected.

use std::future::poll_fn;
use std::io;
use std::marker::PhantomData;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::future::{FusedFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use futures::{Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::server::{BaseChannel, Channel, Serve};
use tarpc::{ChannelError, ClientMessage, Request, Response};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep, timeout};
use zeroize::Zeroizing;

use crate::frame::{Budget, FrameBuffer, FrameError, Head, decode, encode};
use crate::handshake::{Hello, MAGIC, VERSIONS, Welcome};
use crate::limits::{
    FRAME_TIME, HANDSHAKE_TIME, MAX_DEADLINE, MAX_FRAME, MAX_HANDSHAKE_FRAME, MAX_IN_FLIGHT,
    MAX_SHORT_FRAME,
};
use crate::v1::{AdminRequest, CustodyRequest, Progress, ServerFrame};

/// Replies may wait in a connection's own buffer up to so many bytes; one more
/// is not encoded before they are fewer.
const MAX_WAITING: usize = 64 * 1024;

/// Most progress reports that wait for one connection; more are dropped.
const MAX_PROGRESS: usize = 32;

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

/// A request type whose long variants are known before they are decoded.
pub trait LongRequests {
    /// May the variant with this index take
    /// [`MAX_FRAME`] rather than [`MAX_SHORT_FRAME`] bytes?
    fn may_be_long(variant: u32) -> bool;
}

impl LongRequests for CustodyRequest {
    fn may_be_long(variant: u32) -> bool {
        const SIGN: u32 = 4;
        const OPEN: u32 = 6;
        matches!(variant, SIGN | OPEN)
    }
}

impl LongRequests for AdminRequest {
    fn may_be_long(_: u32) -> bool {
        false
    }
}

/// A connection whose greeting was read and waits for its answer.
#[derive(Debug)]
pub struct Greeting {
    stream: UnixStream,
    input: FrameBuffer,
    hello: Hello,
    version: u16,
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    input: FrameBuffer,
    /// The wire version that was agreed.
    pub version: u16,
}

impl Greeting {
    /// Reads the greeting, within [`HANDSHAKE_TIME`]. A peer without a wire
    /// version in common is told so.
    ///
    /// # Errors
    /// See [`TransportError`]; the connection is closed.
    pub async fn read(stream: UnixStream, budget: Budget) -> Result<Self, TransportError> {
        timeout(HANDSHAKE_TIME, Self::read_in_time(stream, budget))
            .await
            .map_err(|_| TransportError::TooSlow)?
    }

    async fn read_in_time(mut stream: UnixStream, budget: Budget) -> Result<Self, TransportError> {
        let mut input = FrameBuffer::new(MAX_HANDSHAKE_FRAME, budget);
        let hello = loop {
            if let Some(hello) = input.next(parse_hello)? {
                break hello;
            }
            match stream.read(input.room()?).await? {
                0 => return Err(TransportError::Closed),
                count => input.received(count),
            }
        };
        if let Some(hello) = hello
            && let Some(version) = hello.agree()
        {
            return Ok(Self {
                stream,
                input,
                hello,
                version,
            });
        }
        let (oldest, newest) = VERSIONS;
        let daemon = env!("CARGO_PKG_VERSION").to_owned();
        answer(
            &mut stream,
            &Welcome::Incompatible {
                oldest,
                newest,
                daemon,
            },
        )
        .await?;
        Err(TransportError::Incompatible)
    }

    /// What the peer said.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Who the peer is, as the kernel says.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn peer(&self) -> io::Result<tokio::net::unix::UCred> {
        self.stream.peer_cred()
    }

    /// Begins to serve the peer.
    ///
    /// # Errors
    /// The peer is gone, or does not read.
    pub async fn welcome(mut self, uid: u32) -> Result<Connection, TransportError> {
        let daemon = env!("CARGO_PKG_VERSION").to_owned();
        let version = self.version;
        answer(
            &mut self.stream,
            &Welcome::Agreed {
                version,
                daemon,
                uid,
            },
        )
        .await?;
        self.input.set_max(MAX_FRAME);
        Ok(Connection {
            stream: self.stream,
            input: self.input,
            version,
        })
    }

    /// Tells the peer why it is not served, and what it can do.
    ///
    /// # Errors
    /// The peer is gone, or does not read.
    pub async fn refuse(mut self, reason: impl Into<String>) -> Result<(), TransportError> {
        answer(&mut self.stream, &Welcome::Refused(reason.into())).await
    }
}

/// Turns a new connection away without reading its greeting or waiting for it.
pub fn turn_away(stream: &UnixStream, reason: impl Into<String>) {
    if let Ok(frame) = encode(&Welcome::Refused(reason.into()), MAX_HANDSHAKE_FRAME) {
        // Fits into the empty buffer of a new socket.
        let _ = stream.try_write(&frame);
    }
}

/// `None`: a greeting, but one for a service that only later versions have.
fn parse_hello(bytes: &[u8]) -> Result<Option<Hello>, FrameError> {
    if !bytes.starts_with(&MAGIC) {
        return Err(FrameError::Malformed);
    }
    Ok(decode(bytes).ok())
}

async fn answer(stream: &mut UnixStream, welcome: &Welcome) -> Result<(), TransportError> {
    let frame = encode(welcome, MAX_HANDSHAKE_FRAME)?;
    timeout(HANDSHAKE_TIME, stream.write_all(&frame))
        .await
        .map_err(|_| TransportError::TooSlow)??;
    Ok(())
}

/// Where the calls of one connection report what they wait for.
#[derive(Clone, Debug)]
pub struct Reporter {
    reports: mpsc::Sender<(u64, Progress)>,
}

impl Reporter {
    /// For the call with this [`token`](crate::v1::CallOptions::token).
    #[must_use]
    pub fn for_call(&self, token: u64) -> ProgressSender {
        ProgressSender {
            reports: self.reports.clone(),
            token,
        }
    }
}

/// Reports what one call waits for. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProgressSender {
    reports: mpsc::Sender<(u64, Progress)>,
    token: u64,
}

impl ProgressSender {
    /// Sends the report to the caller; drops it if the caller is gone or too
    /// many wait.
    pub fn send(&self, progress: Progress) {
        let _ = self.reports.try_send((self.token, progress));
    }
}

/// The transport of one connection for tarpc's `BaseChannel`.
#[derive(Debug)]
pub struct Transport<Req, Resp> {
    stream: UnixStream,
    input: FrameBuffer,
    /// Runs while a frame has begun and is not whole.
    frame_time: Option<Pin<Box<Sleep>>>,
    output: Output,
    reports: mpsc::Receiver<(u64, Progress)>,
    types: PhantomData<fn() -> (Req, Resp)>,
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

/// Frames that wait to be written.
#[derive(Debug, Default)]
struct Output {
    frames: std::collections::VecDeque<Zeroizing<Vec<u8>>>,
    /// How much of the first frame is written.
    written: usize,
    /// Bytes of all frames.
    waiting: usize,
    /// Runs while the peer does not take what waits.
    take_time: Option<Pin<Box<Sleep>>>,
}

impl<Req, Resp> Transport<Req, Resp> {
    /// Takes a connection over.
    #[must_use]
    pub fn new(connection: Connection) -> (Self, Reporter) {
        let (sender, reports) = mpsc::channel(MAX_PROGRESS);
        let transport = Self {
            stream: connection.stream,
            input: connection.input,
            frame_time: None,
            output: Output::default(),
            reports,
            types: PhantomData,
        };
        (transport, Reporter { reports: sender })
    }
}

impl<Req: DeserializeOwned + LongRequests, Resp> Transport<Req, Resp> {
    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ClientMessage<Req>, TransportError>> {
        loop {
            if let Some(message) = self.input.next(parse_message)? {
                self.frame_time = None;
                return Poll::Ready(Ok(message));
            }
            let mut room = ReadBuf::new(self.input.room()?);
            match Pin::new(&mut self.stream).poll_read(cx, &mut room) {
                Poll::Ready(read) => {
                    read?;
                    let count = room.filled().len();
                    if count == 0 {
                        return Poll::Ready(Err(TransportError::Closed));
                    }
                    self.input.received(count);
                }
                Poll::Pending if self.input.is_empty() => return Poll::Pending,
                Poll::Pending => {
                    ready!(poll_limit(&mut self.frame_time, cx));
                    return Poll::Ready(Err(TransportError::TooSlow));
                }
            }
        }
    }
}

impl<Req, Resp> Transport<Req, Resp> {
    const fn is_flushed(&self) -> bool {
        self.output.waiting == 0
    }

    fn push_report(&mut self, (token, progress): (u64, Progress)) -> Result<(), TransportError> {
        let frame = encode(&ServerFrame::<()>::Progress(token, progress), MAX_FRAME)?;
        self.output.push(frame);
        Ok(())
    }
}

impl Output {
    const fn has_room(&self) -> bool {
        self.waiting < MAX_WAITING
    }

    fn push(&mut self, frame: Zeroizing<Vec<u8>>) {
        self.waiting = self.waiting.saturating_add(frame.len());
        self.frames.push_back(frame);
    }

    /// Writes what waits, and ends when nothing does.
    fn poll_write(
        &mut self,
        stream: &mut UnixStream,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), TransportError>> {
        while let Some(frame) = self.frames.front() {
            let rest = frame.get(self.written..).unwrap_or_default();
            match Pin::new(&mut *stream).poll_write(cx, rest)? {
                Poll::Ready(0) => return Poll::Ready(Err(TransportError::Closed)),
                Poll::Ready(count) => self.written = self.written.saturating_add(count),
                Poll::Pending => {
                    ready!(poll_limit(&mut self.take_time, cx));
                    return Poll::Ready(Err(TransportError::TooSlow));
                }
            }
            if self.written >= frame.len() {
                self.waiting = self.waiting.saturating_sub(frame.len());
                self.written = 0;
                self.frames.pop_front();
            }
        }
        self.take_time = None;
        Poll::Ready(Ok(()))
    }
}

/// Starts the limit if it does not run; ready when it is reached.
fn poll_limit(limit: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
    limit
        .get_or_insert_with(|| Box::pin(sleep(FRAME_TIME)))
        .as_mut()
        .poll(cx)
}

/// Reads a client's message; a request's deadline is cut to [`MAX_DEADLINE`]
/// before tarpc sees it.
fn parse_message<Req: DeserializeOwned + LongRequests>(
    bytes: &[u8],
) -> Result<ClientMessage<Req>, FrameError> {
    let (head, rest) = postcard::take_from_bytes(bytes).map_err(|_| FrameError::Malformed)?;
    match (head, rest) {
        (
            Head::Request {
                deadline,
                id,
                trace: _,
            },
            rest,
        ) => {
            check_length::<Req>(rest)?;
            let message = decode(rest)?;
            let mut context = tarpc::context::current();
            context.deadline = clamp(deadline);
            context.trace_context = tarpc::trace::Context::default();
            Ok(ClientMessage::Request(Request {
                context,
                id,
                message,
            }))
        }
        (Head::Cancel { id, trace: _ }, []) => Ok(ClientMessage::Cancel {
            trace_context: tarpc::trace::Context::default(),
            request_id: id,
        }),
        (Head::Cancel { .. }, _) => Err(FrameError::Malformed),
    }
}

fn check_length<Req: LongRequests>(request: &[u8]) -> Result<(), FrameError> {
    let (variant, _) = postcard::take_from_bytes(request).map_err(|_| FrameError::Malformed)?;
    let length = request.len();
    if length > MAX_SHORT_FRAME && !Req::may_be_long(variant) {
        return Err(FrameError::TooLong {
            length,
            max: MAX_SHORT_FRAME,
        });
    }
    Ok(())
}

fn clamp(deadline: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(deadline.min(MAX_DEADLINE)).unwrap_or(now)
}

impl<Req: DeserializeOwned + LongRequests, Resp> Stream for Transport<Req, Resp> {
    type Item = Result<ClientMessage<Req>, TransportError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_message(cx).map(Some)
    }
}

impl<Req, Resp: Serialize> Sink<Response<Resp>> for Transport<Req, Resp> {
    type Error = TransportError;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let this = self.get_mut();
        if this.output.has_room() {
            return Poll::Ready(Ok(()));
        }
        this.output.poll_write(&mut this.stream, cx)
    }

    fn start_send(self: Pin<&mut Self>, reply: Response<Resp>) -> Result<(), TransportError> {
        let this = self.get_mut();
        // A call's reports go before its reply.
        while let Ok(report) = this.reports.try_recv() {
            this.push_report(report)?;
        }
        let frame = encode(&ServerFrame::Reply(reply), MAX_FRAME)?;
        this.output.push(frame);
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let this = self.get_mut();
        while let Poll::Ready(Some(report)) = this.reports.poll_recv(cx) {
            this.push_report(report)?;
            if !this.output.has_room() {
                ready!(this.output.poll_write(&mut this.stream, cx))?;
            }
        }
        this.output.poll_write(&mut this.stream, cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let this = self.get_mut();
        ready!(this.output.poll_write(&mut this.stream, cx))?;
        Pin::new(&mut this.stream)
            .poll_shutdown(cx)
            .map_err(TransportError::Io)
    }
}
