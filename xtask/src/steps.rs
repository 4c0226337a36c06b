//! Steps that are run one after the other, timed, until one fails.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The steps that ran, and how each ended.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration)>,
    failed: Option<(String, Duration)>,
    /// The test runner's own line of counts.
    counts: Option<String>,
}

impl Steps {
    /// Runs one step, unless an earlier one failed.
    pub(crate) fn run(&mut self, name: &str, work: impl FnOnce() -> Result<(), String>) {
        if self.failed.is_some() {
            return;
        }
        println!("\n==> {name}");
        let start = Instant::now();
        let result = work();
        let entry = (name.to_owned(), start.elapsed());
        match result {
            Ok(()) => {
                println!("<== {name}: ok, {}", seconds(entry.1));
                self.done.push(entry);
            }
            Err(message) => {
                println!("<== {name}: FAILED, {}: {message}", seconds(entry.1));
                self.failed = Some(entry);
            }
        }
    }

    /// Runs a step that is one program.
    pub(crate) fn command(&mut self, name: &str, mut command: Command) {
        self.run(name, || {
            print_command(&command);
            succeed(command.status())
        });
    }

    /// Runs nextest, and keeps its line of counts for the end.
    pub(crate) fn nextest(&mut self, name: &str, mut command: Command) {
        let mut counts = None;
        self.run(name, || {
            print_command(&command);
            let mut child = command
                .stderr(Stdio::piped())
                .spawn()
                .map_err(|error| error.to_string())?;
            if let Some(errors) = child.stderr.take() {
                for line in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line);
                    eprintln!("{line}");
                    if line.contains("tests run:") {
                        counts = Some(line.trim().to_owned());
                    }
                }
            }
            succeed(child.wait())
        });
        self.counts = self.counts.take().or(counts);
    }

    /// Prints the table of steps, and says whether all went well.
    pub(crate) fn finish(self) -> Result<(), String> {
        println!("\n{}", table(&self.done, self.failed.as_ref()));
        if let Some(counts) = self.counts {
            println!("{counts}");
        }
        match self.failed {
            None => Ok(()),
            Some((name, _)) => Err(format!("the step '{name}' failed: see above")),
        }
    }
}

fn succeed(status: std::io::Result<std::process::ExitStatus>) -> Result<(), String> {
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(status.to_string()),
        Err(error) => Err(format!("cannot start it: {error}")),
    }
}

/// Shows a command so that it can be copied and run alone.
fn print_command(command: &Command) {
    let variables = command
        .get_envs()
        .filter_map(|(name, value)| Some(format!("{}='{}' ", name.display(), value?.display())));
    let arguments = command
        .get_args()
        .map(|argument| format!(" {}", argument.display()));
    println!(
        "{}cargo{}",
        variables.collect::<String>(),
        arguments.collect::<String>()
    );
}

fn table(done: &[(String, Duration)], failed: Option<&(String, Duration)>) -> String {
    let total = done
        .iter()
        .chain(failed)
        .map(|(_, duration)| *duration)
        .sum();
    let row = |verdict: &str, name: &str, duration| {
        format!("{verdict:<7}{name:<34}{:>9}\n", seconds(duration))
    };
    let mut text = String::new();
    for (name, duration) in done {
        text.push_str(&row("ok", name, *duration));
    }
    if let Some((name, duration)) = failed {
        text.push_str(&row("FAILED", name, *duration));
    }
    text.push_str(&row("", "total", total));
    text
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_runs_after_a_failure() {
        let mut steps = Steps::default();
        let mut later = false;
        steps.run("first", || Ok(()));
        steps.run("second", || Err("broken".to_owned()));
        steps.run("third", || {
            later = true;
            Ok(())
        });
        assert!(!later);
        assert!(steps.finish().unwrap_err().contains("'second'"));
    }

    #[test]
    fn a_program_that_fails_fails_its_step() {
        let mut steps = Steps::default();
        steps.command("true", Command::new("true"));
        steps.command("false", Command::new("false"));
        assert!(steps.finish().unwrap_err().contains("'false'"));
    }

    #[test]
    fn the_runners_counts_are_kept() {
        let mut steps = Steps::default();
        let mut runner = Command::new("sh");
        runner.args(["-c", "echo '  Summary [0.1s] 3 tests run: 3 passed' >&2"]);
        steps.nextest("tests", runner);
        assert_eq!(
            steps.counts.as_deref(),
            Some("Summary [0.1s] 3 tests run: 3 passed")
        );
        assert!(steps.finish().is_ok());
    }

    #[test]
    fn the_table_names_each_step_and_the_sum() {
        let done = [
            ("format".to_owned(), Duration::from_millis(500)),
            ("lint".to_owned(), Duration::from_secs(2)),
        ];
        let failed = ("docs".to_owned(), Duration::from_secs(1));
        assert_eq!(
            table(&done, Some(&failed)),
            "ok     format                                0.5 s\n\
             ok     lint                                  2.0 s\n\
             FAILED docs                                  1.0 s\n\
             \x20      total                                 3.5 s\n"
        );
    }
}
