//! Somebody on the way to a TPM, who writes down all that passes.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
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
            let both = [(&client, &tpm), (&tpm, &client)];
            for (from, to) in both.map(|(from, to)| (from.try_clone(), to.try_clone())) {
                let (from, to) = (from.expect("a handle"), to.expect("a handle"));
                let wire = Arc::clone(self);
                std::thread::spawn(move || wire.copy(from, to));
            }
        }
    }

    /// Until one of them goes away, and with it the other.
    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..length).expect("as many as were read");
            // Commands come whole, so what is looked for stands in a row.
            let mut seen = self.seen.lock().expect("no thread panicked");
            seen.extend_from_slice(bytes);
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        for end in [from, to] {
            let _ = end.shutdown(Shutdown::Both);
        }
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
