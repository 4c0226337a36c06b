//! A stream on which everything together may take so long.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// A use of a stream. One call of the system may take as long as the whole, so
/// it may last twice as long at worst, if the other side drips.
pub(super) struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

/// Lets each call on the stream take so long.
pub(super) fn limit(stream: &UnixStream, patience: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(patience))
}

impl<'a> Timed<'a> {
    /// On a stream that is [limited](limit) so.
    pub(super) fn new(stream: &'a UnixStream, patience: Duration) -> Self {
        let now = Instant::now();
        let until = now.checked_add(patience).unwrap_or(now);
        Self { stream, until }
    }

    fn check(&self) -> io::Result<()> {
        if Instant::now() < self.until {
            return Ok(());
        }
        Err(io::ErrorKind::TimedOut.into())
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.check()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    #[test]
    fn silence_ends() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        limit(&ours, PATIENCE).unwrap();
        let error = Timed::new(&ours, PATIENCE).read(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn who_drips_does_not_hold_it_for_ever() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        limit(&ours, PATIENCE).unwrap();
        let mut timed = Timed::new(&ours, PATIENCE);
        let error = loop {
            (&theirs).write_all(&[0]).unwrap();
            if let Err(error) = timed.read(&mut [0]) {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
