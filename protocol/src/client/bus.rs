//! The door on a message bus: a channel to the daemon is asked for there, and
//! lives without the bus from then on.
//!
//! That takes a runtime, and an app may be inside of one of its own, so it is done
//! on a thread that lives as long as somebody waits for the channel.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;

use rustix::event::{PollFd, PollFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketType, recvmsg, send, sockopt,
};
use tokio::io::Interest;
use zbus::address::Transport;
use zbus::address::transport::UnixSocket;
use zbus::connection::socket::{ReadHalf, Socket, Split, WriteHalf};
use zbus::export::async_trait::async_trait;
use zbus::{Address, Error, Message, fdo};

use super::connection::{Patience, wait_with};
use super::doors::{Bus, Closed};
use super::{CallError, socket};

/// The daemon's name on a bus, and its interface.
const NAME: &str = "org.mlskeyd.Custody1";

/// Its object.
const PATH: &str = "/org/mlskeyd/Custody1";

/// The beginning of the names of its errors.
const ERRORS: &str = "org.mlskeyd.Error.";

/// Longest text of another process that is told on, in characters.
const MAX_TEXT: usize = 500;

/// Most file descriptors that are taken with one message: one is right, and more
/// are told from it.
const MAX_FDS: usize = 4;

/// Asks the daemon on this bus for a channel.
pub(super) fn open(bus: &Bus, patience: Patience<'_>) -> Result<UnixStream, Closed> {
    let address = address(bus)?;
    let (waits, asks) = UnixStream::pair().map_err(|error| Closed::Away(error.to_string()))?;
    let (sender, answer) = mpsc::sync_channel(1);
    let until = patience.until;
    let thread = std::thread::Builder::new().name("mlskeyd-bus".to_owned());
    thread
        .spawn(move || {
            // Nobody may wait any more: the channel is closed then.
            let _ = sender.send(run(&address, until, &asks));
            // Here `asks` is dropped, which wakes who waits.
        })
        .map_err(|error| Closed::Away(format!("no thread to ask it on: {error}")))?;
    wait_with(PollFd::new(&waits, PollFlags::IN), patience).map_err(Closed::Call)?;
    answer
        .recv()
        .unwrap_or_else(|_| Err(Closed::Broken("the thread that asks has failed".to_owned())))
}

fn address(bus: &Bus) -> Result<SocketAddrUnix, Closed> {
    let broken = |why: String| {
        Closed::Broken(format!(
            "{why}: a bus is `system`, `session`, or an address as in \
             unix:path=/run/dbus/system_bus_socket"
        ))
    };
    let address = match bus {
        Bus::System => Address::system(),
        Bus::Session => Address::session(),
        Bus::At(address) => address.parse(),
    };
    let address = address.map_err(|error| broken(error.to_string()))?;
    let Transport::Unix(unix) = address.transport() else {
        return Err(broken("not a bus at a Unix socket".to_owned()));
    };
    let address = match unix.path() {
        UnixSocket::File(path) => SocketAddrUnix::new(path),
        UnixSocket::Abstract(name) => SocketAddrUnix::new_abstract_name(name.as_encoded_bytes()),
        _ => return Err(broken("not the address of one socket".to_owned())),
    };
    address.map_err(|error| broken(error.to_string()))
}

/// What the thread does: as long as time is left, and the other end of `asks` is
/// there.
fn run(
    address: &SocketAddrUnix,
    until: std::time::Instant,
    asks: &UnixStream,
) -> Result<UnixStream, Closed> {
    let away = |error: io::Error| Closed::Away(error.to_string());
    let stream = socket::connect_to(address)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(away)?;
    runtime.block_on(async {
        let asks = asks.try_clone().map_err(away)?;
        asks.set_nonblocking(true).map_err(away)?;
        let asks = tokio::net::UnixStream::from_std(asks).map_err(away)?;
        let asked = tokio::time::timeout_at(until.into(), ask(stream));
        tokio::select! {
            asked = asked => asked.unwrap_or(Err(Closed::Call(CallError::Timeout))),
            _ = asks.readable() => Err(Closed::Call(CallError::Cancelled)),
        }
    })
}

async fn ask(stream: UnixStream) -> Result<UnixStream, Closed> {
    let wire = Wire::new(stream).map_err(|error| Closed::Away(error.to_string()))?;
    let bus = zbus::connection::Builder::socket(wire).build().await;
    let bus = bus.map_err(closed)?;
    let reply = bus
        .call_method(Some(NAME), PATH, Some(NAME), "OpenChannel", &())
        .await
        .map_err(closed)?;
    channel(&reply).map_err(|what| {
        Closed::Call(CallError::Protocol(format!(
            "{NAME} answered OpenChannel with {what}"
        )))
    })
}

/// The channel in a reply: one descriptor, of a connected Unix stream socket.
fn channel(reply: &Message) -> Result<UnixStream, String> {
    let body = reply.body();
    let only: zbus::OwnedFd = body
        .deserialize()
        .map_err(|error| format!("no descriptor ({})", shortened(&error.to_string())))?;
    if body.data().fds().len() != 1 {
        return Err("more than one descriptor".to_owned());
    }
    let fd = OwnedFd::from(only);
    let is_channel = sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
        && sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
        && rustix::net::getpeername(&fd).is_ok();
    if !is_channel {
        return Err("what is no connected Unix stream socket".to_owned());
    }
    let stream = UnixStream::from(fd);
    stream
        .set_nonblocking(true)
        .map_err(|error| error.to_string())?;
    Ok(stream)
}

/// What an error of the bus means for who asks.
fn closed(error: Error) -> Closed {
    match error {
        Error::FDO(error) => closed_by_bus(*error),
        Error::MethodError(name, text, _) => {
            let text = text.unwrap_or_else(|| name.to_string());
            if name.starts_with(ERRORS) {
                Closed::Refused(shortened(&text))
            } else {
                Closed::Broken(shortened(&format!("{name}: {text}")))
            }
        }
        // The bus has gone, or does not want more connections now.
        Error::InputOutput(error) => Closed::Away(error.to_string()),
        error => Closed::Broken(shortened(&error.to_string())),
    }
}

fn closed_by_bus(error: fdo::Error) -> Closed {
    match error {
        fdo::Error::ZBus(error) => closed(error),
        fdo::Error::ServiceUnknown(_) | fdo::Error::NameHasNoOwner(_) => {
            Closed::Absent(format!("nobody there is {NAME}"))
        }
        fdo::Error::AccessDenied(text) | fdo::Error::AuthFailed(text) => Closed::Refused(format!(
            "the bus does not let this app talk to {NAME} ({}); allow it in the bus's policy, \
                 or in the permissions of the app's sandbox",
            shortened(&text)
        )),
        fdo::Error::UnknownMethod(_)
        | fdo::Error::UnknownObject(_)
        | fdo::Error::UnknownInterface(_) => {
            Closed::Broken(format!("{NAME} has no OpenChannel; update mlskeyd"))
        }
        error @ (fdo::Error::NoReply(_)
        | fdo::Error::Disconnected(_)
        | fdo::Error::Timeout(_)
        | fdo::Error::TimedOut(_)
        | fdo::Error::LimitsExceeded(_)
        | fdo::Error::NoMemory(_)
        | fdo::Error::SpawnExecFailed(_)
        | fdo::Error::SpawnForkFailed(_)
        | fdo::Error::SpawnChildExited(_)
        | fdo::Error::SpawnChildSignaled(_)
        | fdo::Error::SpawnFailed(_)) => Closed::Away(shortened(&error.to_string())),
        error => Closed::Broken(shortened(&error.to_string())),
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

/// A connection to a bus whose descriptors no other program inherits that the app
/// starts just then: zbus's own receives them without that.
#[derive(Clone, Debug)]
struct Wire(Arc<tokio::net::UnixStream>);

impl Wire {
    fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self(Arc::new(tokio::net::UnixStream::from_std(stream)?)))
    }
}

impl Socket for Wire {
    type ReadHalf = Self;
    type WriteHalf = Self;

    fn split(self) -> Split<Self, Self> {
        Split::new(self.clone(), self)
    }
}

#[async_trait]
impl ReadHalf for Wire {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        let receive = || receive(self.0.as_fd(), buffer);
        let (count, fds) = self.0.async_io(Interest::READABLE, receive).await?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::BrokenPipe,
                "the bus closed the connection",
            ));
        }
        Ok((count, fds))
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let message = recvmsg(
        fd,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let fds = control.drain().filter_map(|part| match part {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    Ok((message.bytes, fds.flatten().collect()))
}

#[async_trait]
impl WriteHalf for Wire {
    /// Nothing with descriptors is sent.
    async fn sendmsg(&mut self, buffer: &[u8], _: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let send = || Ok(send(self.0.as_fd(), buffer, flags)?);
        self.0.async_io(Interest::WRITABLE, send).await
    }

    async fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn can_pass_unix_fd(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;
    use std::os::fd::AsFd;

    use rustix::io::{FdFlags, fcntl_getfd};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, sendmsg};

    use super::*;

    #[test]
    fn no_program_that_is_started_inherits_what_comes_and_few_come_at_once() {
        let (from, to) = UnixStream::pair().unwrap();
        // A few more find room, as it is aligned.
        for (sent, taken) in [(1, 1..2), (4, 4..5), (40, 4..8)] {
            let fds = vec![from.as_fd(); sent];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(40))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            let text = [IoSlice::new(b"x")];
            sendmsg(&from, &text, &mut control, SendFlags::empty()).unwrap();
            let (count, fds) = receive(to.as_fd(), &mut [0; 8]).unwrap();
            assert_eq!(count, 1);
            assert!(taken.contains(&fds.len()), "{}", fds.len());
            for fd in fds {
                assert_eq!(fcntl_getfd(&fd), Ok(FdFlags::CLOEXEC));
            }
        }
    }

    #[test]
    fn texts_of_others_are_shortened() {
        assert_eq!(shortened(&"ä".repeat(MAX_TEXT + 1)), "ä".repeat(MAX_TEXT));
    }
}
