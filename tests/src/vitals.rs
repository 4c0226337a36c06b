//! What a process takes from the system.

use rustix::process::Pid;

/// What a process holds at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// Open file descriptors.
    pub descriptors: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory, in bytes.
    pub memory: u64,
}

impl Vitals {
    /// Those of a process that runs.
    pub fn of(pid: Pid) -> Self {
        let count = |what: &str| {
            let path = format!("/proc/{}/{what}", pid.as_raw_nonzero());
            std::fs::read_dir(path).expect("the process runs").count()
        };
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            memory: memory(pid, "VmRSS"),
        }
    }
}

/// A field of the process's status that is an amount of memory, in bytes.
pub fn memory(pid: Pid, field: &str) -> u64 {
    let path = format!("/proc/{}/status", pid.as_raw_nonzero());
    let status = std::fs::read_to_string(path).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let amount = line.expect("the kernel tells it").trim_start_matches(':');
    let kilobytes: u64 = amount
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .expect("a number");
    kilobytes * 1024
}
