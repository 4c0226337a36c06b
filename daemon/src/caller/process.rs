//! What can be seen of the process at the other end of a socket, or of a bus.
//!
//! A process id alone may be another process's by now. So the kernel's descriptor of the
//! process is asked whether it still runs, *after* its directory in /proc was opened: then
//! that is its own, and whatever is read below it is of this process, or fails.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::sandbox::{self, Flatpak, Snap};
use super::units::{self, Units};
use super::writer;

/// Most of a file in /proc, or of a sandbox's own description, that is read, in bytes.
const MAX_FILE: u64 = 64 * 1024;

/// Why nothing is known of a process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unseen {
    /// It has ended.
    #[error("the process that connected has ended")]
    Gone,
    /// It is not to be seen from here.
    #[error("{0}")]
    Hidden(io::Error),
}

impl From<Errno> for Unseen {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<io::Error> for Unseen {
    fn from(error: io::Error) -> Self {
        if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) {
            Self::Gone
        } else {
            Self::Hidden(error)
        }
    }
}

/// The process that connected to a socket, or to a bus.
#[derive(Debug)]
pub(crate) struct Peer {
    pidfd: OwnedFd,
    pid: i32,
    directory: OwnedFd,
    /// Does the kernel say which process it is, and who writes?
    exact: bool,
}

/// A process that was identified.
#[derive(Debug)]
pub(crate) struct Process {
    peer: Arc<Peer>,
    before: Seen,
}

/// What was seen of a process at one time.
#[derive(Debug)]
pub(crate) struct Seen {
    /// When it began, in ticks since the machine did.
    started: u64,
    pub(super) program: Program,
    pub(super) units: Units,
    pub(super) flatpak: Option<Flatpak>,
    pub(super) snap: Option<Snap>,
    /// Can another process not pose as this one?
    pub(super) exact: bool,
}

/// The file that a process runs.
#[derive(Debug)]
pub(crate) struct Program {
    pub(super) file: OwnedFd,
    pub(super) stat: Stat,
    /// Where it says that it is. In a mount namespace of its own a process may have anything
    /// anywhere.
    pub(super) path: PathBuf,
    /// The mount namespace in which that is.
    pub(super) mounts: u64,
}

impl Peer {
    /// The process that connected this socket. `pid`: as the socket says, for a kernel that
    /// says no more.
    pub(crate) fn of(socket: BorrowedFd<'_>, pid: Option<i32>) -> Result<Self, Unseen> {
        match writer::connected(socket) {
            Ok(pidfd) => Self::held(pidfd, true),
            Err(error) if error.raw_os_error() == Some(Errno::NOPROTOOPT.raw_os_error()) => {
                Self::by_id(pid)
            }
            // It was not there any more to be given a descriptor.
            Err(error) if error.kind() == ErrorKind::InvalidInput => Err(Unseen::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// The process that a bus says has connected there. Without its descriptor, which older
    /// buses do not give, it is the one that has this id now: a process that proves that it
    /// is the one, as [`Self::proves_itself`], is it nevertheless.
    pub(crate) fn on_bus(process: Option<OwnedFd>, pid: Option<i32>) -> Result<Self, Unseen> {
        match process {
            Some(pidfd) => Self::held(pidfd, true),
            None => Self::by_id(pid),
        }
    }

    /// The same, on a socket which nobody has connected, but which somebody was given for it:
    /// what counts is who writes.
    pub(crate) fn proves_itself(self, socket: BorrowedFd<'_>) -> io::Result<Self> {
        let exact = match writer::tell_writers(socket, true) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(Errno::NOPROTOOPT.raw_os_error()) => false,
            Err(error) => return Err(error),
        };
        Ok(Self { exact, ..self })
    }

    /// The process that has this id now, which may be another one already.
    fn by_id(pid: Option<i32>) -> Result<Self, Unseen> {
        let pid = pid.and_then(Pid::from_raw).ok_or_else(elsewhere)?;
        Self::held(pidfd_open(pid, PidfdFlags::empty())?, false)
    }

    fn held(pidfd: OwnedFd, exact: bool) -> Result<Self, Unseen> {
        let pid = match pid_of(pidfd.as_fd())? {
            -1 => return Err(Unseen::Gone),
            0 => return Err(elsewhere()),
            pid => pid,
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = openat(CWD, format!("/proc/{pid}"), flags, Mode::empty());
        let peer = Self {
            directory: directory?,
            pidfd,
            pid,
            exact,
        };
        peer.check_alive().map(|()| peer)
    }

    /// It has not ended, and so its id is nobody else's.
    fn check_alive(&self) -> Result<(), Unseen> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default()))? {
            0 => Ok(()),
            _ => Err(Unseen::Gone),
        }
    }

    /// Has the kernel tell who writes, if it can.
    pub(crate) fn tell_writers(&self, socket: BorrowedFd<'_>, tell: bool) -> io::Result<()> {
        if self.exact {
            writer::tell_writers(socket, tell)?;
        }
        Ok(())
    }

    /// Receives what this process has written; where the kernel does not tell, what anybody
    /// has. What another process has written is that of `other`, if there may be one: the
    /// first that writes.
    ///
    /// # Errors
    /// What the system says; [`ErrorKind::PermissionDenied`]: another process has written it.
    pub(crate) fn receive(
        &self,
        socket: BorrowedFd<'_>,
        room: &mut [u8],
        other: Option<&mut Option<Self>>,
    ) -> io::Result<usize> {
        if !self.exact {
            return receive_from_anybody(socket, room);
        }
        let foreign = || io::Error::from(ErrorKind::PermissionDenied);
        let (count, writer) = match writer::receive(socket, room) {
            Err(error) if error.kind() == ErrorKind::InvalidData => return Err(foreign()),
            received => received?,
        };
        let Some(writer) = writer else {
            return Ok(count);
        };
        if self.is(&writer)? {
            return Ok(count);
        }
        let other = other.ok_or_else(foreign)?;
        if other.is_none() {
            *other = Some(Self::held(writer, true).map_err(|_| foreign())?);
            return Ok(count);
        }
        match other {
            Some(other) if other.is(&writer)? => Ok(count),
            _ => Err(foreign()),
        }
    }

    /// Is it this process? Both had this id, and this one has it still: so they are one.
    fn is(&self, pidfd: &OwnedFd) -> io::Result<bool> {
        Ok(pid_of(pidfd.as_fd())? == self.pid && self.check_alive().is_ok())
    }

    /// What is to be seen of it now.
    pub(crate) fn look(&self) -> Result<Seen, Unseen> {
        let seen = self.see();
        self.check_alive()?;
        seen
    }

    fn see(&self) -> Result<Seen, Unseen> {
        let program = self.program()?;
        let root = OFlags::PATH | OFlags::DIRECTORY;
        let root = openat(
            &self.directory,
            "root",
            root | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let label = self
            .text("attr/apparmor/current")
            .or_else(|_| self.text("attr/current"));
        let cgroup = self.text("cgroup")?;
        let units = units::of(&cgroup);
        Ok(Seen {
            started: started(&self.text("stat")?).ok_or_else(strange)?,
            program,
            flatpak: sandbox::flatpak(root.as_fd()),
            snap: sandbox::snap(&label.unwrap_or_default(), &units),
            units,
            exact: self.exact,
        })
    }

    fn program(&self) -> Result<Program, Unseen> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = openat(&self.directory, "exe", flags, Mode::empty())?;
        let path = readlinkat(CWD, own_path(file.as_fd()), Vec::new())?;
        let mounts = rustix::fs::statat(&self.directory, "ns/mnt", rustix::fs::AtFlags::empty())?;
        Ok(Program {
            stat: fstat(&file)?,
            file,
            path: PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes())),
            mounts: mounts.st_ino,
        })
    }

    fn text(&self, name: &str) -> Result<String, Unseen> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::empty())?;
        Ok(bounded(File::from(file))?)
    }
}

impl Process {
    /// The process that was this when it was identified.
    pub(crate) const fn new(peer: Arc<Peer>, before: Seen) -> Self {
        Self { peer, before }
    }

    /// Does it run the program that it was identified by?
    pub(crate) fn look_again(&self) -> Result<bool, Unseen> {
        self.peer.look().map(|now| self.before.is_same(&now))
    }

    /// Its id.
    pub(crate) fn pid(&self) -> i32 {
        self.peer.pid
    }

    /// When it began, in ticks since the machine did.
    pub(crate) const fn started(&self) -> u64 {
        self.before.started
    }

    /// The kernel's descriptor of it.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.peer.pidfd.as_fd()
    }
}

impl Seen {
    /// Is it still the same process, that runs the same program?
    pub(crate) fn is_same(&self, now: &Self) -> bool {
        let file = |seen: &Self| (seen.program.stat.st_dev, seen.program.stat.st_ino);
        self.started == now.started && file(self) == file(now)
    }

    /// Are both in the same sandbox? What a Flatpak says on a bus comes from a process that
    /// Flatpak has put beside the app's own (`xdg-dbus-proxy`), in the same instance.
    pub(crate) fn shares_sandbox_with(&self, other: &Self) -> bool {
        let instance = |seen: &Self| seen.flatpak.clone().filter(|it| it.instance.is_some());
        instance(self).is_some_and(|it| instance(other) == Some(it))
    }

    /// Is it in a sandbox that may have a process beside the app's own?
    pub(crate) fn is_in_sandbox(&self) -> bool {
        self.flatpak.is_some()
    }

    /// Is it in any sandbox?
    pub(super) const fn is_confined(&self) -> bool {
        self.flatpak.is_some() || self.snap.is_some()
    }

    /// The same, but that it is not sure which process it is.
    pub(crate) fn doubtful(self) -> Self {
        Self {
            exact: false,
            ..self
        }
    }
}

/// A descriptor's own path, by which its file is opened again.
pub(super) fn own_path(file: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// The text of a file; what is longer than [`MAX_FILE`] is none.
pub(super) fn bounded(file: File) -> io::Result<String> {
    let mut text = String::new();
    let read = file.take(MAX_FILE).read_to_string(&mut text)?;
    if u64::try_from(read).is_ok_and(|read| read < MAX_FILE) {
        Ok(text)
    } else {
        Err(ErrorKind::FileTooLarge.into())
    }
}

/// The id of a process; -1 if it has ended and was waited for, 0 if it has none here.
fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = bounded(File::open(path)?)?;
    let mut lines = info.lines();
    let pid = lines.find_map(|line| line.strip_prefix("Pid:"));
    let pid = pid.and_then(|pid| pid.trim().parse().ok());
    pid.ok_or_else(|| ErrorKind::InvalidData.into())
}

/// The 22nd field of `/proc/PID/stat` (proc(5)), behind a name that may hold anything.
fn started(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Receives what anybody has written.
pub(crate) fn receive_from_anybody(socket: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    let flags = rustix::net::RecvFlags::DONTWAIT;
    Ok(rustix::net::recv(socket, room, flags).map(|(_, count)| count)?)
}

fn elsewhere() -> Unseen {
    Unseen::Hidden(io::Error::other("it is in another PID namespace"))
}

fn strange() -> Unseen {
    Unseen::Hidden(ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests;
