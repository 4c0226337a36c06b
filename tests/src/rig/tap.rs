//! Somebody on the way to a TPM, who writes down all that passes, and may slip in a
//! command of his own.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
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
    /// What is in the command before which one is slipped in; which one.
    slip: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// Whom the next answer is for, if not for the client.
    waits: Mutex<Option<Sender<()>>>,
    ended: AtomicBool,
}

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
            std::thread::spawn(move || wire.listen(&listener, tpm))
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

    /// Did these bytes pass, in either direction?
    pub fn saw(&self, bytes: &[u8]) -> bool {
        let seen = self.wire.seen.lock().expect("no thread panicked");
        seen.windows(bytes.len()).any(|window| window == bytes)
    }

    /// Measures something into a register just before the next command that has these
    /// bytes in it, such as its code (`TPM_CC`).
    pub fn measure_before(&self, bytes: &[u8], pcr: u32, what: u8) {
        let mut slip = self.wire.slip.lock().expect("no thread panicked");
        *slip = Some((bytes.to_vec(), extend(pcr, what)));
    }

    /// Is it still to come?
    pub fn waits(&self) -> bool {
        let slip = self.wire.slip.lock().expect("no thread panicked");
        slip.is_some()
    }
}

impl Wire {
    fn listen(self: &Arc<Self>, listener: &TcpListener, tpm: u16) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            let (Ok(client), Ok(tpm)) = (client, TcpStream::connect(address(tpm))) else {
                continue;
            };
            let both = [(&client, &tpm, true), (&tpm, &client, false)];
            for (from, to, commands) in both {
                let (from, to) = (from.try_clone(), to.try_clone());
                let (from, to) = (from.expect("a handle"), to.expect("a handle"));
                let wire = Arc::clone(self);
                std::thread::spawn(move || wire.copy(from, to, commands));
            }
        }
    }

    /// Until one of them goes away, and with it the other.
    fn copy(&self, mut from: TcpStream, mut to: TcpStream, commands: bool) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..length).expect("as many as were read");
            // Commands come whole, so what is looked for stands in a row.
            let mut seen = self.seen.lock().expect("no thread panicked");
            seen.extend_from_slice(bytes);
            drop(seen);
            if commands {
                self.slip_in(bytes, &mut to);
            } else if let Some(waiting) = self.waits.lock().expect("no panic").take() {
                let _ = waiting.send(());
                continue;
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        for end in [from, to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Wire {
    /// Has the TPM obey another command first, if this is the one that it waits for.
    fn slip_in(&self, bytes: &[u8], tpm: &mut TcpStream) {
        let mut slip = self.slip.lock().expect("no thread panicked");
        let is_it = |(wanted, _): &mut (Vec<u8>, Vec<u8>)| {
            let mut windows = bytes.windows(wanted.len());
            windows.any(|window| window == wanted)
        };
        let Some((_, command)) = slip.take_if(is_it) else {
            return;
        };
        let (waiting, answered): (Sender<()>, Receiver<()>) = channel();
        *self.waits.lock().expect("no thread panicked") = Some(waiting);
        if tpm.write_all(&command).is_ok() {
            let _ = answered.recv();
        }
    }
}

/// `TPM2_PCR_Extend` with the empty authorisation value (TPM 2.0 Library, Part 3,
/// 22.2).
fn extend(pcr: u32, what: u8) -> Vec<u8> {
    let mut command = Vec::new();
    command.extend(0x8002_u16.to_be_bytes());
    command.extend(65_u32.to_be_bytes());
    command.extend(0x182_u32.to_be_bytes());
    command.extend(pcr.to_be_bytes());
    command.extend(9_u32.to_be_bytes());
    command.extend(0x4000_0009_u32.to_be_bytes());
    command.extend([0; 5]);
    command.extend(1_u32.to_be_bytes());
    command.extend(0x000b_u16.to_be_bytes());
    command.extend([what; 32]);
    command
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
