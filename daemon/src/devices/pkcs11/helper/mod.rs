//! The helper process `mlskeyd-pkcs11`: one vendor's module for one token, and
//! nothing else.
//!
//! The daemon hands it connections over its standard input, as file descriptors
//! on a socketpair. Each connection is one session with the token, on a thread
//! of its own. The helper ends when the daemon closes its standard input, or ends:
//! when all connections are closed it lets go of the module, and does not wait long
//! for either.

mod confine;
mod descriptors;
mod find;
mod handles;
mod keys;
mod make;
mod sealing;
mod template;
mod token;
mod try_out;

use std::convert::Infallible;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak, mpsc};
use std::time::Duration;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Signal, getpid, kill_process};

/// An allocator that wipes what is freed, for the helper's program.
pub use zeroizing_alloc::ZeroAlloc as WipingAlloc;

pub use self::descriptors::shed;
use self::token::{Token, TokenSession};
use super::process::keep_lock;
use super::wire::{self, Answer, Reply, Request, TokenError};

/// How long the end may take if there is no daemon any more that would end the
/// helper earlier.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Why the helper ended.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// It could not be confined.
    #[error("what the helper does not need could not be given up: {0}")]
    Confine(io::Error),
    /// The daemon's socket failed.
    #[error("the daemon's socket: {0}")]
    Socket(#[from] io::Error),
    /// The daemon is another version.
    #[error("the daemon speaks version {0}, this helper version {version}", version = wire::VERSION)]
    Version(u8),
}

/// A loaded module, and its token once a session has found it.
struct Module {
    pkcs11: Pkcs11,
    token: Mutex<Weak<Token>>,
}

/// Serves a module until the daemon closes standard input.
///
/// # Errors
/// See [`HelperError`]. That the module does not work is told to the daemon.
pub fn serve(module: &Path) -> Result<(), HelperError> {
    confine::confine().map_err(HelperError::Confine)?;
    let _alone = keep_lock()?;
    let module: Arc<Result<Module, TokenError>> = Arc::new(load(module));
    // Each session has its end of it.
    let (in_use, sessions) = mpsc::channel::<Infallible>();
    while let Some(connection) = next_connection()? {
        let module = Arc::clone(&module);
        let in_use = in_use.clone();
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                let mut stream = UnixStream::from(connection);
                if let Err(error) = converse(&module, &mut stream)
                    && error.kind() != io::ErrorKind::UnexpectedEof
                {
                    eprintln!("mlskeyd-pkcs11: a connection of the daemon failed: {error}");
                }
                drop(in_use);
            })?;
    }
    end_in_time()?;
    drop(in_use);
    let _ = sessions.recv();
    if let Ok(module) = &*module
        && let Err(error) = module.pkcs11.clone().finalize()
    {
        eprintln!("mlskeyd-pkcs11: the module did not end in order: {error}");
    }
    Ok(())
}

/// Ends this process at last, whatever hangs: a session, the module's end, or what
/// the module does when the process exits.
fn end_in_time() -> io::Result<()> {
    let end = || {
        std::thread::sleep(STOP_TIME);
        let _ = kill_process(getpid(), Signal::KILL);
    };
    std::thread::Builder::new().spawn(end).map(drop)
}

fn load(path: &Path) -> Result<Module, TokenError> {
    let failed = |error: cryptoki::error::Error| {
        let path = path.display();
        TokenError::Module(format!("{path}: {error}"))
    };
    let pkcs11 = Pkcs11::new(path).map_err(failed)?;
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .map_err(failed)?;
    Ok(Module {
        pkcs11,
        token: Mutex::default(),
    })
}

/// The next connection from the daemon; `None`: it closed the socket.
fn next_connection() -> Result<Option<OwnedFd>, HelperError> {
    let mut byte = [0_u8; 1];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let stdin = io::stdin();
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let received = loop {
        match recvmsg(&stdin, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result.map_err(io::Error::from)?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let [version] = byte;
    if version != wire::VERSION {
        return Err(HelperError::Version(version));
    }
    let connection = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    connection
        .map(Some)
        .ok_or_else(|| io::Error::other("a message without a connection").into())
}

/// One connection: `Open`, then requests in turn.
fn converse(module: &Result<Module, TokenError>, stream: &mut UnixStream) -> io::Result<()> {
    let mut session: Option<TokenSession> = None;
    loop {
        let reply = match (wire::receive(stream)?, module, &session) {
            (_, Err(error), _) => Err(error.clone()),
            (Request::Look { token }, Ok(module), None) => {
                token::look(module, &token).map(|serial| Reply::Seen { serial })
            }
            (
                Request::Open {
                    token,
                    own,
                    pin,
                    last_try,
                },
                Ok(module),
                None,
            ) => TokenSession::open(module, &token, &own, pin.as_ref(), last_try).map(|opened| {
                let serial = opened.token.serial.clone();
                session = Some(opened);
                Reply::Opened { serial }
            }),
            (request, Ok(_), Some(session)) => serve_one(session, request),
            (_, Ok(_), None) => Err(TokenError::Protocol),
        };
        let answer = Answer {
            objects: session.as_ref().and_then(TokenSession::objects_counted),
            reply: reply.unwrap_or_else(Reply::Failed),
        };
        wire::send(stream, &answer)?;
    }
}

fn serve_one(session: &TokenSession, request: Request) -> Result<Reply, TokenError> {
    match request {
        Request::Look { .. } | Request::Open { .. } => Err(TokenError::Protocol),
        Request::TryOut => session.try_out().map(Reply::Abilities),
        Request::CreateGeneration { generation, anchor } => {
            session.create_generation(generation, anchor)?;
            Ok(Reply::Done)
        }
        Request::Generate {
            key,
            generation,
            algorithm,
            keep,
        } => {
            let (public, place) = session.generate(key, generation, algorithm, keep)?;
            Ok(Reply::Made { public, place })
        }
        Request::Seal { generation, secret } => {
            session.seal(generation, secret.expose()).map(Reply::Sealed)
        }
        Request::Unseal { generation, sealed } => {
            session.unseal(generation, &sealed).map(Reply::Bytes)
        }
        Request::Sign { key, content } => session.sign(&key, content.expose()).map(Reply::Bytes),
        Request::Agree { key, peer } => session.agree(&key, &peer).map(Reply::Bytes),
        Request::DestroyGeneration { generation } => {
            session.destroy_generation(generation)?;
            Ok(Reply::Done)
        }
        Request::DestroyKey { key } => {
            session.destroy_key(&key)?;
            Ok(Reply::Done)
        }
        Request::Find { label, algorithm } => {
            let (public, place) = session.find(&label, algorithm)?;
            Ok(Reply::Made { public, place })
        }
    }
}

impl Module {
    /// The token that sessions share: the one of the sessions that there are, if
    /// it is still that one. With the last of them all handles are forgotten.
    fn token(&self, found: Token) -> Arc<Token> {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        match token.upgrade() {
            Some(known) if known.is(&found) => known,
            _ => {
                let found = Arc::new(found);
                *token = Arc::downgrade(&found);
                found
            }
        }
    }
}
