//! Somebody on the way to a TPM, who writes down all that passes, and does more
//! if a test wants it.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::Swtpm;
use super::swtpm::{Ports, address};

/// Two ports that lead to those of a TPM.
#[derive(Debug)]
pub struct Tap {
    ports: Ports,
    wire: Arc<Wire>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Wire {
    seen: Mutex<Vec<u8>>,
    ended: AtomicBool,
    /// TPM2_NV_Write commands that came by.
    writes: AtomicUsize,
    /// What becomes of the next one.
    fault: Mutex<Option<Fault>>,
    answer_is_lost: AtomicBool,
}

/// What happens to a command on its way. Who sent it is told that the TPM slows
/// writing down (TPM_RC_NV_RATE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The TPM obeys it, and its answer is lost.
    Answer,
    /// It does not reach the TPM.
    Command,
}

/// TPM_ST_NO_SESSIONS, a length of 10, TPM_RC_NV_RATE.
const NV_RATE: [u8; 10] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x09, 0x20];

/// TPM_CC_NV_Write, where a command has its code.
const NV_WRITE: [u8; 4] = [0, 0, 0x01, 0x37];

impl Tap {
    /// Before this TPM.
    ///
    /// # Panics
    /// If there are no ports for it.
    pub fn before(tpm: &Swtpm) -> Self {
        let (ports, wire) = (Ports::claim(), Arc::<Wire>::default());
        let threads = (0..2).map(|n| {
            let listener = TcpListener::bind(address(ports.first + n)).expect("a free port");
            let (wire, tpm) = (Arc::clone(&wire), tpm.port() + n);
            std::thread::spawn(move || wire.listen(&listener, tpm, n == 0))
        });
        Self {
            threads: threads.collect(),
            ports,
            wire,
        }
    }

    /// As the configuration names it.
    pub fn tcti(&self) -> String {
        Swtpm::tcti_at(self.ports.first)
    }

    /// How often the permanent memory was written, but for what makes or removes
    /// things there.
    pub fn writes(&self) -> usize {
        self.wire.writes.load(Ordering::SeqCst)
    }

    /// What becomes of the next write to the permanent memory.
    pub fn spoil_next_write(&self, fault: Fault) {
        *self.wire.fault.lock().expect("no thread panicked") = Some(fault);
    }

    /// Did these bytes pass, in either direction?
    pub fn saw(&self, bytes: &[u8]) -> bool {
        let seen = self.wire.seen.lock().expect("no thread panicked");
        seen.windows(bytes.len()).any(|window| window == bytes)
    }
}

impl Wire {
    fn listen(self: &Arc<Self>, listener: &TcpListener, tpm: u16, commands: bool) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let (Ok(client), Ok(tpm)) = (client, TcpStream::connect(address(tpm))) else {
                continue;
            };
            let both = [(&client, &tpm, true), (&tpm, &client, false)];
            for (from, to, asks) in both {
                let (from, to) = (from.try_clone(), to.try_clone());
                let (from, to) = (from.expect("a handle"), to.expect("a handle"));
                let wire = Arc::clone(self);
                std::thread::spawn(move || wire.copy(from, to, commands.then_some(asks)));
            }
        }
    }

    /// Until one of them goes away, and with it the other. `commands`: these are
    /// commands, or else answers to them.
    fn copy(&self, mut from: TcpStream, mut to: TcpStream, commands: Option<bool>) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..length).expect("as many as were read");
            // Commands come whole, so what is looked for stands in a row.
            self.seen
                .lock()
                .expect("no thread panicked")
                .extend_from_slice(bytes);
            let passed = match commands {
                Some(true) if self.stops(bytes) => from.write_all(&NV_RATE),
                Some(false) if self.loses_answer() => to.write_all(&NV_RATE),
                _ => to.write_all(bytes),
            };
            if passed.is_err() {
                break;
            }
        }
        for end in [from, to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Wire {
    /// Does this command end here?
    fn stops(&self, command: &[u8]) -> bool {
        if command.get(6..10) != Some(NV_WRITE.as_slice()) {
            return false;
        }
        self.writes.fetch_add(1, Ordering::SeqCst);
        let fault = self.fault.lock().expect("no thread panicked").take();
        self.answer_is_lost
            .store(fault == Some(Fault::Answer), Ordering::SeqCst);
        fault == Some(Fault::Command)
    }

    /// Is this the answer that gets lost?
    fn loses_answer(&self) -> bool {
        self.answer_is_lost.swap(false, Ordering::SeqCst)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.wire.ended.store(true, Ordering::SeqCst);
        for (n, thread) in (0..).zip(self.threads.drain(..)) {
            // It waits for somebody.
            let _ = TcpStream::connect(address(self.ports.first + n));
            let _ = thread.join();
        }
    }
}
