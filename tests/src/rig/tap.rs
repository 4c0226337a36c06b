//! Somebody on the way to a TPM, who writes down all that passes, and stops or
//! spoils a command, slips one in, or changes an answer, if a test wants it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;

use tss_esapi::constants::CommandCode;

use super::Swtpm;
use super::swtpm::{Ports, address};

/// Two ports that lead to those of a TPM.
#[derive(Debug)]
pub struct Tap {
    ports: Ports,
    wire: Arc<Wire>,
    threads: Vec<JoinHandle<()>>,
}

/// Where a command is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Before the TPM has heard of it.
    Unheard,
    /// When the TPM has obeyed, and before anybody knows.
    Unanswered,
}

/// A command that is to be stopped.
#[derive(Debug)]
pub struct Snare(mpsc::Receiver<Caught>);

/// A command that was stopped. With this value its connection ends, and nothing
/// more comes through it.
#[derive(Debug)]
pub struct Caught {
    _end: mpsc::Sender<()>,
}

type IsIt = Box<dyn Fn(&[u8]) -> bool + Send>;

#[derive(Default)]
struct Wire {
    seen: Mutex<Seen>,
    snare: Mutex<Option<(Stop, IsIt, mpsc::Sender<Caught>)>>,
    ended: AtomicBool,
    /// What becomes of the next write to the permanent memory.
    fault: Mutex<Option<Fault>>,
    /// What is in the command before which one is slipped in; which one.
    slip: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
    /// What an answer says that is to be changed; what it says then.
    lie: Mutex<Option<(Vec<u8>, Vec<u8>)>>,
}

#[derive(Default)]
struct Seen {
    bytes: Vec<u8>,
    commands: Vec<Vec<u8>>,
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

impl Tap {
    /// Before this TPM.
    ///
    /// # Panics
    /// If there are no ports for it.
    pub fn before(tpm: &Swtpm) -> Self {
        let (ports, wire) = (Ports::claim(), Arc::<Wire>::default());
        let channels: [fn(&Arc<Wire>, TcpStream, TcpStream); 2] = [Wire::commands, Wire::control];
        let threads = (0..).zip(channels).map(|(n, channel)| {
            let listener = TcpListener::bind(address(ports.first + n)).expect("a free port");
            let (wire, tpm) = (Arc::clone(&wire), tpm.port() + n);
            std::thread::spawn(move || wire.listen(&listener, tpm, channel))
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
        let seen = self.wire.seen();
        let writes = seen.commands.iter().filter(|command| is_write(command));
        writes.count()
    }

    /// What becomes of the next write to the permanent memory.
    pub fn spoil_next_write(&self, fault: Fault) {
        *self.wire.fault.lock().expect("no thread panicked") = Some(fault);
    }

    /// Did these bytes pass, in either direction?
    pub fn saw(&self, bytes: &[u8]) -> bool {
        let seen = self.wire.seen();
        seen.bytes
            .windows(bytes.len())
            .any(|window| window == bytes)
    }

    /// All bytes that passed, in either direction.
    pub fn bytes(&self) -> Vec<u8> {
        self.wire.seen().bytes.clone()
    }

    /// How many commands were sent so far.
    pub fn count(&self) -> usize {
        self.wire.seen().commands.len()
    }

    /// The commands that were sent, from this one on.
    pub fn commands(&self, first: usize) -> Vec<Vec<u8>> {
        let seen = self.wire.seen();
        seen.commands.iter().skip(first).cloned().collect()
    }

    /// Has the next command that this is true of stopped on its way.
    pub fn snare(&self, stop: Stop, is_it: impl Fn(&[u8]) -> bool + Send + 'static) -> Snare {
        let (caught, catch) = mpsc::channel();
        let snare = (stop, Box::new(is_it) as IsIt, caught);
        *self.wire.snare.lock().expect("no thread panicked") = Some(snare);
        Snare(catch)
    }

    /// Measures something into a register just before the next command that has these
    /// bytes in it, such as its code (`TPM_CC`).
    pub fn measure_before(&self, bytes: &[u8], pcr: u32, what: u8) {
        let mut slip = self.wire.slip.lock().expect("no thread panicked");
        *slip = Some((bytes.to_vec(), extend(pcr, what)));
    }

    /// Has the next answer that says this say something else of the same length.
    pub fn lie(&self, truth: &[u8], lie: &[u8]) {
        assert_eq!(truth.len(), lie.len(), "the answer's length stays");
        let mut next = self.wire.lie.lock().expect("no thread panicked");
        *next = Some((truth.to_vec(), lie.to_vec()));
    }

    /// Is it still to come?
    pub fn waits(&self) -> bool {
        let slip = self.wire.slip.lock().expect("no thread panicked");
        let lie = self.wire.lie.lock().expect("no thread panicked");
        slip.is_some() || lie.is_some()
    }
}

impl Snare {
    /// Waits for the command.
    ///
    /// # Panics
    /// If another command was to be stopped meanwhile.
    pub fn wait(self) -> Caught {
        self.0.recv().expect("a snare is set")
    }
}

/// What a command is (TPM 2.0 Library, Part 3, 5.2).
pub fn code(command: &[u8]) -> Option<CommandCode> {
    let code = command.get(6..10)?.try_into().ok()?;
    CommandCode::try_from(u32::from_be_bytes(code)).ok()
}

impl Wire {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no thread panicked")
    }

    fn listen(
        self: &Arc<Self>,
        listener: &TcpListener,
        tpm: u16,
        channel: fn(&Arc<Self>, TcpStream, TcpStream),
    ) {
        for client in listener.incoming() {
            if self.ended.load(Ordering::SeqCst) {
                return;
            }
            if let (Ok(client), Ok(tpm)) = (client, TcpStream::connect(address(tpm))) {
                channel(self, client, tpm);
            }
        }
    }

    fn commands(self: &Arc<Self>, client: TcpStream, tpm: TcpStream) {
        let wire = Arc::clone(self);
        std::thread::spawn(move || {
            // Until one of them goes away.
            let _ = wire.carry(client, tpm);
        });
    }

    fn control(self: &Arc<Self>, client: TcpStream, tpm: TcpStream) {
        let both = [(&client, &tpm), (&tpm, &client)];
        for (from, to) in both.map(|(from, to)| (from.try_clone(), to.try_clone())) {
            let (from, to) = (from.expect("a handle"), to.expect("a handle"));
            let wire = Arc::clone(self);
            std::thread::spawn(move || wire.copy(from, to));
        }
    }

    fn carry(&self, mut client: TcpStream, mut tpm: TcpStream) -> io::Result<()> {
        loop {
            let command = message(&mut client)?;
            let mut seen = self.seen();
            seen.bytes.extend_from_slice(&command);
            seen.commands.push(command.clone());
            drop(seen);
            if self.stopped(Stop::Unheard, &command) {
                return Ok(());
            }
            let fault = self.fault_of(&command);
            if fault == Some(Fault::Command) {
                client.write_all(&NV_RATE)?;
                continue;
            }
            if let Some(first) = self.slip_before(&command) {
                tpm.write_all(&first)?;
                message(&mut tpm)?;
            }
            tpm.write_all(&command)?;
            let mut answer = message(&mut tpm)?;
            if fault == Some(Fault::Answer) {
                answer = NV_RATE.to_vec();
            }
            self.lie_in(&mut answer);
            self.seen().bytes.extend_from_slice(&answer);
            if is_success(&answer) && self.stopped(Stop::Unanswered, &command) {
                return Ok(());
            }
            client.write_all(&answer)?;
        }
    }

    /// What is to become of this command.
    fn fault_of(&self, command: &[u8]) -> Option<Fault> {
        if !is_write(command) {
            return None;
        }
        self.fault.lock().expect("no thread panicked").take()
    }

    /// What the TPM has to obey before this command.
    fn slip_before(&self, command: &[u8]) -> Option<Vec<u8>> {
        let mut slip = self.slip.lock().expect("no thread panicked");
        let is_it = |(wanted, _): &mut (Vec<u8>, Vec<u8>)| {
            let mut windows = command.windows(wanted.len());
            windows.any(|window| window == wanted)
        };
        slip.take_if(is_it).map(|(_, first)| first)
    }

    /// Changes an answer if it is to be changed.
    fn lie_in(&self, answer: &mut [u8]) {
        let mut next = self.lie.lock().expect("no thread panicked");
        let place = next.as_ref().and_then(|(truth, _)| {
            let mut windows = answer.windows(truth.len());
            windows.position(|window| window == truth)
        });
        if let (Some(place), Some((_, lie))) = (place, next.take_if(|_| place.is_some())) {
            answer[place..place + lie.len()].copy_from_slice(&lie);
        }
    }

    /// Stops a command if it is to be stopped here: it is not carried on then.
    fn stopped(&self, at: Stop, command: &[u8]) -> bool {
        let mut snare = self.snare.lock().expect("no thread panicked");
        let Some((_, _, caught)) = snare.take_if(|(stop, is_it, _)| *stop == at && is_it(command))
        else {
            return false;
        };
        drop(snare);
        let (end, ended) = mpsc::channel();
        if caught.send(Caught { _end: end }).is_ok() {
            // Nothing is ever sent: it ends.
            let _ = ended.recv();
        }
        true
    }

    /// Until one of them goes away, and with it the other.
    fn copy(&self, mut from: TcpStream, mut to: TcpStream) {
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = buffer.get(..length).expect("as many as were read");
            self.seen().bytes.extend_from_slice(bytes);
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        for end in [from, to] {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

/// A command or an answer, whole: its length stands behind its tag.
fn message(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; 6];
    from.read_exact(&mut message)?;
    let length = [2, 3, 4, 5].map(|at| message[at]);
    let length = u32::from_be_bytes(length) as usize;
    assert!((10..0x1_0000).contains(&length), "no TPM says that");
    message.resize(length, 0);
    from.read_exact(&mut message[6..])?;
    Ok(message)
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

fn is_write(command: &[u8]) -> bool {
    code(command) == Some(CommandCode::NvWrite)
}

fn is_success(answer: &[u8]) -> bool {
    answer[6..10] == [0; 4]
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").finish_non_exhaustive()
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
