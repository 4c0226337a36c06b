//! Where the company's policies are, and the last set of them that was good.
//!
//! The vendor's are in one directory, the company's own in another; a file there takes the
//! place of the vendor's of the same name, also one that is empty. Where the vendor's
//! directory is not, the policies that mlskeyd was built with are in its place. A set that is
//! in force is kept in the state directory, under a MAC: should the files be bad when the
//! daemon starts again, that one is in force. Where the configuration names signers, the
//! company's count only if one of them has signed their manifest.

mod candidate;
mod known;
pub(crate) mod manifest;
mod store;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use mlskeyd_policies::{DEFAULT, Problem, Set};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::signers::MAX_SIGNATURE;
pub(crate) use known::Known;
use manifest::{MANIFEST, SIGNATURE};
pub(crate) use store::InForce;
pub use store::PolicyStore;

/// Longest file, in bytes; most files of one directory, and most bytes of all of them.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_FILES: usize = 1000;
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The file in the state directory.
pub(crate) const LAST_GOOD: &str = "policies.last";

/// What the MAC's key is derived under.
pub(crate) const LABEL: &str = "mlskeyd v1 last good policies";

/// Where policies are. By default nowhere: then those that are built in are all there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDirs {
    /// The vendor's; what is built in if it is not there.
    pub vendor: PathBuf,
    /// The company's; none if it is not there.
    pub local: PathBuf,
    /// What may be the company's one day: it is asked beside them, and decides nothing.
    pub candidate: Option<PathBuf>,
}

/// Files of policies: their names, and their texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFiles(BTreeMap<String, String>);

/// Why there are no policies.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file or directory cannot be read, or must not be.
    #[error("{} cannot be used: {why}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// They are none that somebody signed who may, or older ones.
    #[error("the signed policies are refused: {}: {why}", path.display())]
    Unsigned {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// What was in force cannot be told, or not be kept, so no signed set can be put in
    /// force: it could be an older one, now or at the next start.
    #[error("no signed policies can be put in force: {} cannot be used: {why}; see to the state directory and the store key. If that file is lost, move it away: then the next signed set is taken, whatever its serial", path.display())]
    Kept {
        /// The file in the state directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Something is wrong with them.
    #[error("the policies are refused:\n{}", list(.0))]
    Refused(Vec<Problem>),
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(|it| format!("  {it}")).collect();
    lines.join("\n")
}

impl PolicyFiles {
    /// Reads both directories, whoever signed them.
    ///
    /// # Errors
    /// [`PolicyError::Io`].
    pub fn read(dirs: &PolicyDirs) -> Result<Self, PolicyError> {
        let local = Self::of_directory(&dirs.local)?.unwrap_or_default();
        Ok(Self::vendors(dirs)?.overridden(local))
    }

    /// The vendor's.
    fn vendors(dirs: &PolicyDirs) -> Result<Self, PolicyError> {
        let files = Self::of_directory(&dirs.vendor)?;
        Ok(files.unwrap_or_else(Self::built_in))
    }

    /// Those that mlskeyd was built with.
    #[must_use]
    pub fn built_in() -> Self {
        let files = DEFAULT.map(|(name, text)| (name.to_owned(), text.to_owned()));
        Self(files.into())
    }

    /// With others in the place of those of the same name.
    #[must_use]
    pub fn overridden(mut self, others: Self) -> Self {
        self.0.extend(others.0);
        self
    }

    /// The files of a directory; `None` if that is not there.
    ///
    /// # Errors
    /// [`PolicyError::Io`].
    pub fn of_directory(path: &Path) -> Result<Option<Self>, PolicyError> {
        let directory = Directory::read(path, false)?;
        Ok(directory.map(|directory| directory.files))
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The set that they are.
    ///
    /// # Errors
    /// [`PolicyError::Refused`].
    pub fn set(&self) -> Result<Set, PolicyError> {
        let files = self.0.iter();
        let files = files.map(|(name, text)| (name.as_str(), text.as_str()));
        Set::new(files).map_err(PolicyError::Refused)
    }
}

/// What a directory has, read once: what is judged is what is put in force.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) files: PolicyFiles,
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) signature: Option<Vec<u8>>,
}

impl Directory {
    /// Reads one; `None` if it is not there.
    pub(crate) fn read(path: &Path, with_manifest: bool) -> Result<Option<Self>, PolicyError> {
        let failed = |why: String| PolicyError::Io {
            path: path.to_owned(),
            why,
        };
        let io = |error: io::Error| failed(error.to_string());
        let entries = match fs::read_dir(path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        check_owner(path, &fs::metadata(path).map_err(io)?)?;
        let mut files = BTreeMap::new();
        let mut bytes: usize = 0;
        for entry in entries {
            let file = entry.map_err(io)?.path();
            let name = file.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| is_policy_file(name)) else {
                continue;
            };
            if files.len() >= MAX_FILES {
                return Err(failed(format!("there are more than {MAX_FILES} files")));
            }
            let text = read_text(&file)?;
            bytes = bytes.saturating_add(text.len());
            if bytes > MAX_BYTES {
                return Err(failed("its files have more than 16 MiB".to_owned()));
            }
            files.insert(name.to_owned(), text);
        }
        let beside = |name: &str, most: u64| {
            let wanted = with_manifest.then(|| read_owned(&path.join(name), most));
            wanted.transpose().map(Option::flatten)
        };
        Ok(Some(Self {
            files: PolicyFiles(files),
            manifest: beside(MANIFEST, MAX_FILE)?,
            signature: beside(SIGNATURE, MAX_SIGNATURE)?,
        }))
    }
}

/// Not what an editor leaves behind.
fn is_policy_file(name: &str) -> bool {
    name.ends_with(".cedar") && !name.starts_with('.')
}

/// Others than root and the daemon's user must not write what decides.
pub(crate) fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), PolicyError> {
    let own = rustix::process::geteuid().as_raw();
    let why = if metadata.uid() != 0 && metadata.uid() != own {
        format!("it belongs to user {}, not to root", metadata.uid())
    } else if metadata.mode() & 0o022 != 0 {
        format!(
            "others may write it: its permissions are {:04o}",
            metadata.mode() & 0o7777
        )
    } else {
        return Ok(());
    };
    Err(PolicyError::Io {
        path: path.to_owned(),
        why,
    })
}

/// Reads a file that nobody else may write; `None` if it is not there.
pub(crate) fn read_owned(path: &Path, most: u64) -> Result<Option<Vec<u8>>, PolicyError> {
    let failed = |why: String| PolicyError::Io {
        path: path.to_owned(),
        why,
    };
    let io = |error: io::Error| failed(error.to_string());
    // Opening a pipe must not wait for its writer.
    let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
    let mut options = fs::OpenOptions::new();
    let file = match options.read(true).custom_flags(nonblocking).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(io)?,
    };
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(failed("it is no file".to_owned()));
    }
    check_owner(path, &metadata)?;
    let mut bytes = Vec::new();
    let mut bounded = file.take(most.saturating_add(1));
    bounded.read_to_end(&mut bytes).map_err(io)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > most {
        return Err(failed(format!("it is longer than {} KiB", most / 1024)));
    }
    Ok(Some(bytes))
}

fn read_text(path: &Path) -> Result<String, PolicyError> {
    let failed = |why: &str| PolicyError::Io {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let bytes = read_owned(path, MAX_FILE)?;
    let bytes = bytes.ok_or_else(|| failed("it is not there any more"))?;
    String::from_utf8(bytes).map_err(|_| failed("it is no text in UTF-8"))
}
