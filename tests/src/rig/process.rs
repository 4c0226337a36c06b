//! A child process that is spoken to in lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// A child process. It is killed when the value is dropped; what it wrote to
/// standard error is then shown if the test is failing.
///
/// Reading waits without limit: a test that hangs is ended by the test runner,
/// which knows how slow the machine is.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    log: PathBuf,
    ended: bool,
}

impl Process {
    /// Starts a command; its standard error is appended to the file `log`.
    pub fn start(name: &str, mut command: Command, log: &Path) -> Self {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .expect("the log opens");
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("{name} does not start: {e}"));
        Self {
            name: name.to_owned(),
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().expect("stdout is a pipe")),
            child,
            log: log.to_owned(),
            ended: false,
        }
    }

    /// The process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// What the process is called in the test.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The next line of output; `None` if it ended.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end().to_owned()),
        }
    }

    /// The next byte of output.
    ///
    /// # Panics
    /// If it ended.
    pub fn byte(&mut self) -> u8 {
        let mut byte = [0];
        std::io::Read::read_exact(&mut self.output, &mut byte).expect("it goes on");
        byte[0]
    }

    /// Waits until there is something to read from this process (`true`), or
    /// the other one has ended (`false`).
    pub fn speaks_before_end_of(&self, other: &Self) -> bool {
        if !self.output.buffer().is_empty() {
            return true;
        }
        let end = pidfd_open(other.pid(), PidfdFlags::empty()).expect("a child has a pidfd");
        let mut fds = [
            PollFd::new(self.output.get_ref(), PollFlags::IN),
            PollFd::new(&end, PollFlags::IN),
        ];
        poll(&mut fds, None).expect("pipes and pidfds can be polled");
        !fds[0].revents().is_empty()
    }

    /// Waits for this very line.
    pub fn expect_line(&mut self, expected: &str) {
        let line = self.line();
        assert_eq!(line.as_deref(), Some(expected), "from {}", self.name);
    }

    /// Writes bytes to the process; `false` if it takes no more.
    pub fn write(&mut self, bytes: &[u8]) -> bool {
        self.input
            .as_mut()
            .is_some_and(|input| input.write_all(bytes).and_then(|()| input.flush()).is_ok())
    }

    /// Ends the process's input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Has it not ended yet?
    pub fn runs(&self) -> bool {
        let end = pidfd_open(self.pid(), PidfdFlags::empty()).expect("a child has a pidfd");
        let mut fds = [PollFd::new(&end, PollFlags::IN)];
        let now = Timespec::default();
        poll(&mut fds, Some(&now)).expect("pidfds can be polled");
        fds[0].revents().is_empty()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("the process runs");
    }

    /// Sends SIGTERM and waits.
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Sends SIGKILL and waits.
    pub fn kill(&mut self) {
        // Fails only if it is dead already.
        let _ = self.child.kill();
        self.wait();
    }

    /// Waits for the end of the process, whose output nobody reads any more.
    pub fn wait(&mut self) -> ExitStatus {
        self.input = None;
        while self.line().is_some() {}
        let status = self.child.wait().expect("a child can be waited for");
        self.ended = true;
        status
    }

    /// All that it wrote to standard error, with what its predecessors wrote to
    /// the same log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            self.kill();
        }
        if std::thread::panicking() {
            eprintln!("--- log of {}:\n{}", self.name, self.log());
        }
    }
}

/// Runs a command that reads this from its standard input.
///
/// # Panics
/// If it does not start, or does not read.
pub fn with_input(mut command: Command, input: &str) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let child = piped.stderr(Stdio::piped()).spawn();
    let mut child = child.expect("the command starts");
    let mut stdin = child.stdin.take().expect("it was asked for");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}
