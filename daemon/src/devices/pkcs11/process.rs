//! The helper process of one token: started when it is needed, ended when it
//! hangs, and started again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::wire;

/// How long a helper that has closed a connection may take to be gone, if that
/// is why.
const LAST_BREATH: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 200_000_000,
};

/// How long a helper that was killed may take to be gone.
const LAST_CALL: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};

/// What a helper is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperConfig {
    /// The program `mlskeyd-pkcs11`.
    pub program: PathBuf,
    /// The vendor's shared library.
    pub module: PathBuf,
    /// What the module reads from its environment, such as SOFTHSM2_CONF. The
    /// helper gets no other.
    pub environment: Vec<(String, String)>,
}

/// A token's helper process.
pub(super) struct HelperProcess {
    config: HelperConfig,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    helper: Option<Helper>,
    /// How many were started: tells one from the next.
    started: u64,
}

struct Helper {
    /// Taken when it is dropped.
    child: Option<Child>,
    /// Connections are handed over here.
    door: UnixStream,
}

/// A connection to the helper: one session with its token.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    /// Which helper it leads to.
    helper: u64,
}

impl HelperProcess {
    /// Starts nothing yet.
    pub(super) fn new(config: HelperConfig) -> Self {
        Self {
            config,
            running: Mutex::default(),
        }
    }

    /// A connection to the helper, which is started if it does not run.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        let mut running = self.running();
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let handed_over = match running.helper.as_mut() {
            Some(helper) => helper.runs()? && hand_over(&helper.door, &theirs).is_ok(),
            None => false,
        };
        if !handed_over {
            // There is none, or it has just ended.
            running.helper = None;
            running.started = running.started.wrapping_add(1);
            let helper = running.helper.insert(self.start()?);
            hand_over(&helper.door, &theirs)?;
        }
        Ok(Connection {
            stream: ours,
            helper: running.started,
        })
    }

    /// Ends the helper that a connection leads to, if it is still that one: it
    /// hangs, and with it all of its sessions.
    pub(super) fn end(&self, connection: &Connection) {
        let mut running = self.running();
        if running.started == connection.helper {
            running.helper = None;
        }
    }

    /// Ends the helper, whichever runs.
    pub(super) fn end_any(&self) {
        self.running().helper = None;
    }

    /// How the helper ended that closed a connection; `None` if it runs, or
    /// another one does.
    pub(super) fn how_it_ended(&self, connection: &Connection) -> Option<String> {
        let mut running = self.running();
        if running.started != connection.helper {
            return None;
        }
        let status = running.helper.as_mut()?.ended()?;
        running.helper = None;
        Some(match (status.signal(), status.code()) {
            (Some(signal), _) => format!("it was ended by signal {signal}"),
            (None, Some(code)) => format!("it ended with code {code}, see the daemon's log"),
            (None, None) => status.to_string(),
        })
    }

    fn start(&self) -> io::Result<Helper> {
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&self.config.program)
            .arg(&self.config.module)
            .env_clear()
            .envs(self.config.environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| {
                let program = self.config.program.display();
                io::Error::new(error.kind(), format!("the helper {program}: {error}"))
            })?;
        Ok(Helper {
            child: Some(child),
            door: ours,
        })
    }

    /// Held over the start of a process, and never over a call of the module.
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helper {
    fn runs(&mut self) -> io::Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// How it ended, if it has, or does so just now.
    fn ended(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        is_gone(child, LAST_BREATH).ok()?;
        child.try_wait().ok().flatten()
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // It has nothing to save: what is durable is in the token.
        let _ = child.kill();
        // A call of the system that it is at, such as writing an object, is still
        // finished. Its successor must not look before that, or it takes for gone
        // what is about to appear.
        if is_gone(&child, LAST_CALL).unwrap_or(false) {
            let _ = child.wait();
            return;
        }
        tracing::warn!("a helper does not end: it hangs in the system, maybe in a driver");
        // Nobody waits for it here. Without a thread its remains stay until the
        // daemon ends.
        let _ = std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || child.wait());
    }
}

/// Waits for a process's end, so long at most: has it come?
fn is_gone(child: &Child, longest: Timespec) -> io::Result<bool> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| io::Error::other("no process id"))?;
    let watched = pidfd_open(pid, PidfdFlags::empty())?;
    loop {
        let mut end = [PollFd::new(&watched, PollFlags::IN)];
        match poll(&mut end, Some(&longest)) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result? > 0),
        }
    }
}

fn hand_over(door: &UnixStream, connection: &OwnedFd) -> io::Result<()> {
    let descriptors = [connection.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    sendmsg(
        door,
        &[io::IoSlice::new(&[wire::VERSION])],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_was_ended_is_gone() {
        let helper = HelperProcess::new(HelperConfig {
            program: "/bin/sleep".into(),
            module: "1000".into(),
            environment: Vec::new(),
        });
        for _ in 0..20 {
            helper.connect().unwrap();
            let pid = {
                let running = helper.running();
                let child = running.helper.as_ref().unwrap().child.as_ref();
                child.unwrap().id()
            };
            helper.end_any();
            assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        }
    }
}
