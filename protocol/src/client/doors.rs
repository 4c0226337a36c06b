//! Where the daemon is looked for: its socket, or a message bus.

use std::ffi::OsString;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::CallError;
use super::connection::{ConnectError, Patience};
use super::socket;

/// A message bus on which the daemon may be, as `org.mlskeyd.Custody1`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bus {
    /// The machine's: as `DBUS_SYSTEM_BUS_ADDRESS` says, else the usual one.
    System,
    /// That of the user's session: as `DBUS_SESSION_BUS_ADDRESS` says, else
    /// `$XDG_RUNTIME_DIR/bus`.
    Session,
    /// The one at this address, as in `unix:path=/run/dbus/system_bus_socket`
    /// (D-Bus Specification, Server Addresses).
    At(String),
}

impl From<&str> for Bus {
    /// `system`, `session`, or an address. Whether it is one is seen when it is
    /// opened.
    fn from(name: &str) -> Self {
        match name {
            "system" => Self::System,
            "session" => Self::Session,
            address => Self::At(address.to_owned()),
        }
    }
}

/// One way to the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Socket(PathBuf),
    Bus(Bus),
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "at the socket {}", path.display()),
            Self::Bus(Bus::System) => f.write_str("on the system bus"),
            Self::Bus(Bus::Session) => f.write_str("on the session bus"),
            Self::Bus(Bus::At(address)) => write!(f, "on the bus {address}"),
        }
    }
}

/// Why a door did not open.
#[cfg_attr(
    not(feature = "bus"),
    expect(dead_code, reason = "some come from a bus only")
)]
pub(super) enum Closed {
    /// There is none, or there is nobody behind it.
    Absent(String),
    /// This process may not use it.
    Barred(String),
    /// Not now: trying again may help.
    Away(String),
    /// Trying again does not help.
    Broken(String),
    /// Somebody behind it does not let this process in: why, and what to do.
    Refused(String),
    /// The call is over.
    Call(CallError),
}

impl Door {
    fn open(&self, patience: Patience<'_>) -> Result<UnixStream, Closed> {
        match self {
            Self::Socket(path) => socket::open(path),
            #[cfg(feature = "bus")]
            Self::Bus(bus) => super::bus::open(bus, patience),
            #[cfg(not(feature = "bus"))]
            Self::Bus(_) => {
                let _ = patience;
                Err(Closed::Broken(
                    "this program was built without mlskeyd's feature `bus`".to_owned(),
                ))
            }
        }
    }
}

/// Where a client looks for the daemon, one door after the other.
///
/// The next one is tried only if the one before is not there, or if this process
/// may not open it: nobody is asked in place of a daemon that is away for a
/// moment. A client that has met the daemon keeps to the door.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doors(Vec<Door>);

impl Doors {
    /// The daemon's socket only.
    #[must_use]
    pub fn socket(path: impl Into<PathBuf>) -> Self {
        Self(vec![Door::Socket(path.into())])
    }

    /// A message bus only.
    #[must_use]
    pub fn bus(bus: impl Into<Bus>) -> Self {
        Self(vec![Door::Bus(bus.into())])
    }

    /// These, then the other ones.
    #[must_use]
    pub fn or(mut self, mut other: Self) -> Self {
        self.0.append(&mut other.0);
        self
    }

    /// Those that are named, and no other: a socket, then a bus (`system`,
    /// `session`, `none`, or an address). If none is, those that
    /// `MLSKEYD_SOCKET` and `MLSKEYD_BUS` name in the same way.
    ///
    /// If these name none, either: the socket `/run/mlskeyd/socket` if it is
    /// there, else `$XDG_RUNTIME_DIR/mlskeyd/socket` if that is there; then,
    /// with the feature `bus`, the system's bus, and the session's if there is
    /// one. For root only those of the system.
    #[must_use]
    pub fn named(socket: Option<PathBuf>, bus: Option<&str>) -> Self {
        if socket.is_some() || bus.is_some() {
            return Self::chosen(socket, bus);
        }
        let said = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        let bus = said("MLSKEYD_BUS").map(OsString::into_string);
        // What is no text is no address, which is said when it is opened.
        let bus = bus.map(|bus| bus.unwrap_or_else(|bytes| bytes.display().to_string()));
        Self::chosen(said("MLSKEYD_SOCKET").map(PathBuf::from), bus.as_deref())
    }

    fn chosen(socket: Option<PathBuf>, bus: Option<&str>) -> Self {
        match (socket, bus) {
            (Some(socket), None | Some("none")) => Self::socket(socket),
            (Some(socket), Some(bus)) => Self::socket(socket).or(Self::bus(bus)),
            (None, Some("none")) => Self::socket(usual_socket()),
            (None, Some(bus)) => Self::bus(bus),
            (None, None) => Self::socket(usual_socket()).or(usual_buses()),
        }
    }

    pub(super) fn only(door: Door) -> Self {
        Self(vec![door])
    }

    /// A stream to the daemon, and the door through which it goes.
    pub(super) fn open(&self, patience: Patience<'_>) -> Result<(UnixStream, &Door), ConnectError> {
        // What was wrong with those before.
        let mut passed = Vec::new();
        let mut barred = false;
        for door in &self.0 {
            let closed = match door.open(patience) {
                Ok(stream) => return Ok((stream, door)),
                Err(closed) => closed,
            };
            let mut so_far = |why: &str| {
                passed.push(format!("{door}: {why}"));
                passed.join("; ")
            };
            match closed {
                Closed::Absent(why) => drop(so_far(&why)),
                Closed::Barred(why) => {
                    barred = true;
                    so_far(&why);
                }
                Closed::Away(why) => return Err(ConnectError::Away(so_far(&why))),
                Closed::Broken(why) => {
                    let reason = so_far(&why);
                    return Err(CallError::Unreachable { reason }.into());
                }
                Closed::Refused(why) => return Err(CallError::Refused(so_far(&why)).into()),
                Closed::Call(CallError::Timeout) => {
                    return Err(ConnectError::Silent(so_far("no answer in time")));
                }
                Closed::Call(error) => return Err(error.into()),
            }
        }
        if barred {
            let reason = passed.join("; ");
            return Err(CallError::Unreachable { reason }.into());
        }
        Err(ConnectError::Absent(passed.join("; ")))
    }

    /// What somebody can do whose app finds none of them.
    pub(super) fn advice(&self) -> &'static str {
        if self.0.iter().any(|door| matches!(door, Door::Bus(_))) {
            "install and start mlskeyd, or name its door in MLSKEYD_SOCKET or MLSKEYD_BUS; an app \
             in a sandbox has to be allowed to talk to org.mlskeyd.Custody1"
        } else {
            "install and start mlskeyd, or set MLSKEYD_SOCKET to its socket"
        }
    }
}

impl fmt::Display for Doors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, door) in self.0.iter().enumerate() {
            write!(f, "{}{door}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// The socket at which the daemon is looked for if none is named: `$MLSKEYD_SOCKET`, else
/// `/run/mlskeyd/socket` if it is there, else, but not for root, `$XDG_RUNTIME_DIR/mlskeyd/socket`
/// if that is there, else `/run/mlskeyd/socket`.
#[must_use]
pub fn default_socket() -> PathBuf {
    let said = std::env::var_os("MLSKEYD_SOCKET").filter(|path| !path.is_empty());
    said.map_or_else(usual_socket, PathBuf::from)
}

/// Is this root, who must not come to a daemon that a user runs: PINs would be given to it.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

fn usual_socket() -> PathBuf {
    let system = PathBuf::from("/run/mlskeyd/socket");
    let user = std::env::var_os("XDG_RUNTIME_DIR")
        .filter(|_| !is_root())
        .map(|dir| PathBuf::from(dir).join("mlskeyd/socket"))
        .filter(|path| path.exists());
    match user {
        Some(user) if !system.exists() => user,
        _ => system,
    }
}

/// None without the feature: what nobody named is then no question of buses.
fn usual_buses() -> Doors {
    if !cfg!(feature = "bus") {
        return Doors(Vec::new());
    }
    let system = Doors::bus(Bus::System);
    let session = std::env::var_os("DBUS_SESSION_BUS_ADDRESS").is_some()
        || std::env::var_os("XDG_RUNTIME_DIR")
            .is_some_and(|dir| PathBuf::from(dir).join("bus").exists());
    if session && !is_root() {
        system.or(Doors::bus(Bus::Session))
    } else {
        system
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_all_that_is_tried() {
        let socket = || Some(PathBuf::from("/s"));
        let chosen = |socket, bus| Doors::chosen(socket, bus).to_string();
        assert_eq!(chosen(socket(), None), "at the socket /s");
        assert_eq!(chosen(socket(), Some("none")), "at the socket /s");
        assert_eq!(chosen(None, Some("system")), "on the system bus");
        assert_eq!(
            chosen(socket(), Some("session")),
            "at the socket /s, on the session bus"
        );
        assert_eq!(
            chosen(None, Some("unix:path=/b")),
            "on the bus unix:path=/b"
        );
        let no_bus = Doors::chosen(None, Some("none"));
        assert!(matches!(no_bus.0.as_slice(), [Door::Socket(_)]));
        let usual = Doors::chosen(None, None);
        assert!(matches!(usual.0.first(), Some(Door::Socket(_))));
        assert_eq!(usual.0.len() > 1, cfg!(feature = "bus"));
    }
}
