//! A card in a reader of vpcd: two bytes of length and a command, each way
//! (<https://frankmorgner.github.io/vsmartcard/virtualsmartcard/api.html>).

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::card::Card;
use crate::control::{FingerOrder, Mishap};

/// What a YubiKey 5 answers to a reset.
const ATR: [u8; 23] = [
    0x3b, 0xfd, 0x13, 0x00, 0x00, 0x81, 0x31, 0xfe, 0x15, 0x80, 0x73, 0xc0, 0x21, 0xc0, 0x57, 0x59,
    0x75, 0x62, 0x69, 0x4b, 0x65, 0x79, 0x40,
];

/// A card that somebody holds.
pub struct Held {
    card: Mutex<Card>,
    finger: Mutex<FingerOrder>,
    moved: Condvar,
    seen: Mutex<Vec<[u8; 3]>>,
}

impl Held {
    /// Holds it.
    #[must_use]
    pub fn new(card: Card) -> Self {
        Self {
            card: Mutex::new(card),
            finger: Mutex::new(FingerOrder::Now),
            moved: Condvar::new(),
            seen: Mutex::default(),
        }
    }

    /// The card itself.
    pub fn card(&self) -> MutexGuard<'_, Card> {
        lock(&self.card)
    }

    /// Tells the finger what to do.
    pub fn point(&self, finger: FingerOrder) {
        *lock(&self.finger) = finger;
        self.moved.notify_all();
    }

    /// The commands that reached it since this was asked last.
    pub fn take_seen(&self) -> Vec<[u8; 3]> {
        std::mem::take(&mut lock(&self.seen))
    }

    fn touch(&self) -> bool {
        let mut finger = lock(&self.finger);
        loop {
            match *finger {
                FingerOrder::Now => return true,
                FingerOrder::Never => return false,
                FingerOrder::Waits => {
                    finger = self
                        .moved
                        .wait(finger)
                        .unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }
}

/// What happens to a card after so many more commands.
type ToCome = Option<(u32, Mishap)>;

/// A card in a reader. Dropped, it is pulled out.
pub struct Inserted {
    stream: TcpStream,
    to_come: Arc<Mutex<ToCome>>,
    thread: Option<JoinHandle<()>>,
}

impl Inserted {
    /// Puts a card into the reader at this port.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(port: u16, held: Arc<Held>) -> io::Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let to_come = Arc::new(Mutex::new(None));
        let (its_stream, its_mishap) = (stream.try_clone()?, Arc::clone(&to_come));
        let thread = std::thread::spawn(move || {
            // It ends with the connection, and so with the card's power.
            let _ = serve(&its_stream, &held, &its_mishap);
            let _ = its_stream.shutdown(Shutdown::Both);
            held.card().power_off();
        });
        Ok(Self {
            stream,
            to_come,
            thread: Some(thread),
        })
    }

    /// Is it still there?
    #[must_use]
    pub fn is_in(&self) -> bool {
        !self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Something happens to it at the command after so many more.
    pub fn happens_at(&self, after: u32, mishap: Mishap) {
        *lock(&self.to_come) = Some((after, mishap));
    }
}

impl Drop for Inserted {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(mut stream: &TcpStream, held: &Held, to_come: &Mutex<ToCome>) -> io::Result<()> {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // Without this each of vpcd's two writes waits for the acknowledgement of the
        // one before.
        rustix::net::sockopt::set_tcp_quickack(stream, true)?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let length = usize::from(u16::from_be_bytes(length));
        let body = buffer.get_mut(..length).unwrap_or_default();
        stream.read_exact(body)?;
        let answer = match *body {
            [0..=2] => {
                held.card().power_off();
                continue;
            }
            [4] => ATR.to_vec(),
            _ => {
                let mishap = count_down(to_come);
                match mishap {
                    Some(Mishap::Pulled) => return Ok(()),
                    Some(Mishap::Reset) => held.card().power_off(),
                    Some(Mishap::PulledWhenDone) | None => {}
                }
                if let Some(&[_, ins, p1, p2]) = body.first_chunk() {
                    lock(&held.seen).push([ins, p1, p2]);
                }
                let answer = held.card().transmit(body, &mut || held.touch());
                if mishap == Some(Mishap::PulledWhenDone) {
                    return Ok(());
                }
                answer
            }
        };
        let length = u16::try_from(answer.len()).unwrap_or(u16::MAX);
        stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())?;
    }
}

/// What happens to it at this command.
fn count_down(to_come: &Mutex<ToCome>) -> Option<Mishap> {
    let mut to_come = lock(to_come);
    let (left, mishap) = (*to_come)?;
    if left == 0 {
        *to_come = None;
        return Some(mishap);
    }
    *to_come = Some((left.saturating_sub(1), mishap));
    None
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
