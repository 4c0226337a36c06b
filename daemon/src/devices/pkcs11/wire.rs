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

/// Longest frame, in bytes: the content of an Ed25519 signature goes whole.
const MAX_FRAME: usize = MAX_CONTENT + 64 * 1024;

/// Which token of the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TokenName {
    /// The token with this label (PKCS#11 3.1, 3.2), without its padding.
    Label(String),
    /// The token with this serial number.
    Serial(String),
}

/// What the daemon asks. The first request of a connection is `Open`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Takes a token and logs in.
    Open {
        /// The token.
        token: TokenName,
        /// The user PIN; `None` asks whether one is needed.
        pin: Option<SecretBytes>,
        /// Most private keys that the token may hold, ours and others'.
        max_objects: u32,
    },
    /// Tries what the token can do; the second request of a connection.
    TryOut,
    /// Makes the key that wraps a generation's keys.
    CreateGeneration {
        /// The generation's 16 bytes.
        generation: [u8; 16],
    },
    /// Makes a key pair.
    Generate {
        /// The key's 16 bytes.
        key: [u8; 16],
        /// The generation it goes under.
        generation: [u8; 16],
        /// What it is for.
        algorithm: Algorithm,
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

/// Where a private key is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Place {
    /// An object of the token with the key's id as its CKA_ID.
    Object,
    /// Wrapped by its generation's key.
    Wrapped {
        /// By which mechanism.
        by: Wrapping,
        /// The wrapped key.
        bytes: Vec<u8>,
    },
}

/// A mechanism that wraps keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Wrapping {
    /// CKM_AES_KEY_WRAP_PAD.
    KeyWrapPad,
    /// CKM_AES_KEY_WRAP.
    KeyWrap,
    /// CKM_AES_CBC_PAD, with a random IV.
    CbcPad([u8; 16]),
}

/// A reply to [`Request`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// To `Open`.
    Opened,
    /// To `TryOut`: what the token does with each algorithm.
    Support(Vec<TokenSupport>),
    /// To `Generate`.
    Made {
        /// The public key as MLS writes it.
        public: Vec<u8>,
        /// Where the private key is.
        place: Place,
    },
    /// To `Sign` (64 bytes) and `Agree` (32 bytes).
    Bytes(SecretBytes),
    /// To `CreateGeneration` and `DestroyGeneration`.
    Done,
    /// It did not work.
    Failed(TokenError),
}

/// What a token does with one algorithm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenSupport {
    /// The algorithm.
    pub(crate) algorithm: Algorithm,
    /// How it keeps such keys; `None`: not at all.
    pub(crate) keeping: Option<Keeping>,
    /// Why not better, for a person.
    pub(crate) why: String,
}

/// How a token keeps keys of one algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Keeping {
    /// As objects, not extractable.
    Objects,
    /// Wrapped, and the token refuses to unwrap them extractable.
    Wrapped,
    /// Wrapped, and the token would unwrap them extractable.
    WrappedUnenforced,
}

/// Why a token did not do it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub(crate) enum TokenError {
    /// No such token.
    #[error("the module shows no token {0}")]
    Absent(String),
    /// The token is gone, or its session is.
    #[error("the token is gone ({0})")]
    Gone(String),
    /// It needs a PIN, and none was given.
    #[error("the token waits for its PIN")]
    Locked,
    /// The PIN is wrong.
    #[error("the PIN is wrong")]
    WrongPin,
    /// One more wrong PIN would lock the token.
    #[error("one more wrong PIN would lock the token: log in once with the vendor's tool")]
    LastTry,
    /// Too many wrong PINs.
    #[error("the token has locked its PIN")]
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
    #[error("it holds {0} private keys, as many as `max_objects` allows")]
    Full(u32),
    /// The token refused the peer's key or the wrapped key.
    #[error("the token refused it ({0})")]
    Refused(String),
    /// It failed otherwise.
    #[error("the token failed ({0})")]
    Failed(String),
    /// The request makes no sense to the helper.
    #[error("daemon and helper do not fit")]
    Protocol,
}

/// Writes one message.
///
/// # Errors
/// What the socket says; a message that is too long.
pub(crate) fn send<T: Serialize>(stream: &mut impl Write, message: &T) -> io::Result<()> {
    let frame = frame::encode(message, MAX_FRAME).map_err(io::Error::other)?;
    stream.write_all(&frame)
}

/// Reads one message.
///
/// # Errors
/// What the socket says; a message that is too long, or not one to its last
/// byte.
pub(crate) fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> io::Result<T> {
    let mut prefix = [0; PREFIX];
    stream.read_exact(&mut prefix)?;
    let length = usize::try_from(u32::from_be_bytes(prefix)).map_err(io::Error::other)?;
    if length > MAX_FRAME {
        return Err(io::Error::other("a message is too long"));
    }
    let mut bytes = Zeroizing::new(vec![0; length]);
    stream.read_exact(&mut bytes)?;
    let (message, rest) = postcard::take_from_bytes(&bytes).map_err(io::Error::other)?;
    if rest.is_empty() {
        Ok(message)
    } else {
        Err(io::Error::other("a message has a tail"))
    }
}
