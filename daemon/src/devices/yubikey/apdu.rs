//! Commands to a card and its answers (ISO/IEC 7816-4, 5.1 and 5.3): short ones,
//! chained where they are longer.

use std::fmt;

use zeroize::Zeroizing;

use super::error::CardError;

/// Longest answer that is taken: a certificate of a slot has 3 KiB at most (Yubico).
const MAX_ANSWER: usize = 8 * 1024;

/// Data of one command.
const BLOCK: usize = 255;

/// A command.
pub(super) struct Command {
    ins: u8,
    p1: u8,
    p2: u8,
    /// It may hold a PIN, or a content to be signed.
    data: Zeroizing<Vec<u8>>,
}

impl Command {
    /// One without data.
    pub(super) fn new(ins: u8, p1: u8, p2: u8) -> Self {
        Self {
            ins,
            p1,
            p2,
            data: Zeroizing::new(Vec::new()),
        }
    }

    /// The same, with data.
    pub(super) fn with(self, data: Zeroizing<Vec<u8>>) -> Self {
        Self { data, ..self }
    }

    /// Sends it, and has the whole answer.
    ///
    /// `transmit` sends one command and gives its answer, which ends in a status.
    pub(super) fn send(
        &self,
        mut transmit: impl FnMut(&[u8]) -> Result<Zeroizing<Vec<u8>>, CardError>,
    ) -> Result<Answer, CardError> {
        let mut blocks = self.data.chunks(BLOCK).peekable();
        let mut answer = loop {
            let block = blocks.next().unwrap_or_default();
            let is_last = blocks.peek().is_none();
            let mut bytes = Zeroizing::new(Vec::with_capacity(BLOCK.saturating_add(6)));
            bytes.extend_from_slice(&[if is_last { 0x00 } else { 0x10 }, self.ins]);
            bytes.extend_from_slice(&[self.p1, self.p2]);
            if let Ok(length @ 1..) = u8::try_from(block.len()) {
                bytes.push(length);
                bytes.extend_from_slice(block);
            }
            if is_last {
                // As much as there is.
                bytes.push(0);
            }
            let answer = Answer::parse(transmit(&bytes)?)?;
            if is_last || answer.status != Status::OK {
                break answer;
            }
        };
        while let Some(more) = answer.status.more() {
            let next = Answer::parse(transmit(&[0, 0xc0, 0, 0, more])?)?;
            let together = answer.data.len().saturating_add(next.data.len());
            if next.data.is_empty() || together > MAX_ANSWER {
                return Err(CardError::Malformed("an answer without end"));
            }
            let mut data = Zeroizing::new(Vec::with_capacity(together));
            data.extend_from_slice(&answer.data);
            data.extend_from_slice(&next.data);
            answer = Answer {
                data,
                status: next.status,
            };
        }
        Ok(answer)
    }
}

/// What a card answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// It may be a shared secret.
    pub(super) data: Zeroizing<Vec<u8>>,
    pub(super) status: Status,
}

impl Answer {
    fn parse(bytes: Zeroizing<Vec<u8>>) -> Result<Self, CardError> {
        let (data, status) = bytes
            .split_last_chunk()
            .ok_or(CardError::Malformed("an answer without a status"))?;
        Ok(Self {
            data: Zeroizing::new(data.to_vec()),
            status: Status(u16::from_be_bytes(*status)),
        })
    }

    /// Its data, if the card did what it was told to.
    pub(super) fn ok(self, what: &'static str) -> Result<Zeroizing<Vec<u8>>, CardError> {
        match self.status {
            Status::OK => Ok(self.data),
            status => Err(CardError::refused(what, status)),
        }
    }
}

/// A status: SW1 and SW2 (ISO/IEC 7816-4, 5.6; NIST SP 800-73-4, part 2, 2.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Status(u16);

impl Status {
    pub(super) const OK: Self = Self(0x9000);
    /// A PIN, the management key, or a touch is needed.
    pub(super) const SECURITY: Self = Self(0x6982);
    /// A PIN is blocked.
    pub(super) const BLOCKED: Self = Self(0x6983);
    /// There is no such object.
    pub(super) const NOT_FOUND: Self = Self(0x6a82);
    /// There is no such key.
    pub(super) const NO_KEY: Self = Self(0x6a88);
    /// The application that is selected, if any, does not know this command.
    pub(super) const UNKNOWN: Self = Self(0x6d00);

    /// How much more of an answer there is: so many bytes; 0: 256 or more.
    const fn more(self) -> Option<u8> {
        match self.0.to_be_bytes() {
            [0x61, more] => Some(more),
            _ => None,
        }
    }

    /// Tries that a PIN has left, if that is what it says.
    pub(super) const fn tries(self) -> Option<u8> {
        match self.0.to_be_bytes() {
            [0x63, tries @ 0xc0..=0xcf] => Some(tries & 0x0f),
            _ => None,
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a card was sent, that gave these answers.
    fn sent(command: &Command, answers: &[&[u8]]) -> (Result<Answer, CardError>, Vec<Vec<u8>>) {
        let mut sent = Vec::new();
        let mut answers = answers.iter();
        let answer = command.send(|bytes| {
            sent.push(bytes.to_vec());
            Ok(Zeroizing::new(answers.next().unwrap().to_vec()))
        });
        (answer, sent)
    }

    #[test]
    fn long_commands_are_chained() {
        let data = Zeroizing::new((0..=255).chain(0..=255).collect::<Vec<u8>>());
        let command = Command::new(0x87, 0x11, 0x9a).with(data.clone());
        let (answer, sent) = sent(&command, &[&[0x90, 0], &[0x90, 0], &[1, 0x90, 0]]);
        assert_eq!(*answer.unwrap().data, [1]);
        assert_eq!(sent[0][..5], [0x10, 0x87, 0x11, 0x9a, 255]);
        assert_eq!(sent[1][..5], [0x10, 0x87, 0x11, 0x9a, 255]);
        assert_eq!(sent[2], [0, 0x87, 0x11, 0x9a, 2, data[510], data[511], 0]);
    }

    #[test]
    fn a_chain_ends_where_the_card_refuses_it() {
        let command = Command::new(0x87, 0x11, 0x9a).with(Zeroizing::new(vec![0; 600]));
        let (answer, sent) = sent(&command, &[&[0x69, 0x82]]);
        assert_eq!(answer.unwrap().status, Status::SECURITY);
        assert_eq!(sent.len(), 1);
    }

    #[test]
    fn long_answers_are_asked_for() {
        let command = Command::new(0xcb, 0x3f, 0xff);
        let (answer, sent) = sent(&command, &[&[1, 2, 0x61, 0], &[3, 0x61, 1], &[4, 0x90, 0]]);
        assert_eq!(*answer.unwrap().ok("it").unwrap(), [1, 2, 3, 4]);
        assert_eq!(sent[0], [0, 0xcb, 0x3f, 0xff, 0]);
        assert_eq!(sent[1], [0, 0xc0, 0, 0, 0]);
        assert_eq!(sent[2], [0, 0xc0, 0, 0, 1]);
    }

    #[test]
    fn an_answer_without_end_or_status_is_none() {
        let command = Command::new(0xcb, 0x3f, 0xff);
        for answers in [&[&[0x61, 1][..], &[0x61, 1]][..], &[&[0x90]], &[&[]]] {
            let (answer, _) = sent(&command, answers);
            assert!(matches!(answer, Err(CardError::Malformed(_))));
        }
        let mut calls = 0;
        let endless = command.send(|_| {
            calls += 1;
            Ok(Zeroizing::new([vec![0; 256], vec![0x61, 0]].concat()))
        });
        assert!(matches!(endless, Err(CardError::Malformed(_))));
        assert!(calls < 40);
    }
}
