//! The handshake.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::TransportError;
use crate::frame::{Budget, FrameBuffer, FrameError, decode, encode};
use crate::handshake::{Echo, Hello, MAGIC, Nonce, VERSIONS, Welcome};
use crate::limits::{HANDSHAKE_TIME, MAX_FRAME, MAX_HANDSHAKE_FRAME};

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
    pub(super) stream: UnixStream,
    pub(super) input: FrameBuffer,
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

    /// Has the peer repeat a nonce, within [`HANDSHAKE_TIME`]. `receive` reads from the
    /// socket, which does not block, as recvmsg does: so it can see who has written, and
    /// take it or fail.
    ///
    /// # Errors
    /// What `receive` said; or the peer sent something else, also before it knew the nonce.
    /// After an error of `receive` it can still be refused.
    pub async fn challenge(
        &mut self,
        nonce: Nonce,
        receive: impl FnMut(BorrowedFd<'_>, &mut [u8]) -> io::Result<usize>,
    ) -> Result<(), TransportError> {
        if !self.input.is_empty() {
            return Err(FrameError::Malformed.into());
        }
        answer(&mut self.stream, &Welcome::Challenge { nonce }).await?;
        let echo = timeout(HANDSHAKE_TIME, self.echo(receive));
        let echo = echo.await.map_err(|_| TransportError::TooSlow)??;
        if echo != (Echo { nonce }) || !self.input.is_empty() {
            return Err(FrameError::Malformed.into());
        }
        Ok(())
    }

    async fn echo(
        &mut self,
        mut receive: impl FnMut(BorrowedFd<'_>, &mut [u8]) -> io::Result<usize>,
    ) -> Result<Echo, TransportError> {
        loop {
            if let Some(echo) = self.input.next(decode)? {
                return Ok(echo);
            }
            let (stream, room) = (&self.stream, self.input.room()?);
            let received = stream.async_io(Interest::READABLE, || receive(stream.as_fd(), room));
            match received.await? {
                0 => return Err(TransportError::Closed),
                count => self.input.received(count),
            }
        }
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

impl AsFd for Greeting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
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
