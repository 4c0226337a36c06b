//! The daemon's socket in the file system.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why the socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another daemon answers there.
    #[error(
        "another mlskeyd answers at {0}; stop it first, or configure another socket for this one"
    )]
    InUse(PathBuf),
    /// Something else lies there.
    #[error("{0} is there and is no socket; move it away, or configure another socket")]
    NotASocket(PathBuf),
    /// The file system said no.
    #[error("cannot listen at {path}: {source}; check the directory's owner and permissions")]
    Io {
        /// The socket's path.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A socket that is listened on; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
    /// Device and inode of the file that is ours.
    file: (u64, u64),
}

impl Socket {
    /// Listens at `path`. Makes its directory if it is missing, and replaces
    /// the socket of a dead daemon. Anybody may connect: who it is, is asked of
    /// the kernel. To be called in a tokio runtime.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let io = |source| SocketError::Io {
            path: path.to_owned(),
            source,
        };
        if let Some(dir) = path.parent() {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(dir)
                .map_err(io)?;
        }
        remove_if_dead(path)?;
        let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
            // Another daemon was faster.
            ErrorKind::AddrInUse => SocketError::InUse(path.to_owned()),
            _ => io(error),
        })?;
        let meta = std::fs::symlink_metadata(path).map_err(io)?;
        let socket = Self {
            listener,
            path: path.to_owned(),
            file: (meta.dev(), meta.ino()),
        };
        std::fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(io)?;
        Ok(socket)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not the socket of a daemon that has taken the path over.
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes the socket of a dead daemon, where nobody answers any more.
fn remove_if_dead(path: &Path) -> Result<(), SocketError> {
    let io = |source| SocketError::Io {
        path: path.to_owned(),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(io)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(error)),
        Ok(_) => Err(SocketError::InUse(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/socket");
        let first = Socket::bind(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o666);
        assert_eq!(
            path.parent().unwrap().metadata().unwrap().mode() & 0o777,
            0o755
        );
        assert!(matches!(Socket::bind(&path), Err(SocketError::InUse(_))));
        drop(first);
        assert!(!path.exists());

        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let second = Socket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let third = Socket::bind(&path).unwrap();
        drop(second);
        assert!(path.exists(), "the third one's");
        drop(third);

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(
            Socket::bind(&path),
            Err(SocketError::NotASocket(_))
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
