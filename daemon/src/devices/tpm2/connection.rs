//! The connection to a TPM, with all that is prepared there for its use: the
//! storage key, one session that commands are authorised and encrypted with, and
//! the keys that were used last. When it is dropped the TPM holds none of that
//! any more.

use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;

use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::{CapabilityType, EccCurveIdentifier, PropertyTag, SessionType};
use tss_esapi::handles::{
    KeyHandle, NvIndexHandle, NvIndexTpmHandle, ObjectHandle, SessionHandle, TpmHandle,
};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    Auth, CapabilityData, MaxNvBuffer, SymmetricDefinition, TaggedProperty,
};
use tss_esapi::tcti_ldr::TctiNameConf;
use tss_esapi::{Context, Error, Result, WrapperErrorKind};

use super::failure::{self, Verdict};
use super::keys::{Curve, Guard, WrongTries};
use super::loaded::Loaded;
use super::nv::{self, Root};
use super::parent::{self, Origin, Parent};
use super::pins::Lockout;
use crate::config::Tcti;
use crate::devices::{DeviceError, Fact};
use crate::store_key::Subkey;

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
    index: Option<NvIndexHandle>,
    condition: Condition,
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
            let session = start_session(&mut context, parent.handle).map_err(failure::describe)?;
            let room = room(&mut context, tcti, origin).map_err(failure::describe)?;
            let has_p384 = has_curve(&mut context, Curve::P384).map_err(failure::describe)?;
            let mut connection = Self {
                context,
                has_p384,
                session,
                policy_session: None,
                parent,
                loaded: Loaded::new(room),
                index: None,
                condition: Condition::Sound,
            };
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
        if let Some(surplus) = self.loaded.surplus() {
            self.flush(surplus);
        }
        loop {
            let done = self.run(secrecy, &command);
            match done {
                Err(error) if failure::verdict(error) == Verdict::NoRoom => {
                    let Some(oldest) = self.loaded.oldest() else {
                        return Err(error);
                    };
                    self.flush(oldest);
                }
                done => return done,
            }
        }
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

    /// The index of the root at this place, if it is one of ours.
    pub(super) fn find_index(
        &mut self,
        address: u32,
        auth: &Subkey,
    ) -> std::result::Result<bool, DeviceError> {
        let ours = [nv::public(address, false)?, nv::public(address, true)?];
        let found = (|| {
            let handle = TpmHandle::NvIndex(NvIndexTpmHandle::new(address)?);
            if !is_there(&mut self.context, handle)? {
                return Ok(None);
            }
            self.context.execute_without_session(|context| {
                let handle = context.tr_from_tpm_public(handle)?;
                let (public, _) = context.nv_read_public(handle.into())?;
                // Of another one a wrong value might be counted.
                if !ours.contains(&public) {
                    return Ok(None);
                }
                context.tr_set_auth(handle, Auth::try_from(auth.expose().as_slice())?)?;
                Ok(Some(handle))
            })
        })();
        let Some(handle) = self.noted(found).map_err(|error| self.describe(error))? else {
            return Ok(false);
        };
        self.index = Some(handle.into());
        match self.read_index() {
            Err(error) if failure::verdict(error) == Verdict::WrongAuth => {
                self.index = None;
                Ok(false)
            }
            Err(error) if failure::verdict(error) != Verdict::NeverWritten => {
                Err(self.describe(error))
            }
            _ => Ok(true),
        }
    }

    /// Makes the index of the root at this place. `false`: somebody has one there.
    pub(super) fn define_index(
        &mut self,
        address: u32,
        auth: &Subkey,
    ) -> std::result::Result<bool, DeviceError> {
        let public = nv::public(address, false)?;
        let made = self.run(Secrecy::Request, |context| {
            let auth = Auth::try_from(auth.expose().as_slice())?;
            context.nv_define_space(Provision::Owner, Some(auth), public)
        });
        let handle = match made {
            Ok(handle) => handle,
            Err(error) => {
                return match failure::verdict(error) {
                    Verdict::Taken => Ok(false),
                    Verdict::WrongAuth => Err(parent::owner_password()),
                    _ => Err(self.describe(error)),
                };
            }
        };
        let set = Auth::try_from(auth.expose().as_slice())
            .and_then(|auth| self.context.tr_set_auth(handle.into(), auth));
        set.map_err(|error| self.describe(error))?;
        self.index = Some(handle);
        Ok(true)
    }

    /// Takes the index that was found out of the TPM, and what is in it.
    pub(super) fn undefine_index(&mut self) -> std::result::Result<(), DeviceError> {
        let index = self.index_handle().map_err(failure::describe)?;
        self.index = None;
        let gone = self.run(Secrecy::Nothing, |context| {
            context.nv_undefine_space(Provision::Owner, index)
        });
        gone.map_err(|error| match failure::verdict(error) {
            Verdict::WrongAuth => parent::owner_password(),
            _ => self.describe(error),
        })
    }

    /// The root, if one was ever written.
    pub(super) fn read_root(&mut self) -> std::result::Result<Option<Root>, DeviceError> {
        let bytes = match self.read_index() {
            Err(error) if failure::verdict(error) == Verdict::NeverWritten => return Ok(None),
            read => read.map_err(|error| self.describe(error))?,
        };
        let root = Root::from_bytes(bytes.value());
        root.map(Some).ok_or_else(|| DeviceError::Failed {
            reason: "the TPM gave a root that is none".to_owned(),
        })
    }

    /// Is it still this root that is in the TPM? If not, or if it cannot be read,
    /// the connection is of no use any more: what is known of its keys is not true.
    pub(super) fn check_root(&mut self, expected: &Root) -> std::result::Result<(), DeviceError> {
        let checked = match self.read_root() {
            Ok(Some(root)) if root == *expected => return Ok(()),
            Ok(_) => Err(DeviceError::Lost {
                reason: "the root in the TPM is not the one that was there".to_owned(),
            }),
            Err(error) => Err(error),
        };
        if self.condition == Condition::Sound {
            self.condition = Condition::Stale;
        }
        checked
    }

    /// Puts a root in the place of the one that is there, which is gone then. After
    /// any error the one that is there has to be read again.
    pub(super) fn write_root(&mut self, root: &Root) -> std::result::Result<(), DeviceError> {
        let index = self.index_handle().map_err(failure::describe)?;
        let written = self.run(Secrecy::Request, |context| {
            let bytes = MaxNvBuffer::try_from(root.to_bytes().as_slice())?;
            context.nv_write(NvAuth::NvIndex(index), index, bytes, 0)
        });
        written.map_err(|error| {
            if self.condition == Condition::Sound {
                self.condition = Condition::Unsure;
            }
            self.describe(error)
        })
    }

    fn read_index(&mut self) -> Result<MaxNvBuffer> {
        let index = self.index_handle()?;
        self.run(Secrecy::Answer, |context| {
            context.nv_read(NvAuth::NvIndex(index), index, nv::LEN, 0)
        })
    }

    fn index_handle(&self) -> Result<NvIndexHandle> {
        self.index
            .ok_or(Error::WrapperError(WrapperErrorKind::InvalidHandleState))
    }

    /// Who made the TPM, and its firmware: as the TPM says.
    pub(super) fn facts(&mut self) -> Vec<Fact> {
        let mut value = |tag| property(&mut self.context, tag).ok().flatten();
        let manufacturer = value(PropertyTag::Manufacturer).unwrap_or_default();
        let manufacturer = manufacturer.to_be_bytes().map(char::from);
        let firmware = [PropertyTag::FirmwareVersion1, PropertyTag::FirmwareVersion2];
        let [high, low] = firmware.map(|tag| value(tag).unwrap_or_default());
        let facts = [
            ("serial", self.serial()),
            (
                "manufacturer",
                manufacturer
                    .iter()
                    .filter(|c| c.is_ascii_graphic())
                    .collect(),
            ),
            ("firmware", format!("{high:08x}.{low:08x}")),
        ];
        let facts = facts.map(|(name, value)| Fact {
            name: name.to_owned(),
            value,
        });
        let told = facts.into_iter().filter(|fact| !fact.value.is_empty());
        let lockout = self.lockout().ok().and_then(Lockout::fact);
        told.chain(lockout).collect()
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

/// Handles of one kind, from this one on.
fn handles(context: &mut Context, first: u32, count: u32) -> Result<Vec<TpmHandle>> {
    let (found, _) = context.execute_without_session(|context| {
        context.get_capability(CapabilityType::Handles, first, count)
    })?;
    match found {
        CapabilityData::Handles(handles) => Ok(handles.into_inner()),
        _ => Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)),
    }
}

/// Does the TPM know this handle?
pub(super) fn is_there(context: &mut Context, handle: TpmHandle) -> Result<bool> {
    let found = handles(context, handle.into(), 1)?;
    Ok(found.contains(&handle))
}

/// A property as it is now; the crate's own way remembers what was.
pub(super) fn property(context: &mut Context, tag: PropertyTag) -> Result<Option<u32>> {
    let (found, _) = context.execute_without_session(|context| {
        context.get_capability(CapabilityType::TpmProperties, tag.into(), 1)
    })?;
    match found {
        CapabilityData::TpmProperties(list) => Ok(list.find(tag).map(TaggedProperty::value)),
        _ => Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)),
    }
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

/// Is the curve among those that the TPM lists?
fn has_curve(context: &mut Context, curve: Curve) -> Result<bool> {
    let curve = EccCurveIdentifier::from(curve.id());
    // The first one from this on: another one if the TPM does not have it.
    let found = context.execute_without_session(|context| {
        context.get_capability(CapabilityType::EccCurves, u16::from(curve).into(), 1)
    });
    match found {
        Ok((CapabilityData::EccCurves(curves), _)) => Ok(curves.contains(&curve)),
        // One that the crate does not know.
        Ok(_) | Err(Error::WrapperError(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A session that commands are authorised with, and their secrets encrypted. Its
/// key is a secret that only the storage key can open: so nobody between us and
/// the TPM has it.
fn start_session(context: &mut Context, parent: KeyHandle) -> Result<AuthSession> {
    let session = context.execute_without_session(|context| {
        context.start_auth_session(
            Some(parent),
            None,
            None,
            SessionType::Hmac,
            SymmetricDefinition::AES_128_CFB,
            HashingAlgorithm::Sha256,
        )
    })?;
    session.ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))
}
