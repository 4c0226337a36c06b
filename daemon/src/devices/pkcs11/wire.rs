//! What daemon and helper say to each other over their socketpair: frames of
//! the wire protocol's form (a length, then postcard), one reply for each
//! request. Neither trusts the other: a vendor's module lives in the helper.

use std::io::{self, Read, Write};

use mlskeyd_protocol::frame::{self, PREFIX};
use mlskeyd_protocol::limits::MAX_CONTENT;
use mlskeyd_protocol::v1::{Algorithm, SecretBytes};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// The version of all this, to be raised with every change of a type here. Sent
/// with each connection, so that a daemon and a helper of different builds do not
/// misunderstand each other.
pub(crate) const VERSION: u8 = 2;

/// Longest frame, in bytes: the content of an Ed25519 signature goes whole.
const MAX_FRAME: usize = MAX_CONTENT + 64 * 1024;

/// How much is read at once at first: most messages are no longer.
const HEAD: usize = 512;

/// Which token of the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TokenName {
    /// The token with this label (PKCS#11 3.1, 3.2), without its padding.
    Label(String),
    /// The token with this serial number.
    Serial(String),
}

/// What the daemon asks. The first request of a connection is `Open`, but for
/// `Look`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Says which token is there. Opens no session with it.
    Look {
        /// The token.
        token: TokenName,
    },
    /// Takes a token and logs in, if it is the device's own.
    Open {
        /// The token.
        token: TokenName,
        /// The serial number of the device's own.
        own: String,
        /// The user PIN; `None` asks whether one is needed.
        pin: Option<SecretBytes>,
        /// Log in even if one more wrong PIN would lock the token.
        last_try: bool,
    },
    /// Tries what the token can do.
    TryOut,
    /// Makes what shows that a generation exists, and wraps its keys.
    CreateGeneration {
        /// The generation's 16 bytes.
        generation: [u8; 16],
        /// What that is.
        anchor: Anchor,
    },
    /// Makes a key pair.
    Generate {
        /// The key's 16 bytes.
        key: [u8; 16],
        /// The generation it goes under.
        generation: [u8; 16],
        /// What it is for.
        algorithm: Algorithm,
        /// How it is kept.
        keep: Keep,
    },
    /// Encrypts a private key of the daemon's under its generation.
    Seal {
        /// The generation's 16 bytes.
        generation: [u8; 16],
        /// The private key.
        secret: SecretBytes,
    },
    /// Decrypts it.
    Unseal {
        /// The generation's 16 bytes.
        generation: [u8; 16],
        /// As [`Reply::Sealed`] said.
        sealed: Sealed,
    },
    /// Signs a SHA-256 digest (ECDSA) or the whole content (Ed25519).
    Sign {
        /// Which key.
        key: Kept,
        /// What is signed.
        content: SecretBytes,
    },
    /// The raw DH result with a peer, whose public key was checked.
    Agree {
        /// Which key.
        key: Kept,
        /// The peer's public key: SEC1 uncompressed, or 32 bytes.
        peer: Vec<u8>,
    },
    /// Destroys a generation and all under it.
    DestroyGeneration {
        /// The generation's 16 bytes.
        generation: [u8; 16],
    },
    /// Destroys one key's object, or its unwrapped copy in a session.
    DestroyKey {
        /// Which key; none that was adopted.
        key: Kept,
    },
    /// Finds a signature key that somebody else made, and checks that it is
    /// suitable.
    Find {
        /// The private key's CKA_LABEL.
        label: String,
        /// What it has to sign.
        algorithm: Algorithm,
    },
}

/// A key, as the helper finds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    /// Its 16 bytes.
    pub(crate) key: [u8; 16],
    /// The generation it hangs under.
    pub(crate) generation: [u8; 16],
    /// What it is for.
    pub(crate) algorithm: Algorithm,
    /// Where it is.
    pub(crate) place: Place,
}

/// Where a private key is. The registry keeps this (see `blob`): variants may be
/// added at the end, and nothing else may change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// An object of the token with the key's id as its CKA_ID.
    Object,
    /// Wrapped by its generation's key.
    Wrapped(Wrapped),
    /// An object of the token that somebody else made.
    Adopted {
        /// Its CKA_LABEL.
        label: String,
        /// Its CKA_ID.
        id: Vec<u8>,
    },
}

/// A secret that was encrypted by a key of the token: CKM_AES_CBC_PAD. The
/// daemon authenticates it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sealed {
    /// The random IV.
    pub(crate) iv: [u8; 16],
    /// The encrypted secret.
    pub(crate) bytes: Vec<u8>,
}

/// A mechanism that wraps keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wrapping {
    /// CKM_AES_KEY_WRAP_PAD.
    KeyWrapPad,
    /// CKM_AES_KEY_WRAP.
    KeyWrap,
    /// CKM_AES_CBC_PAD.
    CbcPad,
}

impl std::fmt::Display for Wrapping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::KeyWrapPad => "CKM_AES_KEY_WRAP_PAD",
            Self::KeyWrap => "CKM_AES_KEY_WRAP",
            Self::CbcPad => "CKM_AES_CBC_PAD",
        })
    }
}

impl Wrapping {
    /// All of them, the best first: the last one does not authenticate what it
    /// wraps (the daemon does).
    pub(crate) const ALL: [Self; 3] = [Self::KeyWrapPad, Self::KeyWrap, Self::CbcPad];
}

/// A wrapped key, by its mechanism.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wrapped {
    /// By CKM_AES_KEY_WRAP_PAD.
    KeyWrapPad(Vec<u8>),
    /// By CKM_AES_KEY_WRAP.
    KeyWrap(Vec<u8>),
    /// By CKM_AES_CBC_PAD.
    CbcPad {
        /// The random IV.
        iv: [u8; 16],
        /// The wrapped key.
        bytes: Vec<u8>,
    },
}

/// What shows that a generation exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Anchor {
    /// An AES key that wraps, with CKA_UNWRAP_TEMPLATE.
    WrappingKey,
    /// One without that: the token does not know it.
    PlainWrappingKey,
    /// A data object: the token makes no AES keys.
    Data,
}

/// How a new key is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Keep {
    /// As an object of the token.
    Object {
        /// Most private keys that the token may hold, ours and others'.
        most: u32,
        /// So many of them are not for this key.
        spare: u32,
    },
    /// Wrapped by its generation's key.
    Wrapped(Wrapping),
}

/// What the helper answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answer {
    /// Private keys on the token, ours and others', if they were counted.
    pub(crate) objects: Option<u32>,
    /// The reply itself.
    pub(crate) reply: Reply,
}

/// A reply to [`Request`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To `Look`.
    Seen {
        /// The token's serial number.
        serial: String,
    },
    /// To `Open`: it is logged in.
    Opened {
        /// The token's serial number.
        serial: String,
    },
    /// To `TryOut`.
    Abilities(Abilities),
    /// To `Generate` and `Find`.
    Made {
        /// The public key as MLS writes it.
        public: Vec<u8>,
        /// Where the private key is.
        place: Place,
    },
    /// To `Seal`.
    Sealed(Sealed),
    /// To `Sign` (64 bytes), `Agree` and `Unseal` (32 bytes).
    Bytes(SecretBytes),
    /// To `CreateGeneration`, `DestroyGeneration` and `DestroyKey`.
    Done,
    /// It did not work.
    Failed(TokenError),
}

/// What a token can do, found by doing it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Abilities {
    /// What it says that it is.
    pub(crate) is: Identity,
    /// What its generations begin with.
    pub(crate) anchor: Anchor,
    /// Does it encrypt the daemon's keys? Else why not, for a person.
    pub(crate) seals: Result<(), String>,
    /// What it does with each algorithm.
    pub(crate) algorithms: Vec<TokenSupport>,
}

/// What a token says that it is (CK_TOKEN_INFO).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) label: String,
    pub(crate) manufacturer: String,
    pub(crate) model: String,
    pub(crate) firmware: String,
}

/// What a token does with one algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenSupport {
    /// The algorithm.
    pub(crate) algorithm: Algorithm,
    /// Does it keep such keys as objects that never leave it? Else why not.
    pub(crate) object: Result<(), String>,
    /// Does it wrap them? Else why not.
    pub(crate) wrapped: Result<Wraps, String>,
}

/// How a token wraps keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wraps {
    /// By which mechanism.
    pub(crate) by: Wrapping,
    /// Does it refuse to unwrap them so that they could be read?
    pub(crate) enforced: bool,
}

/// Why a token did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum TokenError {
    /// The module cannot be used at all.
    #[error("the module does not work ({0})")]
    Module(String),
    /// No such token.
    #[error("the module shows no token {0}")]
    Absent(String),
    /// The token is there, and is not the device's own. Nothing was tried on it.
    #[error("the token has serial number {0:?}, and is not the device's own")]
    Other(String),
    /// The token is gone, or its session is.
    #[error("the token is gone ({0})")]
    Gone(String),
    /// The token gives no more sessions.
    #[error("the token gives no session: others have them all ({0})")]
    NoSession(String),
    /// It needs a PIN, and none was given.
    #[error("the token waits for its PIN")]
    Locked,
    /// It takes its PIN on a keypad of its own.
    #[error("the token takes its PIN on a pad of its own, which is not supported")]
    PinPad,
    /// The PIN is wrong.
    #[error("the PIN is wrong")]
    WrongPin,
    /// The login failed for another reason; the token may have counted the PIN.
    #[error("the login failed: {0}")]
    LoginFailed(String),
    /// One more wrong PIN would lock the token.
    #[error(
        "one more wrong PIN would lock the token: if you are sure of it, `mlskeyctl unlock --last-try`"
    )]
    LastTry,
    /// Too many wrong PINs.
    #[error(
        "the token has locked its PIN: have it reset with the vendor's tool, then give it with \
         `mlskeyctl unlock`"
    )]
    PinLocked,
    /// The generation exists already.
    #[error("the generation exists already")]
    GenerationExists,
    /// The generation, or a key of it, is not there.
    #[error("the token does not show it")]
    NotFound,
    /// The token does not do this.
    #[error("the token does not do it ({0})")]
    Unsupported(String),
    /// The token holds as many keys as it may.
    #[error("it holds {held} private keys, {}", full_text(*spare))]
    Full {
        /// How many it holds.
        held: u32,
        /// How many more it may hold, which are for others.
        spare: u32,
    },
    /// The token has no room, for now or for good.
    #[error("the token is out of memory ({0})")]
    Memory(String),
    /// The token refused the wrapped key.
    #[error("the token refused it ({0})")]
    Refused(String),
    /// The key that was to be found is not suitable.
    #[error("{0}")]
    Unsuitable(String),
    /// It failed otherwise.
    #[error("the token failed ({0})")]
    Failed(String),
    /// The request makes no sense to the helper.
    #[error("daemon and helper do not fit")]
    Protocol,
}

fn full_text(spare: u32) -> String {
    match spare {
        0 => "as many as `max_objects` allows".to_owned(),
        spare => format!("and the last {spare} that `max_objects` allows are for signature keys"),
    }
}

/// Writes one message.
///
/// # Errors
/// What the socket says; a message that is too long.
pub(crate) fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let frame = frame::encode(message, MAX_FRAME).map_err(io::Error::other)?;
    stream.write_all(&frame)
}

/// Reads one message, mostly with one call of the system: neither side sends
/// anything before it was answered.
///
/// # Errors
/// What the socket says; a message that is too long, or not one to its last
/// byte.
pub(crate) fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut head = Zeroizing::new([0; HEAD]);
    let mut got = 0;
    while got < PREFIX {
        let Some(room) = head.get_mut(got..) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        match stream.read(room) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(more) => got = got.saturating_add(more),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let (prefix, begun) = head
        .get(..got)
        .and_then(|got| got.split_first_chunk::<PREFIX>())
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let length = usize::try_from(u32::from_be_bytes(*prefix)).map_err(io::Error::other)?;
    if length > MAX_FRAME || begun.len() > length {
        return Err(io::Error::other("a message is too long"));
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    let (start, rest) = bytes.split_at_mut(begun.len());
    start.copy_from_slice(begun);
    stream.read_exact(rest)?;
    let (message, tail) = postcard::take_from_bytes(&bytes).map_err(io::Error::other)?;
    if tail.is_empty() {
        Ok(message)
    } else {
        Err(io::Error::other("a message has a tail"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn sent(message: &Request) -> Vec<u8> {
        let mut bytes = Vec::new();
        send(&mut bytes, message).unwrap();
        bytes
    }

    /// A message whose content is this long.
    fn message(length: usize) -> Request {
        Request::Seal {
            generation: [7; 16],
            secret: SecretBytes::new((0..length).map(|n| n.to_le_bytes()[0]).collect()),
        }
    }

    #[test]
    fn messages_arrive_however_they_are_cut() {
        for length in [0, 1, HEAD - 30, HEAD, HEAD + 1, 100_000] {
            let bytes = sent(&message(length));
            for cut in [1, 3, 4, 5, HEAD, HEAD + 1, usize::MAX] {
                let mut pieces = Pieces(bytes.chunks(cut.min(bytes.len())).collect());
                let Request::Seal { secret, .. } = receive(&mut pieces).unwrap() else {
                    panic!("another message");
                };
                assert_eq!(secret.expose().len(), length);
                assert_eq!(sent(&message(length)), bytes);
                assert!(pieces.0.is_empty(), "{length}, {cut}");
            }
        }
    }

    /// What a socket gives with each read.
    struct Pieces<'a>(std::collections::VecDeque<&'a [u8]>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Some(piece) = self.0.pop_front() else {
                return Ok(0);
            };
            let taken = piece.len().min(buffer.len());
            let (now, later) = piece.split_at(taken);
            buffer[..taken].copy_from_slice(now);
            if !later.is_empty() {
                self.0.push_front(later);
            }
            Ok(taken)
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let whole = sent(&message(10));
        let refused = |bytes: &[u8]| receive::<Request>(&mut &*bytes).unwrap_err().to_string();
        for cut in 0..whole.len() {
            receive::<Request>(&mut &whole[..cut]).unwrap_err();
        }
        let two = [whole.as_slice(), &whole].concat();
        assert!(refused(&two).contains("too long"));
        let long = u32::try_from(MAX_FRAME + 1).unwrap().to_be_bytes();
        assert!(refused(&long).contains("too long"));
        let mut tail = whole.clone();
        tail.push(0);
        let length = u32::try_from(whole.len() - PREFIX + 1).unwrap();
        tail[..PREFIX].copy_from_slice(&length.to_be_bytes());
        assert!(refused(&tail).contains("tail"));
    }

    #[test]
    fn a_closed_connection_is_its_end() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let error = receive::<Request>(&mut ours).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
