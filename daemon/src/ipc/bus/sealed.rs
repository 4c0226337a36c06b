//! What is too large for a bus: in memory that the kernel seals (memfd_create(2)), so that
//! nobody changes it while it is read.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{
    FileType, MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create,
};

/// What has to be sealed: that it is written, and that it has another length.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::GROW)
    .union(SealFlags::SHRINK);

/// Why it is not read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotRead {
    #[error(
        "the descriptor is no sealed memory: make it by memfd_create(2) with MFD_ALLOW_SEALING, and seal it with F_SEAL_WRITE, F_SEAL_GROW and F_SEAL_SHRINK (fcntl(2))"
    )]
    NotSealed,
    #[error("it is longer than {0} bytes")]
    TooLong(usize),
    #[error("it cannot be read: {0}")]
    Io(String),
}

/// A copy of what somebody has sealed, of at most so many bytes. It does not block: what is
/// sealed is in memory.
///
/// # Errors
/// [`NotRead`].
pub(super) fn read(sealed: OwnedFd, most: usize) -> Result<Vec<u8>, NotRead> {
    // Of what is in no memory there are no seals.
    match fcntl_get_seals(&sealed) {
        Ok(seals) if seals.contains(SEALS) => {}
        Ok(_) | Err(_) => return Err(NotRead::NotSealed),
    }
    let stat = fstat(&sealed).map_err(|error| NotRead::Io(error.to_string()))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(NotRead::NotSealed);
    }
    let length = usize::try_from(stat.st_size).ok().filter(|it| *it <= most);
    let mut bytes = vec![0; length.ok_or(NotRead::TooLong(most))?];
    let read = File::from(sealed).read_exact_at(&mut bytes, 0);
    read.map_err(|error| NotRead::Io(error.to_string()))?;
    Ok(bytes)
}

/// Seals bytes.
///
/// # Errors
/// What the system says.
pub(super) fn write(bytes: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = File::from(memfd_create("mlskeyd", flags)?);
    file.write_all(bytes)?;
    fcntl_add_seals(&file, SEALS | SealFlags::SEAL)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(bytes: &[u8], seals: SealFlags) -> OwnedFd {
        let mut file = File::from(memfd_create("test", MemfdFlags::ALLOW_SEALING).unwrap());
        file.write_all(bytes).unwrap();
        fcntl_add_seals(&file, seals).unwrap();
        file.into()
    }

    #[test]
    fn what_is_sealed_is_read_whole() {
        assert_eq!(read(memory(b"hello", SEALS), 5), Ok(b"hello".to_vec()));
        assert_eq!(read(write(b"hello").unwrap(), 5), Ok(b"hello".to_vec()));
        assert_eq!(read(memory(b"", SEALS), 0), Ok(Vec::new()));
        assert_eq!(read(memory(b"hello", SEALS), 4), Err(NotRead::TooLong(4)));
    }

    #[test]
    fn what_can_still_be_changed_is_not_read() {
        for missing in [
            SealFlags::empty(),
            SEALS - SealFlags::WRITE,
            SEALS - SealFlags::GROW,
            SEALS - SealFlags::SHRINK,
            // Whoever has it mapped already writes on.
            (SEALS - SealFlags::WRITE) | SealFlags::FUTURE_WRITE,
        ] {
            assert_eq!(read(memory(b"hello", missing), 9), Err(NotRead::NotSealed));
        }
        let file = tempfile::tempfile().unwrap();
        assert_eq!(read(file.into(), 9), Err(NotRead::NotSealed));
        let (pipe, _writer) = io::pipe().unwrap();
        assert_eq!(read(pipe.into(), 9), Err(NotRead::NotSealed));
    }
}
