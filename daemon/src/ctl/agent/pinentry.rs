//! Pinentry, the program that asks people for PINs: the Assuan protocol on its standard
//! input and output, as far as one question takes it
//! (<https://www.gnupg.org/documentation/manuals/assuan/>, pinentry's manual, chapter 3).

use std::io::{self, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use mlskeyd_protocol::limits::MAX_PIN;
use mlskeyd_protocol::v1::SecretBytes;
use zeroize::Zeroizing;

/// Longest line that is taken from it (Assuan: 1,000 bytes).
const MAX_LINE: usize = 1002;

/// Lines that it may say before it has an answer.
const MAX_LINES: usize = 100;

/// A pinentry that runs. Dropped, it is ended.
pub(super) struct Pinentry {
    child: Arc<Mutex<Child>>,
    input: ChildStdin,
    output: ChildStdout,
}

/// Ends a pinentry from another thread.
pub(super) struct Ender(Arc<Mutex<Child>>);

/// What the person said.
pub(super) enum Asked {
    /// This.
    Pin(SecretBytes),
    /// Nothing: he did not want to, or pinentry has ended.
    Cancelled,
}

impl Pinentry {
    /// Starts it.
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        let mut command = Command::new(program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let (Some(input), Some(output)) = (input, output) else {
            return Err(io::Error::other("it has no standard input"));
        };
        Ok(Self {
            child: Arc::new(Mutex::new(child)),
            input,
            output,
        })
    }

    pub(super) fn ender(&self) -> Ender {
        Ender(Arc::clone(&self.child))
    }

    /// Asks the person. `wrong`: why what he said before was not taken.
    pub(super) fn ask(mut self, text: &str, device: &str, wrong: Option<&str>) -> Asked {
        let asked = self.converse(text, device, wrong);
        asked.unwrap_or(Asked::Cancelled)
    }

    fn converse(&mut self, text: &str, device: &str, wrong: Option<&str>) -> io::Result<Asked> {
        self.expect_ok()?;
        self.order("SETTITLE mlskeyd")?;
        self.order(&format!("SETDESC {}", escaped(text)))?;
        self.order(&format!("SETPROMPT PIN of {}:", escaped(device)))?;
        if let Some(wrong) = wrong {
            self.order(&format!("SETERROR {}", escaped(wrong)))?;
        }
        self.send("GETPIN")?;
        let mut pin = None;
        for _ in 0..MAX_LINES {
            let line = self.line()?;
            match line.as_slice() {
                [b'D', b' ', data @ ..] => pin = Some(unescaped(data)),
                [b'O', b'K', ..] => break,
                [b'S' | b'#', ..] => {}
                _ => return Ok(Asked::Cancelled),
            }
        }
        let pin = pin.filter(|pin| (1..=MAX_PIN).contains(&pin.len()));
        Ok(match pin {
            Some(mut pin) => Asked::Pin(SecretBytes::new(std::mem::take(&mut *pin))),
            None => Asked::Cancelled,
        })
    }

    /// One that every pinentry follows, or may refuse without harm.
    fn order(&mut self, order: &str) -> io::Result<()> {
        self.send(order)?;
        for _ in 0..MAX_LINES {
            let line = self.line()?;
            if line.starts_with(b"OK") || line.starts_with(b"ERR") {
                return Ok(());
            }
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn expect_ok(&mut self) -> io::Result<()> {
        if self.line()?.starts_with(b"OK") {
            return Ok(());
        }
        Err(io::ErrorKind::InvalidData.into())
    }

    fn send(&mut self, line: &str) -> io::Result<()> {
        self.input.write_all(format!("{line}\n").as_bytes())?;
        self.input.flush()
    }

    /// The next line. Read by hand: a buffered reader would keep a copy.
    fn line(&mut self) -> io::Result<Zeroizing<Vec<u8>>> {
        let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
        let mut byte = Zeroizing::new([0]);
        loop {
            self.output.read_exact(byte.as_mut_slice())?;
            if *byte == [b'\n'] {
                return Ok(line);
            }
            if line.len() == MAX_LINE {
                return Err(io::ErrorKind::InvalidData.into());
            }
            line.extend_from_slice(byte.as_slice());
        }
    }
}

impl Drop for Pinentry {
    fn drop(&mut self) {
        end(&self.child);
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = child.wait();
    }
}

impl Ender {
    /// Ends it: who waits for its answer has none then.
    pub(super) fn end(self) {
        end(&self.0);
    }
}

fn end(child: &Mutex<Child>) {
    // It may have ended already.
    let _ = child.lock().unwrap_or_else(PoisonError::into_inner).kill();
}

/// A text as an argument: bounded, and without what would end the line.
fn escaped(text: &str) -> String {
    const MOST: usize = 250;
    let mut escaped = String::new();
    for character in text.chars().take(MOST) {
        match character {
            '%' => escaped.push_str("%25"),
            character if character.is_control() => escaped.push(' '),
            character => escaped.push(character),
        }
    }
    escaped
}

/// Data as it was meant: `%` and two hexadecimal digits are one byte.
fn unescaped(data: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(data.len()));
    let mut rest = data;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = match (first, after) {
            (b'%', [high, low, after @ ..]) => digit(*high)
                .zip(digit(*low))
                .map(|(high, low)| (high.wrapping_mul(16).wrapping_add(low), after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((first, after));
        bytes.push(byte);
        rest = after;
    }
    bytes
}

fn digit(character: u8) -> Option<u8> {
    let digit = char::from(character).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_what_was_meant() {
        for (data, meant) in [
            (&b"1234"[..], &b"1234"[..]),
            (b"a%25b%0a", b"a%b\n"),
            (b"100%", b"100%"),
            (b"%zz%2", b"%zz%2"),
        ] {
            assert_eq!(unescaped(data).as_slice(), meant);
        }
    }

    #[test]
    fn a_text_stays_in_its_line() {
        assert_eq!(escaped("100%\nGETPIN"), "100%25 GETPIN");
        assert_eq!(escaped(&"x".repeat(1000)).len(), 250);
    }
}
