//! The daemon's process, as /proc shows it to whoever asks.

use std::fs::File;
use std::io::Read;

/// The capability to look at other users' processes (linux/capability.h).
const CAP_SYS_PTRACE: u32 = 19;

/// Longest file of /proc that is read.
const MAX_FILE: u64 = 256 * 1024;

/// What /proc/PID/status and /proc/PID/limits say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// Its effective user.
    pub(super) uid: u32,
    /// Its groups, the effective one first.
    pub(super) groups: Vec<u32>,
    /// May it look at other users' processes?
    pub(super) may_look: bool,
    /// May it dump its memory? `None`: that is not seen.
    pub(super) dumps_core: Option<bool>,
}

impl Process {
    pub(super) fn of(pid: u32) -> Option<Self> {
        let limits = read(&format!("/proc/{pid}/limits"));
        Self::parse(&read(&format!("/proc/{pid}/status"))?, limits.as_deref())
    }

    fn parse(status: &str, limits: Option<&str>) -> Option<Self> {
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        };
        let numbers = |text: &str| -> Vec<u32> {
            let numbers = text.split_whitespace();
            numbers.filter_map(|number| number.parse().ok()).collect()
        };
        // Real, effective, saved, of the file system.
        let uid = *numbers(field("Uid")?).get(1)?;
        let mut groups: Vec<u32> = numbers(field("Gid")?).get(1).copied().into_iter().collect();
        groups.extend(numbers(field("Groups").unwrap_or_default()));
        let capabilities = u64::from_str_radix(field("CapEff")?.trim(), 16).ok()?;
        let core = limits.and_then(|limits| {
            let mut lines = limits.lines();
            let soft = lines.find_map(|line| line.strip_prefix("Max core file size"))?;
            soft.split_whitespace().next()
        });
        Some(Self {
            uid,
            groups,
            may_look: capabilities & (1 << CAP_SYS_PTRACE) != 0,
            dumps_core: core.map(|soft| soft != "0"),
        })
    }

    /// May it read and write a file of this owner, group and mode?
    pub(super) fn may_use(&self, uid: u32, gid: u32, mode: u32) -> bool {
        let bits = if self.uid == 0 {
            return true;
        } else if self.uid == uid {
            mode >> 6
        } else if self.groups.contains(&gid) {
            mode >> 3
        } else {
            mode
        };
        bits & 0o6 == 0o6
    }
}

/// A file of /proc or /sys; `None`: it is not there, or not for us.
pub(super) fn read(path: &str) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(MAX_FILE).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_proc_says_is_read() {
        let status = "Name:\tmlskeyd\nUid:\t1\t990\t990\t990\nGid:\t1\t980\t980\t980\nGroups:\t59 980 \nCapEff:\t0000000000080000\n";
        let limits = "Limit  Soft Limit\nMax core file size        0   0   bytes\n";
        let process = Process::parse(status, Some(limits)).unwrap();
        assert_eq!((process.uid, process.may_look), (990, true));
        assert_eq!(process.groups, [980, 59, 980]);
        assert_eq!(process.dumps_core, Some(false));
        assert!(process.may_use(0, 59, 0o660));
        assert!(!process.may_use(0, 58, 0o660));
        assert!(!process.may_use(990, 59, 0o060));
        let other = status.replace("80000", "40000");
        let limits = limits.replace("  0  ", " unlimited ");
        let process = Process::parse(&other, Some(&limits)).unwrap();
        assert!(!process.may_look);
        assert_eq!(process.dumps_core, Some(true));
        assert_eq!(Process::parse("", None), None);
    }

    #[test]
    fn this_process_is_seen() {
        let process = Process::of(std::process::id()).unwrap();
        assert_eq!(process.uid, rustix::process::geteuid().as_raw());
    }
}
