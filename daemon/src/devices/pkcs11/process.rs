//! The helper process of one token: started when it is needed, ended when it
//! hangs, and started again.

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, fcntl_dupfd_cloexec, retry_on_intr};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::wire;
use crate::private_file;

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

/// How long a helper may take to end its sessions and its module when the daemon
/// stops.
const STOP_TIME: Timespec = Timespec {
    tv_sec: 3,
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
    /// Locked by the helper as long as it lives.
    lock: PathBuf,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    helper: Option<Helper>,
    /// The one before, which was killed and may not be gone yet.
    dying: Option<Child>,
    /// How many were started: tells one from the next.
    started: u64,
    /// No other is started.
    is_over: bool,
}

struct Helper {
    /// Taken when it is dropped.
    child: Option<Child>,
    /// Connections are handed over here.
    door: UnixStream,
    /// Those that were.
    connections: Vec<Weak<UnixStream>>,
}

/// A connection to the helper: one session with its token.
pub(super) struct Connection {
    pub(super) stream: Arc<UnixStream>,
    /// The serial number of the token, once it is logged in there.
    pub(super) token: String,
    /// Which helper it leads to.
    helper: u64,
}

impl HelperProcess {
    /// Starts nothing yet. `lock`: a file that the helper locks as long as it lives.
    pub(super) fn new(config: HelperConfig, lock: PathBuf) -> Self {
        Self {
            config,
            lock,
            running: Mutex::default(),
        }
    }

    /// A connection to the helper, which is started if it does not run.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        let mut running = self.running();
        if running.is_over {
            return Err(io::Error::other("the daemon is stopping"));
        }
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let ours = Arc::new(ours);
        let handed_over = match running.helper.as_mut() {
            Some(helper) => helper.runs()? && helper.hand_over(&ours, &theirs).is_ok(),
            None => false,
        };
        if !handed_over {
            // There is none, or it has just ended.
            running.end();
            running.bury()?;
            running.started = running.started.wrapping_add(1);
            let helper = running.helper.insert(self.start()?);
            helper.hand_over(&ours, &theirs)?;
        }
        Ok(Connection {
            stream: ours,
            token: String::new(),
            helper: running.started,
        })
    }

    /// Ends the helper that a connection leads to, if it is still that one: it
    /// hangs, and with it all of its sessions.
    pub(super) fn end(&self, connection: &Connection) {
        let mut running = self.running();
        if running.started == connection.helper {
            running.end();
        }
    }

    /// Ends the helper, whichever runs.
    pub(super) fn end_any(&self) {
        self.running().end();
    }

    /// Lets the helper end in order: it closes its sessions as their connections
    /// are closed, and then its module. One that takes too long for that is ended
    /// (`false`), and no other is started.
    pub(super) fn stop(&self) -> bool {
        let helper = {
            let mut running = self.running();
            running.is_over = true;
            let helper = running.helper.take();
            if helper.is_none() {
                // One that was killed has cut its connections off.
                return running.bury().is_ok();
            }
            helper
        };
        let Some(mut helper) = helper else {
            return true;
        };
        // A helper that has ended has closed it, too.
        let _ = helper.door.shutdown(Shutdown::Both);
        let in_order = helper.ended(&STOP_TIME).is_some();
        if !in_order {
            helper.cut_off();
        }
        in_order
    }

    /// How the helper ended that closed a connection; `None` if it runs, or
    /// another one does.
    pub(super) fn how_it_ended(&self, connection: &Connection) -> Option<String> {
        let mut running = self.running();
        if running.started != connection.helper {
            return None;
        }
        let status = running.helper.as_mut()?.ended(&LAST_BREATH)?;
        running.helper = None;
        Some(match (status.signal(), status.code()) {
            (Some(signal), _) => format!("it was ended by signal {signal}"),
            (None, Some(code)) => format!("it ended with code {code}, see the daemon's log"),
            (None, None) => status.to_string(),
        })
    }

    fn start(&self) -> io::Result<Helper> {
        let (ours, theirs) = UnixStream::pair()?;
        let lock = self.locked()?;
        let child = Command::new(&self.config.program)
            .arg(&self.config.module)
            .env_clear()
            .envs(self.config.environment.iter().cloned())
            .current_dir("/")
            // A terminal's Ctrl-C is for the daemon, which ends it in order.
            .process_group(0)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // It writes nothing there, and keeps it ([`keep_lock`]).
            .stdout(Stdio::from(lock.try_clone()?))
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| {
                let program = self.config.program.display();
                io::Error::new(error.kind(), format!("the helper {program}: {error}"))
            })?;
        // For whoever waits for the lock.
        lock.set_len(0)?;
        lock.write_all_at(child.id().to_string().as_bytes(), 0)?;
        Ok(Helper {
            child: Some(child),
            door: ours,
            connections: Vec::new(),
        })
    }

    /// The lock, for a new helper. The one that an earlier daemon left behind holds
    /// it until it has ended: what that is at is still finished, and its successor
    /// must not look before.
    fn locked(&self) -> io::Result<File> {
        let lock = private_file::open_or_create(&self.lock)?;
        let is_ours = || match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error),
        };
        if is_ours()? {
            return Ok(lock);
        }
        if let Some(holder) = named_in(&lock) {
            is_gone(holder, &LAST_CALL)?;
        }
        if is_ours()? {
            return Ok(lock);
        }
        Err(io::Error::other(
            "the one of an earlier daemon has not ended yet",
        ))
    }

    /// Held over the start of a process, and never over a call of the module.
    fn running(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helper {
    fn hand_over(&mut self, ours: &Arc<UnixStream>, theirs: &OwnedFd) -> io::Result<()> {
        hand_over(&self.door, theirs)?;
        self.connections.retain(|other| other.strong_count() > 0);
        self.connections.push(Arc::downgrade(ours));
        Ok(())
    }

    /// Nobody waits for its replies any more. If it hangs in a driver, killing it
    /// closes nothing.
    fn cut_off(&self) {
        for connection in self.connections.iter().filter_map(Weak::upgrade) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn runs(&mut self) -> io::Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// How it ended, if it has, or does so within this time.
    fn ended(&mut self, within: &Timespec) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        is_gone(pid(child).ok()?, within).ok()?;
        child.try_wait().ok().flatten()
    }
}

impl Helper {
    /// Kills it. It has nothing to save: what is durable is in the token. Answers
    /// what is not gone yet.
    fn kill(mut self) -> Option<Child> {
        let mut child = self.child.take()?;
        let _ = child.kill();
        match child.try_wait() {
            Ok(Some(_)) => None,
            _ => Some(child),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let _ = child.kill();
        if pid(&child)
            .and_then(|pid| is_gone(pid, &LAST_CALL))
            .is_ok_and(|gone| gone)
        {
            let _ = child.wait();
            return;
        }
        // One that hangs in a driver ends when that lets go, and nobody waits for
        // it here. Without a thread its remains stay until the daemon ends.
        let _ = std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || child.wait());
    }
}

impl Running {
    /// Ends the helper.
    fn end(&mut self) {
        if let Some(helper) = self.helper.take() {
            helper.cut_off();
            self.dying = helper.kill();
        }
    }

    /// Waits until the helper before is gone. It is killed, but what it is at in the
    /// system, such as writing an object, is still finished: its successor must not
    /// look before that, or it takes for gone what is about to appear.
    fn bury(&mut self) -> io::Result<()> {
        if let Some(dying) = &mut self.dying {
            if !is_gone(pid(dying)?, &LAST_CALL)? {
                return Err(io::Error::other(
                    "the one before cannot be ended: it hangs in the system, maybe in a driver",
                ));
            }
            dying.wait()?;
            self.dying = None;
        }
        Ok(())
    }
}

fn pid(child: &Child) -> io::Result<Pid> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other("no process id"))
}

/// The process that has locked the file, if it is named there.
fn named_in(lock: &File) -> Option<Pid> {
    let mut bytes = [0; 16];
    let length = lock.read_at(&mut bytes, 0).ok()?;
    let text = std::str::from_utf8(bytes.get(..length)?).ok()?;
    text.parse().ok().and_then(Pid::from_raw)
}

/// Waits for a process's end, so long at most: has it come?
fn is_gone(process: Pid, within: &Timespec) -> io::Result<bool> {
    let watched = match pidfd_open(process, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(true),
        watched => watched?,
    };
    let mut end = [PollFd::new(&watched, PollFlags::IN)];
    Ok(retry_on_intr(|| poll(&mut end, Some(within)))? > 0)
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

/// Keeps the lock that the helper was started with, which is its standard output, to
/// itself: no other program that a module starts inherits it.
///
/// # Errors
/// What the system says.
pub(super) fn keep_lock() -> io::Result<OwnedFd> {
    let lock = fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok(lock)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use rustix::process::{Signal, kill_process};

    use std::path::Path;

    use super::*;

    /// A helper that takes nothing, and whose connections do not end with it.
    #[test]
    fn nobody_waits_for_a_helper_that_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("script");
        std::fs::write(
            &script,
            "exec 3<&0\n/bin/sleep 1000 &\necho $! >\"$PID.new\"\n/bin/mv \"$PID.new\" \"$PID\"\nwait\n",
        )
        .unwrap();
        let pid = directory.path().join("pid");
        let helper = HelperProcess::new(
            HelperConfig {
                program: "/bin/sh".into(),
                module: script,
                environment: vec![("PID".to_owned(), pid.display().to_string())],
            },
            directory.path().join("helper"),
        );
        let connection = helper.connect().unwrap();
        let holder = loop {
            if let Ok(pid) = std::fs::read_to_string(&pid) {
                break Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
            }
            std::thread::yield_now();
        };
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (&*connection.stream).read(&mut [0]).unwrap());
            assert!(!helper.stop());
            assert_eq!(waiting.join().unwrap(), 0);
        });
        kill_process(holder, Signal::KILL).unwrap();
        let refused = helper.connect().err().unwrap().to_string();
        assert!(refused.contains("is stopping"), "{refused}");
    }

    #[test]
    fn the_successor_of_a_helper_starts_when_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let helper = sleeper(directory.path());
        for _ in 0..20 {
            helper.connect().unwrap();
            let pid = {
                let running = helper.running();
                let child = running.helper.as_ref().unwrap().child.as_ref();
                child.unwrap().id()
            };
            helper.end_any();
            helper.connect().unwrap();
            assert!(!PathBuf::from(format!("/proc/{pid}")).exists());
        }
    }

    fn sleeper(directory: &Path) -> HelperProcess {
        let config = HelperConfig {
            program: "/bin/sleep".into(),
            module: "1000".into(),
            environment: Vec::new(),
        };
        HelperProcess::new(config, directory.join("hsm/helper"))
    }

    #[test]
    fn what_an_earlier_daemon_left_behind_has_no_successor_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let earlier = sleeper(directory.path());
        earlier.connect().unwrap();
        let next = sleeper(directory.path());
        let refused = next.connect().err().unwrap().to_string();
        assert!(refused.contains("has not ended yet"), "{refused}");
        earlier.end_any();
        earlier.running().bury().unwrap();
        next.connect().unwrap();
    }
}
