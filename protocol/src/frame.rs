//! Framing: a length of four bytes, big-endian, then so many bytes of postcard.
//!
//! Nothing here does input or output, so that the blocking client and the
//! asynchronous server share it. What was in a buffer is wiped: frames carry
//! contents to be signed and opened plaintexts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

/// Length of the length, in bytes.
pub const PREFIX: usize = 4;

/// What a [`FrameBuffer`] holds at least once it is used, in bytes. Most frames
/// fit.
const SMALL: usize = 4 * 1024;

/// Why bytes are no frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// Longer than allowed here.
    #[error("a frame of {length} bytes, where at most {max} are allowed")]
    TooLong {
        /// Its length without prefix.
        length: usize,
        /// The bound.
        max: usize,
    },
    /// Not the postcard encoding of the message that belongs here, to the last
    /// byte.
    #[error("a malformed frame")]
    Malformed,
    /// The peer holds more memory than it may: see [`Budget`].
    #[error("too much memory is held by this user's requests")]
    OverBudget,
}

/// Encodes a message as a frame, prefix included.
///
/// # Errors
/// [`FrameError::TooLong`] if the message takes more than `max` bytes.
pub fn encode<T: Serialize>(message: &T, max: usize) -> Result<Zeroizing<Vec<u8>>, FrameError> {
    // Measured first: a buffer that grows leaves copies of secrets behind.
    let length =
        postcard::experimental::serialized_size(message).map_err(|_| FrameError::Malformed)?;
    let prefix = match u32::try_from(length) {
        Ok(prefix) if length <= max => prefix,
        _ => return Err(FrameError::TooLong { length, max }),
    };
    let mut frame = Zeroizing::new(vec![0; length.saturating_add(PREFIX)]);
    let (head, body) = frame
        .split_at_mut_checked(PREFIX)
        .ok_or(FrameError::Malformed)?;
    head.copy_from_slice(&prefix.to_be_bytes());
    postcard::to_slice(message, body).map_err(|_| FrameError::Malformed)?;
    Ok(frame)
}

/// Decodes a frame's bytes, without prefix, to the last byte.
///
/// # Errors
/// [`FrameError::Malformed`] if they are not exactly one `T`.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}

/// How tarpc's `ClientMessage` begins on the wire; after a request's head comes
/// the request.
///
/// Read in tarpc's stead, since tarpc panics on a deadline far ahead, and
/// written in its stead, since tarpc measures the time that is left anew at each
/// encoding.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Head {
    /// A request follows.
    Request {
        /// The time that is left.
        deadline: Duration,
        /// Written empty, and not believed.
        trace: tarpc::trace::Context,
        /// Names the request on its connection.
        id: u64,
    },
    /// The answer to a request is no longer wanted.
    Cancel {
        /// As above.
        trace: tarpc::trace::Context,
        /// The request.
        id: u64,
    },
}

/// Memory that several connections share, such as all of one user.
#[derive(Clone, Debug)]
pub struct Budget {
    left: Arc<AtomicUsize>,
}

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(bytes)),
        }
    }

    /// Takes so many bytes, until the [`Charge`] is dropped; `None` if there
    /// are not as many left.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Option<Charge> {
        self.left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| {
                left.checked_sub(bytes)
            })
            .ok()
            .map(|_| Charge {
                budget: self.clone(),
                bytes,
            })
    }
}

/// Bytes taken from a [`Budget`]; dropping it gives them back.
#[derive(Debug)]
pub struct Charge {
    budget: Budget,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        // Cannot overflow: no more is given back than was taken.
        self.budget.left.fetch_add(self.bytes, Ordering::AcqRel);
    }
}

/// Collects received bytes and cuts them into frames.
///
/// It grows with what has arrived, never with what a prefix announces.
#[derive(Debug)]
pub struct FrameBuffer {
    /// All of it is initialised; received and not yet consumed is
    /// `start..end`.
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    max: usize,
    budget: Budget,
    charge: Option<Charge>,
}

impl FrameBuffer {
    /// An empty buffer for frames of at most `max` bytes without prefix. What
    /// it needs beyond a few kilobytes is taken from `budget`.
    #[must_use]
    pub const fn new(max: usize, budget: Budget) -> Self {
        Self {
            bytes: Vec::new(),
            start: 0,
            end: 0,
            max,
            budget,
            charge: None,
        }
    }

    /// Changes the bound on frames.
    pub const fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// Are there bytes that no frame has consumed?
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Room to receive into, never empty. Call [`received`](Self::received)
    /// afterwards.
    ///
    /// # Errors
    /// [`FrameError::OverBudget`].
    pub fn room(&mut self) -> Result<&mut [u8], FrameError> {
        if self.is_empty() {
            (self.start, self.end) = (0, 0);
            if self.bytes.len() > SMALL {
                self.resize(SMALL)?;
            }
        }
        if self.end == self.bytes.len() {
            if self.start > 0 {
                self.move_to_front();
            } else {
                self.resize(self.bytes.len().saturating_mul(2).max(SMALL))?;
            }
        }
        self.bytes.get_mut(self.end..).ok_or(FrameError::Malformed)
    }

    /// So many bytes of the [`room`](Self::room) are filled.
    pub fn received(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.bytes.len());
    }

    /// Reads the next frame, if it is there whole, and wipes it.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] as soon as the prefix is there, else what
    /// `parse` says.
    pub fn next<T>(
        &mut self,
        parse: impl FnOnce(&[u8]) -> Result<T, FrameError>,
    ) -> Result<Option<T>, FrameError> {
        let arrived = self.bytes.get_mut(self.start..self.end).unwrap_or_default();
        let Some((prefix, rest)) = arrived.split_first_chunk_mut::<PREFIX>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > self.max {
            return Err(FrameError::TooLong {
                length,
                max: self.max,
            });
        }
        let Some(frame) = rest.get_mut(..length) else {
            return Ok(None);
        };
        let message = parse(frame);
        frame.zeroize();
        self.start = self.start.saturating_add(PREFIX).saturating_add(length);
        message.map(Some)
    }

    fn move_to_front(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        let length = self.end.saturating_sub(self.start);
        self.bytes.get_mut(length..).unwrap_or_default().zeroize();
        (self.start, self.end) = (0, length);
    }

    /// Moves what is there (from the start) into a buffer of this size, and
    /// wipes the old one.
    fn resize(&mut self, size: usize) -> Result<(), FrameError> {
        let extra = size.saturating_sub(SMALL);
        self.charge = None;
        if extra > 0 {
            self.charge = Some(self.budget.take(extra).ok_or(FrameError::OverBudget)?);
        }
        let mut larger = vec![0; size];
        for (to, from) in larger
            .iter_mut()
            .zip(self.bytes.get(..self.end).unwrap_or_default())
        {
            *to = *from;
        }
        self.bytes.zeroize();
        self.bytes = larger;
        Ok(())
    }
}

impl Drop for FrameBuffer {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Bytes;
    use proptest::prelude::*;

    fn unlimited() -> Budget {
        Budget::new(usize::MAX)
    }

    fn give(buffer: &mut FrameBuffer, mut bytes: &[u8]) -> Result<(), FrameError> {
        while !bytes.is_empty() {
            let room = buffer.room()?;
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            buffer.received(count);
            bytes = &bytes[count..];
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20_000), 1..8),
            piece in 1_usize..9_000,
        ) {
            let stream: Vec<u8> = messages
                .iter()
                .flat_map(|m| encode(&Bytes(m.clone()), 1 << 20).unwrap().to_vec())
                .collect();
            let mut buffer = FrameBuffer::new(1 << 20, unlimited());
            let mut out = Vec::new();
            for piece in stream.chunks(piece) {
                give(&mut buffer, piece).unwrap();
                while let Some(Bytes(m)) = buffer.next(decode).unwrap() {
                    out.push(m);
                }
            }
            prop_assert_eq!(out, messages);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..5_000)) {
            let mut buffer = FrameBuffer::new(1 << 12, unlimited());
            if give(&mut buffer, &bytes).is_ok() {
                while let Ok(Some(_)) = buffer.next(decode::<crate::handshake::Hello>) {}
            }
        }
    }

    #[test]
    fn a_frame_is_decoded_to_its_last_byte() {
        assert!(decode::<u8>(&[7]).is_ok());
        assert!(decode::<u8>(&[7, 0]).is_err());
        assert!(decode::<u8>(&[]).is_err());
    }

    #[test]
    fn a_head_is_what_tarpc_writes() {
        let head = Head::Cancel {
            trace: Default::default(),
            id: 300,
        };
        let tarpc = tarpc::ClientMessage::<()>::Cancel {
            trace_context: Default::default(),
            request_id: 300,
        };
        assert_eq!(encode(&head, 100).unwrap(), encode(&tarpc, 100).unwrap());

        let head = Head::Request {
            deadline: Duration::from_secs(7),
            trace: Default::default(),
            id: 300,
        };
        let frame = encode(&(head, Bytes(vec![1, 2])), 100).unwrap();
        match decode(&frame[PREFIX..]).unwrap() {
            tarpc::ClientMessage::Request(request) => {
                assert_eq!((request.id, request.message), (300, Bytes(vec![1, 2])));
                let left = request
                    .context
                    .deadline
                    .duration_since(std::time::Instant::now());
                assert!(left <= Duration::from_secs(7) && left > Duration::from_secs(1));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_duration_that_overflows_is_malformed() {
        let hostile = postcard::to_allocvec(&(u64::MAX, u32::MAX)).unwrap();
        assert!(decode::<std::time::Duration>(&hostile).is_err());
    }

    #[test]
    fn too_long_is_said_by_the_prefix_alone() {
        let mut buffer = FrameBuffer::new(100, unlimited());
        give(&mut buffer, &[0, 0, 0]).unwrap();
        assert!(buffer.next(|_| Ok(())).unwrap().is_none());
        give(&mut buffer, &[101]).unwrap();
        assert!(matches!(
            buffer.next(|_| Ok(())),
            Err(FrameError::TooLong {
                length: 101,
                max: 100
            })
        ));
        assert!(encode(&Bytes(vec![0; 100]), 100).is_err());
        assert!(encode(&Bytes(vec![0; 99]), 100).is_ok());
    }

    #[test]
    fn an_announced_length_allocates_nothing() {
        let mut buffer = FrameBuffer::new(1 << 30, unlimited());
        give(&mut buffer, &(1_u32 << 29).to_be_bytes()).unwrap();
        assert!(buffer.next(|_| Ok(())).unwrap().is_none());
        assert!(buffer.room().unwrap().len() <= SMALL);
    }

    #[test]
    fn a_budget_bounds_what_is_held_and_gets_it_back() {
        let budget = Budget::new(100_000);
        let mut one = FrameBuffer::new(1 << 20, budget.clone());
        let mut two = FrameBuffer::new(1 << 20, budget.clone());
        let frame = encode(&Bytes(vec![1; 60_000]), 1 << 20).unwrap();
        give(&mut one, &frame).unwrap();
        assert!(matches!(
            give(&mut two, &frame),
            Err(FrameError::OverBudget)
        ));
        assert!(one.next(decode::<Bytes>).unwrap().is_some());
        one.room().unwrap();
        let mut two = FrameBuffer::new(1 << 20, budget.clone());
        give(&mut two, &frame).unwrap();
        drop((one, two));
        assert!(budget.take(100_000).is_some());
    }

    #[test]
    fn a_consumed_frame_is_wiped() {
        let mut buffer = FrameBuffer::new(1 << 20, unlimited());
        give(
            &mut buffer,
            &encode(&Bytes(vec![0xAB; 3_000]), 1 << 20).unwrap(),
        )
        .unwrap();
        assert!(buffer.next(decode::<Bytes>).unwrap().is_some());
        assert!(!buffer.bytes.contains(&0xAB));
    }
}
