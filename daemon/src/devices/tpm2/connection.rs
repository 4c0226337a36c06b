//! The connection to a TPM, with all that is prepared there for its use: the
//! storage key, one session that commands are authorised and encrypted with, and
//! the keys that were used last. When it is dropped the TPM holds none of that
//! any more.

use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;

use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::{PropertyTag, SessionType};
use tss_esapi::handles::{KeyHandle, NvIndexHandle, ObjectHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::SymmetricDefinition;
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::{Context, Error, Result};

use super::capabilities::{handles, is_there, property};
use super::failure::{self, Verdict};
use super::keys::{Curve, Guard, WrongTries};
use super::loaded::Loaded;
use super::parent::{self, Origin, Parent};
use crate::config::Tcti;
use crate::devices::DeviceError;

/// What a resource manager gives each of its users at least: the kernel's three
/// objects, the storage key among them if the TPM makes it anew.
const MANAGED_ROOM: u32 = 3;

/// Most keys that stay loaded.
const MOST_ROOM: u32 = 32;

/// Where the handles of transient objects, and of loaded sessions, begin.
const TRANSIENT_FIRST: u32 = 0x8000_0000;
const LOADED_SESSION_FIRST: u32 = 0x0200_0000;

/// Most handles that the TPM is asked for at once.
const HANDLES: u32 = 254;

/// What of a command is secret on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Secrecy {
    Nothing,
    /// Nothing, in a command that needs no authorisation: the session only shows that it
    /// is the TPM that answers.
    Vouched,
    /// Its first parameter.
    Request,
    /// The first parameter of its answer.
    Answer,
}

/// Can the connection still be used?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Sound,
    /// No; and the command that showed it has done nothing.
    Stale,
    /// No; and nobody knows whether that command was obeyed.
    Lost,
    /// The way to the TPM is sound, and nobody knows which root is in it.
    Unsure,
}

/// A connection.
pub(super) struct Connection {
    pub(super) context: Context,
    session: AuthSession,
    /// For keys that have a policy, once one was used.
    pub(super) policy_session: Option<PolicySession>,
    parent: Parent,
    pub(super) loaded: Loaded,
    has_p384: bool,
    /// Of the root, once it was found or made.
    pub(super) index: Option<NvIndexHandle>,
    pub(super) condition: Condition,
}

impl Connection {
    /// Connects, and prepares what is needed: with the storage key of this Name,
    /// if the device was set up with one.
    pub(super) fn open(
        tcti: &Tcti,
        pinned: Option<&[u8]>,
    ) -> std::result::Result<Self, DeviceError> {
        let mut context = connect(tcti)?;
        if !tcti.is_managed() {
            flush_all(&mut context).map_err(failure::describe)?;
        }
        for origin in Origin::ALL {
            let Some(parent) = parent::find(&mut context, origin)? else {
                continue;
            };
            if pinned.is_some_and(|pinned| pinned != parent.name) {
                continue;
            }
            let session = start(&mut context, Some(parent.handle), SessionType::Hmac)
                .map_err(failure::describe)?;
            let room = room(&mut context, tcti, origin).map_err(failure::describe)?;
            let mut connection = Self {
                context,
                has_p384: false,
                session,
                policy_session: None,
                parent,
                loaded: Loaded::new(room),
                index: None,
                condition: Condition::Sound,
            };
            let has_p384 = connection.has_curve(Curve::P384);
            connection.has_p384 = has_p384.map_err(failure::describe)?;
            if pinned.is_some() || connection.may_use_parent()? {
                return Ok(connection);
            }
            connection.flush(session_handle(connection.session));
            context = connection.context;
        }
        Err(DeviceError::Missing {
            what: "the storage key that mlskeyd's keys hang under (the TPM was cleared, or it is another one)"
                .to_owned(),
        })
    }

    pub(super) const fn parent(&self) -> KeyHandle {
        self.parent.handle
    }

    pub(super) fn parent_name(&self) -> &[u8] {
        &self.parent.name
    }

    /// What tells this TPM from others.
    pub(super) fn serial(&self) -> String {
        serial(&self.parent.name)
    }

    /// The session that commands are authorised by where nothing else is asked for.
    pub(super) const fn session(&self) -> AuthSession {
        self.session
    }

    /// Does the TPM know the curve P-384?
    pub(super) const fn has_p384(&self) -> bool {
        self.has_p384
    }

    pub(super) const fn condition(&self) -> Condition {
        self.condition
    }

    /// Runs a command, authorised by the session.
    pub(super) fn run<T>(
        &mut self,
        secrecy: Secrecy,
        command: impl FnOnce(&mut Context) -> Result<T>,
    ) -> Result<T> {
        self.run_with(self.session, secrecy, None, command)
    }

    /// The same by this session, for a command on two objects, the second of which
    /// another session authorises.
    pub(super) fn run_with<T>(
        &mut self,
        session: AuthSession,
        secrecy: Secrecy,
        second: Option<AuthSession>,
        command: impl FnOnce(&mut Context) -> Result<T>,
    ) -> Result<T> {
        let (attributes, mask) = SessionAttributesBuilder::new()
            .with_continue_session(true)
            .with_audit(secrecy == Secrecy::Vouched)
            .with_decrypt(secrecy == Secrecy::Request)
            .with_encrypt(secrecy == Secrecy::Answer)
            .build();
        let done = self
            .context
            .tr_sess_set_attributes(session, attributes, mask)
            .and_then(|()| {
                let sessions = (Some(session), second, None);
                self.context.execute_with_sessions(sessions, command)
            });
        self.noted(done)
    }

    /// The same for a command that takes room of the TPM's: makes some first, and
    /// more as long as the TPM has none.
    pub(super) fn run_with_room<T>(
        &mut self,
        secrecy: Secrecy,
        command: impl Fn(&mut Context) -> Result<T>,
    ) -> Result<T> {
        if let Some(surplus) = self.loaded.take_surplus() {
            self.flush(surplus);
        }
        loop {
            let done = self.run(secrecy, &command);
            match done {
                Err(error) if failure::verdict(error) == Verdict::NoRoom => {
                    let Some(oldest) = self.loaded.take_oldest() else {
                        return Err(error);
                    };
                    self.flush(oldest);
                }
                done => return done,
            }
        }
    }

    /// Runs a command in no session.
    pub(super) fn noted_without_session<T>(
        &mut self,
        command: impl FnOnce(&mut Context) -> Result<T>,
    ) -> Result<T> {
        let done = self.context.execute_without_session(command);
        self.noted(done)
    }

    /// A session that satisfies policies. One that is to encrypt something is salted by
    /// the storage key.
    pub(super) fn start_policy_session(
        &mut self,
        salt: Option<KeyHandle>,
    ) -> Result<PolicySession> {
        let started = start(&mut self.context, salt, SessionType::Policy);
        self.noted(started)?.try_into()
    }

    /// What the TPM keeps by itself, if it is there.
    pub(super) fn find(&mut self, handle: TpmHandle) -> Result<Option<ObjectHandle>> {
        let found = is_there(&mut self.context, handle);
        if !self.noted(found)? {
            return Ok(None);
        }
        let found = self.noted_without_session(|context| context.tr_from_tpm_public(handle));
        found.map(Some)
    }

    /// Forgets what was found: it stays in the TPM.
    pub(super) fn close(&mut self, mut object: ObjectHandle) {
        // Nothing depends on it.
        let _ = self.context.tr_close(&mut object);
    }

    /// Takes an object out of the TPM.
    pub(super) fn flush(&mut self, object: ObjectHandle) {
        let done = self.context.flush_context(object);
        // One that is not there any more is what was wanted.
        let _ = self.noted(done);
    }

    /// What is said of an error: of a lockout, how long it takes.
    pub(super) fn describe(&mut self, error: Error) -> DeviceError {
        match failure::verdict(error) {
            Verdict::LockedOut => self.locked_out(error),
            _ => failure::describe(error),
        }
    }

    /// Notes what an error says of the connection.
    pub(super) fn noted<T>(&mut self, done: Result<T>) -> Result<T> {
        if let Err(error) = done {
            match failure::verdict(error) {
                Verdict::Lost => self.condition = Condition::Lost,
                Verdict::Stale if self.condition == Condition::Sound => {
                    self.condition = Condition::Stale;
                }
                _ => {}
            }
        }
        done
    }

    /// Has the storage key the empty authorisation value? Tried by use.
    fn may_use_parent(&mut self) -> std::result::Result<bool, DeviceError> {
        let guard = Guard {
            auth: &[0; 32],
            tries: WrongTries::Free,
            policy: None,
        };
        match self.seal(&[0; 32], guard) {
            Ok(_) => Ok(true),
            Err(error) if failure::verdict(error) == Verdict::WrongAuth => Ok(false),
            Err(error) => Err(self.describe(error)),
        }
    }
}

/// The beginning of the Name of its storage key, after the algorithm of the hash:
/// a TPM's own number is nothing that it tells without asking its owner.
pub(super) fn serial(parent: &[u8]) -> String {
    hex::encode(parent.get(2..18).unwrap_or(parent))
}

pub(super) fn session_handle(session: AuthSession) -> ObjectHandle {
    SessionHandle::from(session).into()
}

fn connect(tcti: &Tcti) -> std::result::Result<Context, DeviceError> {
    if let Some(device) = tcti.device() {
        check_device(device)?;
    }
    let opened = TctiNameConf::from_str(tcti.as_str()).and_then(Context::new);
    opened.map_err(|error| DeviceError::Absent {
        reason: format!(
            "{tcti} does not answer ({}); is it there, and TSS's library for it (Debian: {})?",
            failure::name(error),
            tcti.package()
        ),
    })
}

/// Does the file open? Of one that does not TSS says nothing that helps, and fills
/// the log.
fn check_device(device: &Path) -> std::result::Result<(), DeviceError> {
    let opened = File::options().read(true).write(true).open(device);
    opened.map(drop).map_err(|error| no_device(device, &error))
}

pub(super) fn no_device(device: &Path, error: &io::Error) -> DeviceError {
    let device = device.display();
    DeviceError::Absent {
        reason: match error.kind() {
            io::ErrorKind::NotFound => format!("there is no {device}"),
            io::ErrorKind::PermissionDenied => format!(
                "the daemon's user may not open {device}: add it to the group that may, often with \
                 `usermod -aG tss USER`, and restart the daemon"
            ),
            _ => format!("{device} does not open: {error}"),
        },
    }
}

/// Takes everything out of the TPM that is loaded there. Where there is no
/// resource manager nobody else uses the TPM at the same time, so it is what a
/// predecessor left that died.
fn flush_all(context: &mut Context) -> Result<()> {
    for first in [TRANSIENT_FIRST, LOADED_SESSION_FIRST] {
        for handle in handles(context, first, HANDLES)? {
            let object =
                context.execute_without_session(|context| context.tr_from_tpm_public(handle))?;
            match context.flush_context(object) {
                // Flushed, but the crate wants sessions of policies to be closed only.
                Err(Error::WrapperError(_)) => {}
                flushed => flushed?,
            }
        }
    }
    Ok(())
}

/// How many keys can be loaded beside the storage key.
fn room(context: &mut Context, tcti: &Tcti, origin: Origin) -> Result<usize> {
    let room = if tcti.is_managed() {
        MANAGED_ROOM.saturating_sub(u32::from(origin == Origin::Primary))
    } else {
        // The storage key is among those that are there.
        property(context, PropertyTag::HrTransientAvail)?.unwrap_or_default()
    };
    Ok(usize::try_from(room.min(MOST_ROOM)).unwrap_or_default())
}

/// A session that commands are authorised with, or that satisfies policies. The secrets
/// in them are encrypted by it if it is salted by the storage key: its key is then a secret that
/// only the storage key can open, so nobody between us and the TPM has it.
fn start(context: &mut Context, salt: Option<KeyHandle>, kind: SessionType) -> Result<AuthSession> {
    let session = context.execute_without_session(|context| {
        context.start_auth_session(
            salt,
            None,
            None,
            kind,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
    })?;
    session.ok_or(failure::misfit())
}
