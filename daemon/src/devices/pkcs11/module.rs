//! One vendor's module: its helper process, started when it is needed, ended
//! when it hangs, and started again.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// A module and what its helper needs.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleConfig {
    /// The program `mlskeyd-pkcs11`.
    pub helper: PathBuf,
    /// The vendor's shared library.
    pub module: PathBuf,
    /// What the module reads from its environment, such as SOFTHSM2_CONF. The
    /// helper gets no other.
    pub environment: Vec<(String, String)>,
}

/// A module's helper process, shared by the devices of its tokens.
pub struct Module {
    config: ModuleConfig,
    helper: Mutex<Option<Helper>>,
}

struct Helper {
    /// Taken when it is dropped.
    child: Option<Child>,
    /// Connections are handed over here.
    door: UnixStream,
    /// Tells one helper from the next; held by its connections.
    number: Arc<u64>,
}

/// A connection to the helper: one session with one token.
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    helper: Arc<u64>,
}

impl Module {
    /// Starts nothing yet.
    #[must_use]
    pub const fn new(config: ModuleConfig) -> Self {
        Self {
            config,
            helper: Mutex::new(None),
        }
    }

    /// A connection to the helper, which is started if it does not run.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn connect(&self) -> io::Result<Connection> {
        let mut slot = self.helper();
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        if let Some(helper) = slot.as_mut()
            && helper.runs()?
            && hand_over(&helper.door, &theirs).is_ok()
        {
            let helper = Arc::clone(&helper.number);
            return Ok(Connection {
                stream: ours,
                helper,
            });
        }
        // There is none, or it has just ended.
        *slot = None;
        let helper = slot.insert(self.start()?);
        hand_over(&helper.door, &theirs)?;
        Ok(Connection {
            stream: ours,
            helper: Arc::clone(&helper.number),
        })
    }

    /// Ends the helper that a connection leads to, if it is still that one: it
    /// hangs, and with it all of its sessions.
    pub(super) fn end(&self, connection: &Connection) {
        let mut slot = self.helper();
        if slot
            .as_ref()
            .is_some_and(|helper| helper.number == connection.helper)
        {
            *slot = None;
        }
    }

    /// The same, if nobody else uses that helper: some modules see a token only
    /// if it was there when they were loaded.
    pub(super) fn end_if_alone(&self, connection: &Connection) {
        // The helper's own, and the connection's.
        if Arc::strong_count(&connection.helper) <= 2 {
            self.end(connection);
        }
    }

    fn start(&self) -> io::Result<Helper> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let (ours, theirs) = UnixStream::pair()?;
        let child = Command::new(&self.config.helper)
            .arg(&self.config.module)
            .env_clear()
            .envs(self.config.environment.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(|error| {
                let helper = self.config.helper.display();
                io::Error::new(error.kind(), format!("the helper {helper}: {error}"))
            })?;
        Ok(Helper {
            child: Some(child),
            door: ours,
            number: Arc::new(NEXT.fetch_add(1, Ordering::Relaxed)),
        })
    }

    /// Held over the start of a process, which waits for nobody, and never over
    /// a call of the module.
    fn helper(&self) -> MutexGuard<'_, Option<Helper>> {
        self.helper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Helper {
    fn runs(&mut self) -> io::Result<bool> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // It has nothing to save: what is durable is in the token.
        let _ = child.kill();
        if let Ok(Some(_)) = child.try_wait() {
            return;
        }
        // One that hangs in a driver ends when that lets go, and nobody waits for
        // it here. Without a thread its remains stay until the daemon ends.
        let _ = std::thread::Builder::new()
            .name("reaper".to_owned())
            .spawn(move || child.wait());
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
        &[io::IoSlice::new(&[0])],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}
