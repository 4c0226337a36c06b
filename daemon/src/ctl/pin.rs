//! Reading a PIN: from the terminal, which does not show it, or else a line of
//! standard input. Never from the command line, which others can see.

use std::io::{IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};

use mlskeyd_protocol::limits::MAX_PIN;
use mlskeyd_protocol::v1::SecretBytes;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::CtlError;
use super::table::printable;

/// Reads the PIN of a device, or of an identity's key.
pub(super) fn read(of: &str) -> Result<SecretBytes, CtlError> {
    asked_for(&format!("PIN of {of}: "))
}

/// Reads the PIN that an identity's key is to have: twice, where nobody sees what is
/// typed.
pub(super) fn read_new(of: &str) -> Result<SecretBytes, CtlError> {
    twice(&format!("New PIN of {of}: "))
}

/// Reads the PIN that an identity's new key is to have, if it is to have one.
pub(super) fn of_new_key(wanted: bool, identity: &str) -> Result<Option<SecretBytes>, CtlError> {
    if wanted {
        read_new(&printable(identity)).map(Some)
    } else {
        Ok(None)
    }
}

/// The same of the PUK that a card is to have.
#[cfg(feature = "yubikey")]
pub(super) fn read_new_puk(of: &str) -> Result<SecretBytes, CtlError> {
    twice(&format!("New PUK of {of}, which unblocks its PIN: "))
}

fn twice(prompt: &str) -> Result<SecretBytes, CtlError> {
    let pin = asked_for(prompt)?;
    if std::io::stdin().is_terminal() && asked_for("The same again: ")? != pin {
        return Err(CtlError::Usage(
            "these are two different ones; nothing was done".to_owned(),
        ));
    }
    Ok(pin)
}

fn asked_for(prompt: &str) -> Result<SecretBytes, CtlError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return line(stdin.as_fd());
    }
    let hidden = Hidden::begin(stdin.as_fd()).map_err(CtlError::Pin)?;
    write!(std::io::stderr(), "{prompt}").map_err(CtlError::Pin)?;
    let pin = line(stdin.as_fd());
    drop(hidden);
    pin
}

/// The first line. Read by hand: a buffered reader would keep a copy.
fn line(input: BorrowedFd<'_>) -> Result<SecretBytes, CtlError> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_PIN));
    let mut byte = Zeroizing::new([0]);
    loop {
        let read = rustix::io::retry_on_intr(|| rustix::io::read(input, &mut *byte));
        match read.map_err(|error| CtlError::Pin(error.into()))? {
            1 if *byte != [b'\n'] => {}
            _ => break,
        }
        if line.len() == MAX_PIN {
            return Err(CtlError::Usage(format!(
                "a PIN has at most {MAX_PIN} bytes"
            )));
        }
        line.extend_from_slice(&*byte);
    }
    if line.is_empty() {
        return Err(CtlError::Usage(
            "no PIN was given: type it on the terminal, or give it as a line of standard input"
                .to_owned(),
        ));
    }
    Ok(SecretBytes::new(std::mem::take(&mut *line)))
}

/// A terminal that does not show what is typed, as long as this lives.
struct Hidden<'a> {
    terminal: BorrowedFd<'a>,
    before: Termios,
}

impl<'a> Hidden<'a> {
    fn begin(terminal: BorrowedFd<'a>) -> std::io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        // All but the end of the line.
        hidden
            .local_modes
            .insert(LocalModes::ECHONL | LocalModes::ICANON);
        tcsetattr(terminal, OptionalActions::Flush, &hidden)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Hidden<'_> {
    fn drop(&mut self) {
        // Nothing else can be done about a terminal that has gone.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &[u8]) -> Result<SecretBytes, CtlError> {
        let (input, mut output) = std::io::pipe().unwrap();
        output.write_all(text).unwrap();
        drop(output);
        line(input.as_fd())
    }

    #[test]
    fn a_pin_is_one_line_within_its_bounds() {
        for (text, pin) in [
            (&b"1234\n"[..], &b"1234"[..]),
            (b"1234", b"1234"),
            (b" 12 34 \nmore\n", b" 12 34 "),
            (&[b'7'; MAX_PIN], &[b'7'; MAX_PIN]),
        ] {
            assert_eq!(given(text).unwrap().expose(), pin);
        }
        for wrong in [&b""[..], b"\n1234\n", &[b'7'; MAX_PIN + 1]] {
            let refused = given(wrong).unwrap_err();
            assert!(matches!(refused, CtlError::Usage(_)), "{refused}");
        }
    }
}
