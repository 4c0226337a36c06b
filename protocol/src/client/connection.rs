//! One connection: connecting, greeting, one call at a time.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::doors::{Door, Doors};
use super::{Call, CallError, CancelToken};
use crate::frame::{Budget, FrameBuffer, FrameError, Head, decode, encode};
use crate::handshake::{Echo, Hello, Service, VERSIONS, Welcome};
use crate::limits::{MAX_FRAME, MAX_HANDSHAKE_FRAME};
use crate::v1::ServerFrame;

/// Until when, and whose token ends it earlier.
#[derive(Clone, Copy)]
pub(super) struct Patience<'a> {
    pub(super) until: Instant,
    pub(super) cancel: Option<&'a CancelToken>,
}

/// Why no connection came to be. The texts name the doors.
pub(super) enum ConnectError {
    /// No door is there.
    Absent(String),
    /// Nobody listens, or not now: trying again may help.
    Away(String),
    /// Nobody answered in the time that there was for it.
    Silent(String),
    /// Trying again does not help.
    Final(CallError),
}

impl From<CallError> for ConnectError {
    fn from(error: CallError) -> Self {
        Self::Final(error)
    }
}

/// Why a call on a connection has no reply.
pub(super) enum Lost {
    /// The connection ended; `sent`: the daemon may have read the request.
    Connection { sent: bool, reason: String },
    /// The call is over.
    Call(CallError),
}

impl From<CallError> for Lost {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// A connection after its handshake, with no call under way.
///
/// When a call ends in an error the connection must be dropped: a late reply
/// must not be taken for another call's.
#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: FrameBuffer,
}

impl Connection {
    /// A connection, and the door through which it goes.
    pub(super) fn open(
        doors: &Doors,
        software: &str,
        service: Service,
        patience: Patience<'_>,
    ) -> Result<(Self, Door), ConnectError> {
        let (stream, door) = doors.open(patience)?;
        let input = FrameBuffer::new(MAX_HANDSHAKE_FRAME, Budget::new(usize::MAX));
        let mut connection = Self { stream, input };
        let welcome = connection.greet(&Hello::new(service, software), patience);
        match welcome.map_err(|lost| match lost {
            Lost::Connection { reason, .. } => ConnectError::Away(format!("{door}: {reason}")),
            Lost::Call(CallError::Timeout) => {
                ConnectError::Silent(format!("{door}: it does not answer the greeting"))
            }
            Lost::Call(error) => error.into(),
        })? {
            Welcome::Agreed { version, .. } if (VERSIONS.0..=VERSIONS.1).contains(&version) => {
                connection.input.set_max(MAX_FRAME);
                Ok((connection, door.clone()))
            }
            Welcome::Agreed {
                version, daemon, ..
            } => Err(CallError::Protocol(format!(
                "mlskeyd {daemon} agreed to wire version {version}, which was not offered"
            ))
            .into()),
            Welcome::Incompatible {
                oldest,
                newest,
                daemon,
            } => Err(incompatible(oldest, newest, &daemon).into()),
            Welcome::Refused(reason) => Err(CallError::Refused(reason).into()),
            Welcome::Challenge { .. } => Err(unexpected("a second challenge").into()),
        }
    }

    fn greet(&mut self, hello: &Hello, patience: Patience<'_>) -> Result<Welcome, Lost> {
        let frame = encode(hello, MAX_HANDSHAKE_FRAME).map_err(too_large)?;
        let written = self.write(&frame, patience);
        // A daemon that turns the connection away does not wait for a greeting.
        let welcome = self.read(patience);
        match welcome.map_err(|lost| written.err().unwrap_or(lost))? {
            Welcome::Challenge { nonce } => {
                let frame = encode(&Echo { nonce }, MAX_HANDSHAKE_FRAME).map_err(too_large)?;
                let written = self.write(&frame, patience);
                self.read(patience)
                    .map_err(|lost| written.err().unwrap_or(lost))
            }
            welcome => Ok(welcome),
        }
    }

    /// One call, from request to reply.
    pub(super) fn call<Req: Serialize, Resp: DeserializeOwned>(
        &mut self,
        id: u64,
        request: &Req,
        patience: Patience<'_>,
        call: &Call<'_>,
    ) -> Result<Resp, Lost> {
        let deadline = patience.until.saturating_duration_since(Instant::now());
        let head = Head::Request {
            deadline,
            trace: Default::default(),
            id,
        };
        let frame = encode(&(head, request), MAX_FRAME).map_err(too_large)?;
        self.write(&frame, patience)?;
        drop(frame);
        let reply = self.reply(id, patience, call);
        if let Err(Lost::Call(CallError::Cancelled | CallError::Timeout)) = reply {
            self.withdraw(id);
        }
        reply
    }

    fn reply<Resp: DeserializeOwned>(
        &mut self,
        id: u64,
        patience: Patience<'_>,
        call: &Call<'_>,
    ) -> Result<Resp, Lost> {
        loop {
            match self.read::<ServerFrame<Resp>>(patience)? {
                ServerFrame::Progress(token, progress) => {
                    if let (true, Some(report)) = (token == id, call.on_progress) {
                        report(&progress);
                    }
                }
                ServerFrame::Reply(response) if response.request_id == id => {
                    return response.message.map_err(|error| {
                        CallError::Protocol(format!("mlskeyd did not serve the call: {error}"))
                            .into()
                    });
                }
                ServerFrame::Reply(_) => {
                    return Err(unexpected("a reply to another call").into());
                }
            }
        }
    }

    /// Tells the daemon that nobody waits for the reply. Best effort: the end
    /// of the connection, which follows, says the same.
    fn withdraw(&self, id: u64) {
        let head = Head::Cancel {
            trace: Default::default(),
            id,
        };
        if let Ok(frame) = encode(&head, MAX_HANDSHAKE_FRAME) {
            let _ = send(&self.stream, &frame, SendFlags::NOSIGNAL);
        }
    }

    /// Does the connection still stand? Never blocks. Nothing is due to arrive
    /// between calls, so whatever can be read means no.
    pub(super) fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::IN | PollFlags::RDHUP)];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0)) && self.input.is_empty()
    }

    fn write(&self, mut frame: &[u8], patience: Patience<'_>) -> Result<(), Lost> {
        while !frame.is_empty() {
            match send(&self.stream, frame, SendFlags::NOSIGNAL) {
                Ok(count) => frame = frame.get(count..).unwrap_or_default(),
                Err(Errno::AGAIN) => self.wait(PollFlags::OUT, patience)?,
                Err(Errno::INTR) => {}
                // Without its last byte the daemon cannot have read the frame.
                Err(error) => {
                    return Err(Lost::Connection {
                        sent: false,
                        reason: error.to_string(),
                    });
                }
            }
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(&mut self, patience: Patience<'_>) -> Result<T, Lost> {
        loop {
            if let Some(message) = self
                .input
                .next(decode)
                .map_err(|e| unexpected(&e.to_string()))?
            {
                return Ok(message);
            }
            self.wait(PollFlags::IN, patience)?;
            let room = self.input.room().map_err(|e| unexpected(&e.to_string()))?;
            match recv(&self.stream, room, RecvFlags::empty()) {
                Ok((_, 0)) => return Err(ended("it closed the connection")),
                Ok((_, count)) => self.input.received(count),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(ended(&error.to_string())),
            }
        }
    }

    fn wait(&self, what: PollFlags, patience: Patience<'_>) -> Result<(), CallError> {
        wait_with(PollFd::new(&self.stream, what), patience)
    }
}

/// Waits until it is ready.
pub(super) fn wait_with(fd: PollFd<'_>, patience: Patience<'_>) -> Result<(), CallError> {
    match patience.cancel {
        None => wait_for(&mut [fd], patience),
        Some(token) => {
            let cancel = PollFd::from_borrowed_fd(token.fd(), PollFlags::IN);
            wait_for(&mut [fd, cancel], patience)
        }
    }
}

/// Waits until the first is ready; the second, if there is one, cancels.
fn wait_for(fds: &mut [PollFd<'_>], patience: Patience<'_>) -> Result<(), CallError> {
    loop {
        let left = patience.until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        match poll(fds, Some(&timeout)) {
            Ok(0) if left.is_zero() => return Err(CallError::Timeout),
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_)
                if fds
                    .get(1)
                    .is_some_and(|cancel| !cancel.revents().is_empty()) =>
            {
                return Err(CallError::Cancelled);
            }
            Ok(_) => return Ok(()),
            Err(error) => return Err(CallError::Protocol(format!("cannot wait: {error}"))),
        }
    }
}

/// Sleeps, but no longer than patience lasts.
pub(super) fn pause(time: Duration, patience: Patience<'_>) -> Result<(), CallError> {
    let wake = Instant::now().checked_add(time).unwrap_or(patience.until);
    match patience.cancel {
        None => {
            std::thread::sleep(time.min(patience.until.saturating_duration_since(Instant::now())))
        }
        Some(token) => {
            let mut fds = [PollFd::from_borrowed_fd(token.fd(), PollFlags::IN)];
            let nap = Patience {
                until: wake.min(patience.until),
                cancel: None,
            };
            if wait_for(&mut fds, nap).is_ok() {
                return Err(CallError::Cancelled);
            }
        }
    }
    if Instant::now() < patience.until {
        Ok(())
    } else {
        Err(CallError::Timeout)
    }
}

fn incompatible(oldest: u16, newest: u16, daemon: &str) -> CallError {
    let side = if newest < VERSIONS.0 {
        "update mlskeyd"
    } else {
        "update this app"
    };
    CallError::Incompatible {
        message: format!(
            "this app speaks wire version {} to {} of mlskeyd's protocol, and mlskeyd {daemon} \
             speaks {oldest} to {newest}; {side}",
            VERSIONS.0, VERSIONS.1
        ),
    }
}

fn ended(reason: &str) -> Lost {
    Lost::Connection {
        sent: true,
        reason: reason.to_owned(),
    }
}

fn unexpected(what: &str) -> CallError {
    CallError::Protocol(format!("mlskeyd sent {what}"))
}

fn too_large(error: FrameError) -> CallError {
    CallError::Protocol(format!("the request is {error}"))
}
