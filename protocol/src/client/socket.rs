//! Unix sockets: the daemon's, and that of a bus.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::doors::Closed;

/// Connects to the daemon's socket.
pub(super) fn open(path: &Path) -> Result<UnixStream, Closed> {
    let address = SocketAddrUnix::new(path)
        .map_err(|error| Closed::Broken(format!("not a possible socket path ({error})")))?;
    connect_to(&address)
}

/// Connects without blocking, also where who listens hangs and its backlog is
/// full; another program that is started meanwhile does not inherit the socket.
pub(super) fn connect_to(address: &SocketAddrUnix) -> Result<UnixStream, Closed> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket: OwnedFd = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| Closed::Away(error.to_string()))?;
    match connect(&socket, address) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(Errno::NOENT) => Err(Closed::Absent("there is none".to_owned())),
        Err(error @ (Errno::ACCESS | Errno::PERM)) => Err(Closed::Barred(error.to_string())),
        Err(error @ (Errno::CONNREFUSED | Errno::AGAIN | Errno::INTR)) => {
            Err(Closed::Away(error.to_string()))
        }
        Err(error) => Err(Closed::Broken(error.to_string())),
    }
}
