//! All memory of a running process, and all files below its directories.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

/// Pages of the kernel, which show the time and hold nothing of the process.
const KERNEL: [&str; 3] = ["[vvar]", "[vvar_vclock]", "[vsyscall]"];

/// One memory region or one file.
#[derive(Debug)]
pub struct Part {
    /// The region's name in `/proc/PID/maps` and its address, or the file.
    pub name: String,
    /// Is it memory, and may the process write to it?
    pub kind: Kind,
    /// All of it.
    pub bytes: Vec<u8>,
}

/// What a [`Part`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Memory that the process may write to.
    WritableMemory,
    /// Memory that it may only read or run.
    ReadOnlyMemory,
    /// A file.
    File,
}

/// All memory of a running process, and all files below its directories, at one
/// moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The regions and files.
    pub parts: Vec<Part>,
}

impl Snapshot {
    /// Stops a child of this process, reads its memory, its open files (also
    /// those without a name) and the files below `directory` (a database's
    /// journal too), and lets it go on.
    ///
    /// # Errors
    /// What the system says; nothing is left out silently.
    pub fn of_child(child: Pid, directory: Option<&Path>) -> io::Result<Self> {
        let stopped = Stopped::stop(child)?;
        let mut snapshot = Self::default();
        snapshot.read_memory(child)?;
        snapshot.read_open_files(child)?;
        if let Some(directory) = directory {
            snapshot.read_files(directory)?;
        }
        drop(stopped);
        Ok(snapshot)
    }

    /// All files below a directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn of_files(directory: &Path) -> io::Result<Self> {
        let mut snapshot = Self::default();
        snapshot.read_files(directory)?;
        Ok(snapshot)
    }

    /// How many bytes of this kind there are.
    pub fn size(&self, kind: Kind) -> usize {
        let parts = self.parts.iter().filter(|part| part.kind == kind);
        parts.map(|part| part.bytes.len()).sum()
    }

    fn read_memory(&mut self, process: Pid) -> io::Result<()> {
        let process = PathBuf::from(format!("/proc/{}", process.as_raw_nonzero()));
        let memory = File::open(process.join("mem"))?;
        let maps = fs::read_to_string(process.join("maps"))?;
        let regions = maps.lines().map(|line| {
            Region::parse(line)
                .ok_or_else(|| io::Error::other(format!("a line of maps is strange: {line}")))
        });
        for region in regions {
            let region = region?;
            if !region.readable || KERNEL.contains(&region.name) {
                continue;
            }
            let name = format!("{:x} {}", region.start, region.name);
            let mut bytes = vec![0; region.length];
            memory
                .read_exact_at(&mut bytes, region.start)
                .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?;
            let kind = if region.writable {
                Kind::WritableMemory
            } else {
                Kind::ReadOnlyMemory
            };
            self.parts.push(Part { name, kind, bytes });
        }
        Ok(())
    }

    fn read_open_files(&mut self, process: Pid) -> io::Result<()> {
        let directory = format!("/proc/{}/fd", process.as_raw_nonzero());
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            // What is no file (a socket, a pipe) keeps nothing.
            if fs::metadata(&path)?.is_file() {
                self.parts.push(Part {
                    name: format!("{} {}", path.display(), fs::read_link(&path)?.display()),
                    kind: Kind::File,
                    bytes: fs::read(&path)?,
                });
            }
        }
        Ok(())
    }

    fn read_files(&mut self, directory: &Path) -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let kind = path.symlink_metadata()?.file_type();
            if kind.is_dir() {
                self.read_files(&path)?;
            } else if kind.is_file() {
                self.parts.push(Part {
                    name: path.display().to_string(),
                    kind: Kind::File,
                    bytes: fs::read(&path)?,
                });
            }
        }
        Ok(())
    }
}

/// A line of `/proc/PID/maps`.
struct Region<'a> {
    start: u64,
    length: usize,
    readable: bool,
    writable: bool,
    name: &'a str,
}

impl<'a> Region<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let permissions = rest.as_bytes();
        Some(Self {
            start,
            length: usize::try_from(end.checked_sub(start)?).ok()?,
            readable: permissions.first() == Some(&b'r'),
            writable: permissions.get(1) == Some(&b'w'),
            // permissions, offset, device, inode, then spaces and the name
            name: rest.splitn(5, ' ').nth(4).unwrap_or_default().trim(),
        })
    }
}

/// A child of this process that stands still until this is dropped.
#[derive(Debug)]
pub struct Stopped(Pid);

impl Stopped {
    /// Stops a child, and waits until it stands.
    ///
    /// # Errors
    /// If it ended.
    pub fn stop(child: Pid) -> io::Result<Self> {
        kill_process(child, Signal::STOP)?;
        let stopped = Self(child);
        // A process that ended instead stays waitable for its owner.
        let options = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(child), options)? {
            Some(status) if status.stopped() => Ok(stopped),
            _ => Err(io::Error::other("the process ended")),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // Fails only if the process was killed meanwhile.
        let _ = kill_process(self.0, Signal::CONT);
    }
}
