//! Programs that talk in lines, in a private directory, of which nothing is left afterwards.

use std::fs::{DirBuilder, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a program may be silent before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// What of a log is shown when something failed.
const TAIL_LINES: usize = 25;

/// The shell script that outlives us if we are interrupted or killed: it then ends every
/// program of the stage and removes the directory.
///
/// All programs of the stage are in its process group, so it needs no process ids that might
/// by then belong to others. While it lives, the group's id is not given to anybody else.
const CARETAKER: &str = r#"
trap '' HUP INT TERM
read -r word && exit 0
kill -TERM 0
sleep 1
rm -rf -- "$1"
kill -KILL 0
"#;

/// A private directory and the programs that are started in it.
///
/// The programs end with their [`Program`] values, the directory with this one. If this
/// process ends in any other way (Ctrl-C, SIGKILL), a caretaker does both.
pub(crate) struct Stage {
    directory: PathBuf,
    caretaker: Child,
    caretaker_input: Option<ChildStdin>,
}

impl Stage {
    /// Makes a directory that only this user can enter, below the system's temporary directory.
    pub(crate) fn open(name: &str) -> Result<Self, String> {
        let nanoseconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        let directory =
            std::env::temp_dir().join(format!("{name}-{}-{nanoseconds:09}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(|error| format!("cannot make {}: {error}", directory.display()))?;
        let caretaker = Command::new("sh")
            .args(["-c", CARETAKER, "caretaker"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .process_group(0)
            .spawn();
        let mut caretaker = caretaker.map_err(|error| format!("cannot start sh: {error}"))?;
        let caretaker_input = caretaker.stdin.take();
        Ok(Self {
            directory,
            caretaker,
            caretaker_input,
        })
    }

    /// A path inside the stage's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts a program. Its standard error is appended to the log `NAME.log`.
    pub(crate) fn start(&self, name: &str, mut command: Command) -> Result<Program, String> {
        let failed = |error: std::io::Error| format!("cannot start {name}: {error}");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.path(&format!("{name}.log")))
            .map_err(failed)?;
        let group = i32::try_from(self.caretaker.id())
            .map_err(|error| format!("cannot start {name}: {error}"))?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .process_group(group)
            .spawn()
            .map_err(failed)?;
        let (sender, lines) = channel();
        if let Some(output) = child.stdout.take() {
            // Ends with the program's output; whoever waits then sees the channel closed.
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Program {
            name: name.to_owned(),
            input: child.stdin.take(),
            child,
            lines,
        })
    }

    /// The ends of all logs.
    pub(crate) fn logs(&self) -> String {
        let entries = std::fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        paths.sort();
        paths.iter().map(|path| tail(path)).collect()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Nothing can be done about an error here, and the caretaker may still succeed.
        if std::fs::remove_dir_all(&self.directory).is_ok()
            && let Some(input) = &mut self.caretaker_input
        {
            let _ = input.write_all(b"done\n");
        }
        self.caretaker_input = None;
        let _ = self.caretaker.wait();
    }
}

fn tail(path: &Path) -> String {
    let text = std::fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
    lines.reverse();
    let name = path.file_name().unwrap_or_default().display().to_string();
    lines
        .iter()
        .map(|line| format!("{name}: {line}\n"))
        .collect()
}

/// A running program that is spoken to in lines. It is killed when the value is dropped.
pub(crate) struct Program {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

/// What a program answered to one line: the lines before the last, and what followed the `ok`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) events: Vec<String>,
    pub(crate) text: String,
}

impl Program {
    /// Waits for one line of output.
    pub(crate) fn line(&mut self) -> Result<String, String> {
        match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => Err(format!(
                "{} is silent for {} s",
                self.name,
                PATIENCE.as_secs()
            )),
            Err(RecvTimeoutError::Disconnected) => Err(format!("{} ended unexpectedly", self.name)),
        }
    }

    /// Has it not ended yet?
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends one line, and has the next one.
    pub(crate) fn tell(&mut self, line: &str) -> Result<String, String> {
        self.send(line)?;
        self.line()
    }

    fn send(&mut self, line: &str) -> Result<(), String> {
        let sent = self
            .input
            .as_mut()
            .map(|input| writeln!(input, "{line}").and_then(|()| input.flush()));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(format!(
                "{} does not listen any more (to '{line}')",
                self.name
            )),
        }
    }

    /// Sends one line, and collects the answer: any events, then a line `ok ...`.
    /// A line `error ...` is an error.
    pub(crate) fn ask(&mut self, request: &str) -> Result<Answer, String> {
        self.send(request)?;
        let mut events = Vec::new();
        loop {
            let line = self
                .line()
                .map_err(|error| format!("{error} (at '{request}')"))?;
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("ok", text) => {
                    return Ok(Answer {
                        events,
                        text: text.to_owned(),
                    });
                }
                ("error", text) => {
                    return Err(format!("{} answered to '{request}': {text}", self.name));
                }
                _ => events.push(line),
            }
        }
    }

    /// Ends the program as a service manager does, and waits for it. Exit code 0 is expected.
    pub(crate) fn terminate(mut self) -> Result<(), String> {
        let id = self.child.id().to_string();
        // The standard library sends SIGKILL only.
        let sent = Command::new("sh")
            .args(["-c", r#"kill -TERM "$1""#, "kill", &id])
            .status();
        if !sent.is_ok_and(|status| status.success()) {
            return Err(format!("cannot send SIGTERM to {}", self.name));
        }
        let ending = self.ending()?;
        if ending.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {ending} after SIGTERM", self.name))
        }
    }

    /// Tells the program to end by its own command, and waits for it. Exit code 0 is expected.
    pub(crate) fn quit(mut self, request: &str) -> Result<(), String> {
        self.ask(request)?;
        let ending = self.ending()?;
        if ending.success() {
            Ok(())
        } else {
            Err(format!("{} ended with {ending}", self.name))
        }
    }

    /// Reads on to the end of output, then collects the exit status.
    fn ending(&mut self) -> Result<ExitStatus, String> {
        self.input = None;
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!(
                        "{} does not end within {} s",
                        self.name,
                        PATIENCE.as_secs()
                    ));
                }
            }
        }
        self.child
            .wait()
            .map_err(|error| format!("cannot wait for {}: {error}", self.name))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Both fail only where there is no process any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn alive(id: &str) -> bool {
        Path::new("/proc").join(id).exists()
    }

    #[test]
    fn an_answer_is_events_then_ok() {
        let stage = Stage::open("xtask-test").unwrap();
        let mut program = stage
            .start(
                "echo",
                shell("while read -r line; do echo \"bob: $line\"; echo okay; echo ok done; done"),
            )
            .unwrap();
        let expected = Answer {
            events: vec!["bob: hello".to_owned(), "okay".to_owned()],
            text: "done".to_owned(),
        };
        assert_eq!(program.ask("hello").unwrap(), expected);
        assert_eq!(program.ask("hello").unwrap(), expected);
    }

    #[test]
    fn an_error_names_the_program_and_the_request() {
        let stage = Stage::open("xtask-test").unwrap();
        let mut program = stage
            .start("grump", shell("read -r line; echo error no such group"))
            .unwrap();
        assert_eq!(
            program.ask("send x").unwrap_err(),
            "grump answered to 'send x': no such group"
        );
    }

    #[test]
    fn a_program_that_dies_is_noticed_and_its_log_shown() {
        let stage = Stage::open("xtask-test").unwrap();
        let mut program = stage
            .start("mortal", shell("read -r line; echo the reason >&2; exit 3"))
            .unwrap();
        assert!(
            program
                .ask("hello")
                .unwrap_err()
                .contains("mortal ended unexpectedly")
        );
        assert_eq!(stage.logs(), "mortal.log: the reason\n");
    }

    #[test]
    fn the_exit_code_is_looked_at() {
        let stage = Stage::open("xtask-test").unwrap();
        stage
            .start("polite", shell("read -r line; echo ok"))
            .unwrap()
            .quit("quit")
            .unwrap();
        assert!(
            stage
                .start("rude", shell("read -r line; echo ok; exit 1"))
                .unwrap()
                .quit("quit")
                .is_err()
        );
        let mut service = stage.start(
            "service",
            shell("trap 'exit 0' TERM; echo ready; while read -r line; do :; done"),
        );
        assert_eq!(service.as_mut().unwrap().line().unwrap(), "ready");
        service.unwrap().terminate().unwrap();
    }

    #[test]
    fn nothing_is_left_when_the_values_are_dropped() {
        let stage = Stage::open("xtask-test").unwrap();
        let directory = stage.path("");
        let mut program = stage
            .start("sleeper", shell("echo $$; exec sleep 1000"))
            .unwrap();
        let id = program.line().unwrap();
        assert!(alive(&id) && directory.exists());
        drop(program);
        drop(stage);
        assert!(!alive(&id) && !directory.exists());
    }

    #[test]
    fn nothing_is_left_when_the_owner_is_gone() {
        let mut stage = Stage::open("xtask-test").unwrap();
        let directory = stage.path("");
        let mut program = stage
            .start("sleeper", shell("echo $$; exec sleep 1000"))
            .unwrap();
        program.line().unwrap();
        // What the caretaker sees when this process is killed.
        stage.caretaker_input = None;
        let ending = stage.caretaker.wait().unwrap();
        assert!(!ending.success() && !directory.exists());
        assert!(!program.child.wait().unwrap().success());
    }
}
