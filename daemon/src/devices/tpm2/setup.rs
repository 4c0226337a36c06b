//! Finding the TPM as it was set up, and setting one up.

use super::approval::Approvals;
use super::connection::Connection;
use super::files::Pinned;
use super::generations::Generations;
use super::nv::{self, Root};
use super::{Open, Tpm2Device};
use crate::devices::{DeviceError, Start};
use crate::failpoint;

/// Indices, and the root that each of them holds if one was ever written there.
type OwnRoots = Vec<(u32, Option<Root>)>;

/// What a set-up may write over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// Nothing that a key may hang under.
    Nothing,
    /// Whatever is ours: somebody has ordered it.
    All,
}

impl Tpm2Device {
    pub(super) fn opened(&self) -> Result<Open, DeviceError> {
        let is_fresh = self.start == Start::CreateIfAbsent;
        match self.files.pinned()? {
            Some(pinned) => match self.found(&pinned) {
                // No key is on it, so nothing is lost with what is missing.
                Err(error @ DeviceError::Missing { .. }) if is_fresh => {
                    let open = self.set_up(self.present()?, Over::Nothing)?;
                    let device = &self.info.name;
                    tracing::warn!(device, %error, "a TPM device without keys was set up anew");
                    Ok(open)
                }
                found => found,
            },
            None if is_fresh => self.set_up(self.any()?, Over::Nothing),
            None => Err(DeviceError::Missing {
                what: "the directory of the device, or its file `device`,".to_owned(),
            }),
        }
    }

    /// The TPM that is there: as the device's own if it is that. Its storage key is
    /// then the one that it was set up with, whatever other ones it has by now.
    pub(super) fn present(&self) -> Result<Connection, DeviceError> {
        if let Some(pinned) = self.files.pinned()? {
            match Connection::open(&self.config.tcti, Some(&pinned.parent)) {
                Err(DeviceError::Missing { .. }) => {}
                opened => return opened,
            }
        }
        self.any()
    }

    /// The TPM that is there, whichever it is.
    pub(super) fn any(&self) -> Result<Connection, DeviceError> {
        Connection::open(&self.config.tcti, None)
    }

    /// As it was set up.
    fn found(&self, pinned: &Pinned) -> Result<Open, DeviceError> {
        let mut connection = Connection::open(&self.config.tcti, Some(&pinned.parent))?;
        let index = pinned.index;
        let root = if connection.find_index(index, &self.index_auth)? {
            connection.read_root()?
        } else {
            None
        };
        let root = root.ok_or_else(|| DeviceError::Missing {
            what: format!("mlskeyd's NV index {index:#010x}, without which no key can be used,"),
        })?;
        Ok(Open {
            generations: Generations::read(&self.files, root)?,
            approvals: Approvals::read(&self.files),
            connection,
        })
    }

    /// The same, if it has all that its keys need.
    pub(super) fn if_whole(&self, pinned: &Pinned) -> Result<Option<Open>, DeviceError> {
        match self.found(pinned) {
            Ok(open) => Ok(Some(open)),
            Err(DeviceError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// For the first time with this TPM. What a crash leaves in the middle of it is
    /// used, or written over, by the next one. Until the TPM is pinned the files of
    /// another one, which it takes the place of, stay as they are.
    pub(super) fn set_up(
        &self,
        mut connection: Connection,
        over: Over,
    ) -> Result<Open, DeviceError> {
        let own = self.own_roots(&mut connection)?;
        if over == Over::Nothing {
            for (index, root) in &own {
                self.check_unused(*index, root.as_ref())?;
            }
        }
        let counts = own.iter().flat_map(|(_, root)| root).map(Root::count);
        let count = counts.max().unwrap_or_default();
        let index = self.set_up_index(&mut connection, own.into_iter().map(|(index, _)| index))?;
        failpoint::hit("tpm2.index-made");
        let root = Root::after(count.max(self.files.highest_count()?))?;
        let generations = Generations::begin(&self.files, root)?;
        connection.write_root(generations.root())?;
        failpoint::hit("tpm2.root-made");
        self.files.pin(&Pinned {
            parent: connection.parent_name().to_vec(),
            index,
        })?;
        self.files.remove_others(generations.root())?;
        let (device, index) = (&self.info.name, format!("{index:#010x}"));
        tracing::info!(device, index, "the TPM is set up");
        Ok(Open {
            connection,
            generations,
            approvals: Approvals::read(&self.files),
        })
    }

    /// The indices that are ours, wherever they were put, and their roots: an old
    /// root that stays opens an old file.
    fn own_roots(&self, connection: &mut Connection) -> Result<OwnRoots, DeviceError> {
        let before = self.files.pinned()?.map(|pinned| pinned.index);
        let mut places = nv::candidates(self.config.nv_index, &self.index_place);
        places.extend(before.filter(|before| !places.contains(before)));
        let mut own = Vec::new();
        for index in places {
            if connection.find_index(index, &self.index_auth)? {
                own.push((index, connection.read_root()?));
            }
        }
        Ok(own)
    }

    /// A root that keys may hang under is not written over unasked. Its file is in
    /// another directory then; in this one a set-up that died has left it.
    fn check_unused(&self, index: u32, root: Option<&Root>) -> Result<(), DeviceError> {
        let Some(root) = root else {
            return Ok(());
        };
        match self.files.generations(root) {
            Ok(_) => Ok(()),
            Err(error @ DeviceError::Io { .. }) => Err(error),
            Err(_) => Err(DeviceError::Missing {
                what: format!(
                    "the file that the root in the TPM's NV index {index:#010x} belongs to (is the \
                     state directory mounted, and no other daemon's? where it is lost, `mlskeyctl \
                     devices accept {}` writes over that root, and no key under it can be used again)",
                    self.info.name
                ),
            }),
        }
    }

    /// The one index that is ours from now on: one of those that are, or a new one.
    /// The others go, and never one of somebody else's.
    fn set_up_index(
        &self,
        connection: &mut Connection,
        own: impl Iterator<Item = u32>,
    ) -> Result<u32, DeviceError> {
        let candidates = nv::candidates(self.config.nv_index, &self.index_place);
        let (kept, others): (Vec<u32>, Vec<u32>) =
            own.partition(|index| candidates.contains(index));
        for &index in kept.iter().skip(1).chain(&others) {
            if connection.find_index(index, &self.index_auth)? {
                connection.undefine_index()?;
            }
        }
        for &index in kept.first().into_iter().chain(&candidates) {
            if connection.find_index(index, &self.index_auth)?
                || connection.define_index(index, &self.index_auth)?
            {
                return Ok(index);
            }
        }
        Err(DeviceError::Failed {
            reason: format!(
                "the NV index {:#010x} is somebody else's; name a free one in `nv_index`",
                candidates.last().copied().unwrap_or_default()
            ),
        })
    }
}
