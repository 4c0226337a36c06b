//! What the process gives up before it holds a secret.

use std::io;

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// No core dumps, and no other process of the same user reads this one's memory
/// (`PR_SET_DUMPABLE`, proc(5)). It concerns the whole process, so it is for the
/// daemon's own.
///
/// # Errors
/// What the system says.
pub fn harden() -> io::Result<()> {
    setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Keeps the whole process out of the swap: unsealed keys, PINs, and whatever
/// libraries make of them. `false`: the system does not let it lock memory without
/// limit (RLIMIT_MEMLOCK). Within a limit it is not even tried, for any allocation
/// beyond would fail; and CAP_IPC_LOCK, which has none, may be given up later.
///
/// # Errors
/// What the system says.
pub fn lock_memory() -> io::Result<bool> {
    let without_limit = Rlimit {
        current: None,
        maximum: None,
    };
    match setrlimit(Resource::Memlock, without_limit) {
        Err(Errno::PERM) => return Ok(false),
        result => result?,
    }
    // As memory is used, not as it is reserved.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?;
    Ok(true)
}

/// As many open files as the system lets this process have: each connection is
/// one, and the usual soft limit of 1024 is for programs that call `select`.
///
/// # Errors
/// What the system says.
pub fn raise_file_limit() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    )?)
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn nothing_dumps_the_process() {
        harden().unwrap();
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
    }

    /// In a process of its own, as nextest and the daemon have it.
    #[test]
    fn memory_is_locked_if_it_may_be() {
        let locked = lock_memory().unwrap();
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let amount = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let amount = amount.unwrap().trim();
        assert_eq!(locked, amount != "0 kB", "{amount}");
    }

    #[test]
    fn all_files_that_the_system_allows_may_be_open() {
        raise_file_limit().unwrap();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
