//! Where the company's policies are, and the last set of them that was good.
//!
//! The vendor's are in one directory, the company's own in another; a file there takes the
//! place of the vendor's of the same name, also one that is empty. Where the vendor's
//! directory is not, the policies that mlskeyd was built with are in its place. A set that is
//! in force is kept in the state directory, under a MAC: should the files be bad when the
//! daemon starts again, that one is in force.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mlskeyd_policies::{DEFAULT, Problem, Set};
use serde::{Deserialize, Serialize};

use crate::mac_file::MacFile;
use crate::policy_watch::PolicyWatch;
use crate::store_key::Subkey;

/// Longest file, in bytes, and most files, of one directory.
const MAX_FILE: u64 = 1024 * 1024;
const MAX_FILES: usize = 1000;

/// Longest last good set, in bytes.
const MAX_KEPT: usize = 64 * 1024 * 1024;

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
}

/// Files of policies: their names, and their texts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyFiles(BTreeMap<String, String>);

/// Why there are no policies.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// A file or directory cannot be read, or must not be.
    #[error("the policies in {} cannot be used: {why}", path.display())]
    Io {
        /// Which one.
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
    /// Reads both directories.
    ///
    /// # Errors
    /// [`PolicyError::Io`].
    pub fn read(dirs: &PolicyDirs) -> Result<Self, PolicyError> {
        let vendor = match Self::of_directory(&dirs.vendor)? {
            Some(files) => files,
            None => Self::built_in(),
        };
        Ok(vendor.overridden(Self::of_directory(&dirs.local)?.unwrap_or_default()))
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
        for entry in entries {
            let file = entry.map_err(io)?.path();
            let name = file.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| is_policy_file(name)) else {
                continue;
            };
            if files.len() >= MAX_FILES {
                return Err(failed(format!("there are more than {MAX_FILES} files")));
            }
            files.insert(name.to_owned(), read_file(&file)?);
        }
        Ok(Some(Self(files)))
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

/// Not what an editor leaves behind.
fn is_policy_file(name: &str) -> bool {
    name.ends_with(".cedar") && !name.starts_with('.')
}

/// Others than root and the daemon's user must not write what decides.
fn check_owner(path: &Path, metadata: &fs::Metadata) -> Result<(), PolicyError> {
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

fn read_file(path: &Path) -> Result<String, PolicyError> {
    let failed = |why: String| PolicyError::Io {
        path: path.to_owned(),
        why,
    };
    let io = |error: io::Error| failed(error.to_string());
    let file = fs::File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(failed("it is no file".to_owned()));
    }
    check_owner(path, &metadata)?;
    let mut text = String::new();
    let mut bounded = file.take(MAX_FILE.saturating_add(1));
    bounded.read_to_string(&mut text).map_err(io)?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > MAX_FILE {
        return Err(failed("it is longer than 1 MiB".to_owned()));
    }
    Ok(text)
}

/// The policies of the directories, and the last good set.
pub struct PolicyStore {
    dirs: PolicyDirs,
    kept: MacFile,
    /// What was read the last time, good or bad.
    read: Mutex<Option<PolicyFiles>>,
}

impl PolicyStore {
    /// Those of these directories, with the last good set in the state directory, under a
    /// key that is the daemon's own.
    #[must_use]
    pub const fn new(dirs: PolicyDirs, kept: PathBuf, key: Subkey) -> Self {
        Self {
            dirs,
            kept: MacFile::new(kept, key, MAX_KEPT),
            read: Mutex::new(None),
        }
    }

    /// What is in force from the start.
    ///
    /// # Errors
    /// What is wrong with the files, if there is no last good set either.
    pub(crate) fn at_start(&self) -> Result<Set, PolicyError> {
        let error = match self.load() {
            Ok(set) => return Ok(set),
            Err(error) => error,
        };
        let Some(last) = self.last_good() else {
            return Err(error);
        };
        tracing::error!(%error, "the policies of the last start stay in force");
        Ok(last)
    }

    /// What the directories have now; kept as the last good set.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn load(&self) -> Result<Set, PolicyError> {
        let files = PolicyFiles::read(&self.dirs)?;
        self.read().replace(files.clone());
        let set = files.set()?;
        if let Err(error) = self.keep(&files) {
            tracing::error!(%error, "the policies are in force, and could not be kept for a start with bad ones");
        }
        Ok(set)
    }

    /// Are they other ones than were read the last time?
    pub(crate) fn has_changed(&self) -> bool {
        // What cannot be read is told when it is loaded.
        let now = PolicyFiles::read(&self.dirs).ok();
        now.is_none() || *self.read() != now
    }

    /// Is told when they may have changed.
    pub(crate) fn watch(&self) -> notify::Result<PolicyWatch> {
        PolicyWatch::new(vec![self.dirs.vendor.clone(), self.dirs.local.clone()])
    }

    fn read(&self) -> MutexGuard<'_, Option<PolicyFiles>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, files: &PolicyFiles) -> io::Result<()> {
        let files = postcard::to_stdvec(files).map_err(io::Error::other)?;
        if matches!(self.kept.read(), Ok(Some(before)) if before == files) {
            return Ok(());
        }
        self.kept.replace(&files)
    }

    /// The set of the last time, if it is whole.
    fn last_good(&self) -> Option<Set> {
        let kept = self.kept.read().ok()??;
        let files: PolicyFiles = postcard::from_bytes(&kept).ok()?;
        files.set().ok()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::SecretBox;

    use super::*;
    use crate::store_key::{KEY_LEN, StoreKey};

    const PERMIT: &str = "@id(\"all\") @reason(\"x\") permit(principal, action, resource);";

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["vendor", "local", "state"] {
                fs::create_dir(dir.path().join(name)).unwrap();
            }
            Self { dir }
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            path
        }

        fn store(&self, key: u8) -> PolicyStore {
            let dirs = PolicyDirs {
                vendor: self.dir.path().join("vendor"),
                local: self.dir.path().join("local"),
            };
            let key = StoreKey::new(SecretBox::new(Box::new([key; KEY_LEN])));
            let key = key.subkey(LABEL).unwrap();
            PolicyStore::new(dirs, self.dir.path().join("state/policies.last"), key)
        }
    }

    fn ids(set: &Set) -> Vec<&str> {
        set.ids().collect()
    }

    #[test]
    fn a_file_of_the_company_takes_the_place_of_the_vendors() {
        let bench = Bench::new();
        bench.write("vendor/10.cedar", PERMIT);
        bench.write("vendor/20.cedar", &PERMIT.replace("all", "other"));
        bench.write("vendor/30.txt", "no policy");
        bench.write("local/20.cedar", "");
        bench.write("local/40.cedar", &PERMIT.replace("all", "own"));
        bench.write("local/.50.cedar", "of an editor");
        assert_eq!(ids(&bench.store(1).load().unwrap()), ["all", "own"]);
    }

    #[test]
    fn without_the_vendors_directory_there_is_what_is_built_in() {
        let bench = Bench::new();
        fs::remove_dir(bench.dir.path().join("vendor")).unwrap();
        fs::remove_dir(bench.dir.path().join("local")).unwrap();
        let set = bench.store(1).load().unwrap();
        assert!(ids(&set).contains(&"no-rollback"));
    }

    #[test]
    fn what_others_may_write_is_refused() {
        let bench = Bench::new();
        let path = bench.write("vendor/10.cedar", PERMIT);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
        let error = bench.store(1).load().unwrap_err().to_string();
        assert!(error.contains("0664"), "{error}");
    }

    #[test]
    fn with_bad_files_the_last_good_set_is_in_force() {
        let bench = Bench::new();
        bench.write("vendor/10.cedar", PERMIT);
        let store = bench.store(1);
        store.at_start().unwrap();
        bench.write("vendor/10.cedar", "permit(");
        let error = store.load().unwrap_err().to_string();
        assert!(error.contains("10.cedar:1"), "{error}");
        assert_eq!(ids(&store.at_start().unwrap()), ["all"]);
        // Not one that somebody else wrote.
        bench.store(2).at_start().unwrap_err();
        let kept = bench.dir.path().join("state/policies.last");
        let mut bytes = fs::read(&kept).unwrap();
        bytes[20] ^= 1;
        fs::write(&kept, bytes).unwrap();
        store.at_start().unwrap_err();
    }
}
