//! The helper process `mlskeyd-pkcs11`: one vendor's module, and nothing else.
//!
//! The daemon hands it connections over its standard input, as file descriptors
//! on a socketpair. Each connection is one session with one token, on a thread
//! of its own. The helper ends when the daemon does.

mod keys;
mod template;
mod token;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use self::token::Token;
use super::wire::{self, Reply, Request, TokenError};

/// Why the helper ended.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The module could not be loaded or initialised.
    #[error("the module {path}: {reason}")]
    Module {
        /// Its path.
        path: String,
        /// What it said.
        reason: String,
    },
    /// The daemon's socket failed.
    #[error("the daemon's socket: {0}")]
    Socket(#[from] io::Error),
}

/// Serves a module until the daemon closes standard input.
///
/// # Errors
/// See [`HelperError`].
pub fn serve(module: &Path) -> Result<(), HelperError> {
    let of_module = |reason: cryptoki::error::Error| HelperError::Module {
        path: module.display().to_string(),
        reason: reason.to_string(),
    };
    let pkcs11 = Pkcs11::new(module).map_err(of_module)?;
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .map_err(of_module)?;
    while let Some(connection) = next_connection()? {
        let pkcs11 = pkcs11.clone();
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || {
                let mut stream = UnixStream::from(connection);
                if let Err(error) = converse(&pkcs11, &mut stream)
                    && error.kind() != io::ErrorKind::UnexpectedEof
                {
                    eprintln!("mlskeyd-pkcs11: a connection of the daemon failed: {error}");
                }
            })?;
    }
    Ok(())
}

/// The next connection from the daemon; `None`: it closed the socket.
fn next_connection() -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let stdin = io::stdin();
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let received = loop {
        match recvmsg(&stdin, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            result => break result?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    let connection = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    connection
        .map(Some)
        .ok_or_else(|| io::Error::other("a message without a connection"))
}

/// One connection: `Open`, then requests in turn.
fn converse(pkcs11: &Pkcs11, stream: &mut UnixStream) -> io::Result<()> {
    let mut token: Option<Token> = None;
    loop {
        let reply = match wire::receive(stream)? {
            Request::Open {
                token: name,
                pin,
                max_objects,
            } => match Token::open(pkcs11, &name, pin.as_ref(), max_objects) {
                Ok(opened) => {
                    token = Some(opened);
                    Reply::Opened
                }
                Err(error) => Reply::Failed(error),
            },
            request => match &mut token {
                Some(token) => serve_one(token, request).unwrap_or_else(Reply::Failed),
                None => Reply::Failed(TokenError::Protocol),
            },
        };
        wire::send(stream, &reply)?;
    }
}

fn serve_one(token: &mut Token, request: Request) -> Result<Reply, TokenError> {
    match request {
        Request::Open { .. } => Err(TokenError::Protocol),
        Request::TryOut => token.try_out().map(Reply::Support),
        Request::CreateGeneration { generation } => {
            token.create_generation(generation)?;
            Ok(Reply::Done)
        }
        Request::Generate {
            key,
            generation,
            algorithm,
        } => {
            let (public, place) = token.generate(key, generation, algorithm)?;
            Ok(Reply::Made { public, place })
        }
        Request::Sign { key, content } => token.sign(&key, content.expose()).map(Reply::Bytes),
        Request::Agree { key, peer } => token.agree(&key, &peer).map(Reply::Bytes),
        Request::DestroyGeneration { generation } => {
            token.destroy_generation(generation)?;
            Ok(Reply::Done)
        }
    }
}
