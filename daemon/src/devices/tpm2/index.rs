//! The index in the TPM's permanent memory that holds the root: found, made, read and
//! written.

use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::structures::{Auth, MaxNvBuffer};
use tss_esapi::{Error, Result, WrapperErrorKind};

use super::capabilities::is_there;
use super::connection::{Condition, Connection, Secrecy};
use super::failure::{self, Verdict};
use super::nv::{self, Root};
use super::parent;
use crate::devices::DeviceError;
use crate::store_key::Subkey;

impl Connection {
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
}
