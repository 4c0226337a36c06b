//! Small files that are the daemon's alone: read with distrust, written durably.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use zeroize::Zeroizing;

use crate::failpoint;

/// Who may own a file, and who else may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Ours, and nobody else may read or write it.
    Ours,
    /// As systemd passes credentials: owned by root or by us, others may not
    /// read it, nobody else may write it. (The group bits are the mask of the
    /// access control list that lets a service user read it.)
    Credential,
    /// Known to all: owned by root or by us, nobody else may write it.
    #[cfg(feature = "tpm2")]
    Public,
}

/// Why a file was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrivateFileError {
    #[error("it does not exist")]
    Absent,
    #[error("it is not a regular file")]
    NotAFile,
    #[error("it belongs to user {uid}")]
    ForeignOwner { uid: u32 },
    #[error("its permissions are {:04o}", mode & 0o7777)]
    LoosePermissions { mode: u32 },
    #[error("it is not exactly {expected} bytes long")]
    Length { expected: usize },
    #[cfg(any(feature = "tpm2", feature = "yubikey"))]
    #[error("it is longer than {most} bytes")]
    TooLong { most: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads a file of exactly `N` bytes.
pub(crate) fn read<const N: usize>(
    path: &Path,
    access: Access,
) -> Result<Zeroizing<[u8; N]>, PrivateFileError> {
    let mut file = open_checked(path, access, OpenOptions::new().read(true))?;
    let mut bytes = Zeroizing::new([0; N]);
    match file.read_exact(bytes.as_mut_slice()) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(PrivateFileError::Length { expected: N });
        }
        other => other?,
    }
    if file.read(&mut [0])? != 0 {
        return Err(PrivateFileError::Length { expected: N });
    }
    Ok(bytes)
}

/// Reads a file of at most `most` bytes. On the way its content may be copied to
/// memory that is not wiped, so it has to be encrypted.
#[cfg(any(feature = "tpm2", feature = "yubikey"))]
pub(crate) fn read_up_to(
    path: &Path,
    access: Access,
    most: usize,
) -> Result<Zeroizing<Vec<u8>>, PrivateFileError> {
    let file = open_checked(path, access, OpenOptions::new().read(true))?;
    let mut bytes = Zeroizing::new(Vec::new());
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes)?;
    if bytes.len() > most {
        return Err(PrivateFileError::TooLong { most });
    }
    Ok(bytes)
}

/// Opens a file that exists, never through a symbolic link, and checks on the
/// open file (not on the path, which may change) whose it is.
pub(crate) fn open_checked(
    path: &Path,
    access: Access,
    options: &mut OpenOptions,
) -> Result<File, PrivateFileError> {
    // NONBLOCK, or opening a pipe would wait for its writer.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match options.custom_flags(flags.bits().cast_signed()).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(PrivateFileError::Absent),
        other => other?,
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(PrivateFileError::NotAFile);
    }
    let (uid, mode) = (metadata.uid(), metadata.mode());
    let us = rustix::process::geteuid().as_raw();
    let (owner_fits, forbidden) = match access {
        Access::Ours => (uid == us, 0o077),
        Access::Credential => (uid == us || uid == 0, 0o037),
        #[cfg(feature = "tpm2")]
        Access::Public => (uid == us || uid == 0, 0o022),
    };
    if !owner_fits {
        return Err(PrivateFileError::ForeignOwner { uid });
    }
    if mode & forbidden != 0 {
        return Err(PrivateFileError::LoosePermissions { mode });
    }
    Ok(file)
}

/// Creates a file that must not exist yet, mode 0600, and makes its content
/// durable. Its name is durable after [`sync_directory`].
pub(crate) fn create(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Opens a file that need not exist, mode 0600, whose content says nothing. Its
/// directory is made if it is not there.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    make_directory(path.parent().unwrap_or(Path::new("/")))?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
}

/// Puts a file of this content in the place of the one that may be there, durably:
/// a crash leaves either. Its directory is made if it is not there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    make_directory(directory)?;
    let fresh = path.with_extension("new");
    // Of one that was cut short.
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    create(&fresh, bytes)?;
    failpoint::hit("private-file-written");
    fs::rename(&fresh, path)?;
    failpoint::hit("private-file-named");
    sync_directory(directory)
}

/// Removes a file, durably; one that is not there is a success.
#[cfg(any(feature = "tpm2", feature = "yubikey"))]
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => path.parent().map_or(Ok(()), sync_directory),
    }
}

/// Makes a directory and those above it, durably, as far as they are not there.
fn make_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => sync_directory(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound && parent != path => {
            make_directory(parent)?;
            make_directory(path)
        }
        Err(error) => Err(error),
    }
}

/// Makes creations, renames and removals in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
