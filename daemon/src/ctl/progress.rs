//! How far a command has come: one line on the terminal, gone when it is done.

use std::io::{IsTerminal, Stderr, Write};

/// Back to the start of the line, and nothing behind it.
const CLEAR: &str = "\r\x1b[K";

/// A line that is written over and over. Without a terminal there is none.
pub(super) struct Progress<W: Write> {
    out: Option<W>,
    is_shown: bool,
}

impl Progress<Stderr> {
    /// For a person who waits; a program that wants JSON does not look.
    pub(super) fn new(json: bool) -> Self {
        let stderr = std::io::stderr();
        Self::on((!json && stderr.is_terminal()).then_some(stderr))
    }
}

impl<W: Write> Progress<W> {
    const fn on(out: Option<W>) -> Self {
        Self {
            out,
            is_shown: false,
        }
    }

    /// Shows this line in place of the one before.
    pub(super) fn show(&mut self, line: &str) {
        if let Some(out) = &mut self.out {
            // A terminal that has gone is no reason to stop.
            let _ = write!(out, "{CLEAR}{line}").and_then(|()| out.flush());
            self.is_shown = true;
        }
    }
}

impl<W: Write> Drop for Progress<W> {
    fn drop(&mut self) {
        if let Some(out) = self.out.as_mut().filter(|_| self.is_shown) {
            let _ = out.write_all(CLEAR.as_bytes()).and_then(|()| out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_is_written_over_and_gone_at_the_end() {
        let mut terminal = Vec::new();
        drop(Progress::on(Some(&mut terminal)));
        assert_eq!(terminal, b"");
        let mut progress = Progress::on(Some(&mut terminal));
        progress.show("1 key");
        progress.show("2 keys");
        drop(progress);
        assert_eq!(terminal, b"\r\x1b[K1 key\r\x1b[K2 keys\r\x1b[K");
        Progress::<Vec<u8>>::on(None).show("nobody looks");
    }
}
