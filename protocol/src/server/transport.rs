//! The transport of one connection, for tarpc's server.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::{Sink, Stream};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tarpc::{ClientMessage, Request, Response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Sleep, sleep};
use zeroize::Zeroizing;

use super::{Connection, TransportError};
use crate::frame::{FrameBuffer, FrameError, Head, decode, encode};
use crate::limits::{FRAME_TIME, MAX_DEADLINE, MAX_FRAME, MAX_SHORT_FRAME};
use crate::v1::{AdminRequest, AgentRequest, CustodyRequest, Progress, ServerFrame};

/// Replies may wait in a connection's own buffer up to so many bytes; one more
/// is not encoded before they are fewer.
const MAX_WAITING: usize = 64 * 1024;

/// Most progress reports that wait for one connection; more are dropped.
const MAX_PROGRESS: usize = 32;

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

impl LongRequests for AgentRequest {
    fn may_be_long(_: u32) -> bool {
        false
    }
}

/// Where the calls of one connection report what they wait for.
#[derive(Clone, Debug)]
pub struct Reporter {
    reports: mpsc::Sender<(u64, Progress)>,
}

impl Reporter {
    /// A reporter, and where its reports arrive: each with its call's token.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<(u64, Progress)>) {
        let (reports, arrive) = mpsc::channel(MAX_PROGRESS);
        (Self { reports }, arrive)
    }

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

/// Frames that wait to be written.
#[derive(Debug, Default)]
struct Output {
    frames: VecDeque<Zeroizing<Vec<u8>>>,
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
        let (reporter, reports) = Reporter::channel();
        let transport = Self {
            stream: connection.stream,
            input: connection.input,
            frame_time: None,
            output: Output::default(),
            reports,
            types: PhantomData,
        };
        (transport, reporter)
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
    pub(super) const fn is_flushed(&self) -> bool {
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
