//! Why something did not work, and how an app learns it.
//!
//! OpenMLS's errors are closed: a refused signature surfaces as a
//! `LibraryError`. So every failure is kept for the thread on which it
//! happened, given to a callback, and traced.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(target_os = "linux")]
use mlskeyd_protocol::client::CallError;
use mlskeyd_protocol::v1::{Failure, KeyId, Progress};
use openmls_traits::types::{HpkeConfig, SignatureScheme};

/// Why a request to the daemon failed, and what to do next. Carries no
/// secrets, and is safe to show to a user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProviderError {
    /// The daemon is behind none of the doors.
    #[error(
        "there is no mlskeyd {doors}: install and start it, or name its door; an app in a sandbox \
         has to be allowed to talk to org.mlskeyd.Custody1"
    )]
    NotInstalled {
        /// Where it was looked for, for people.
        doors: String,
    },
    /// There is no mlskeyd for this platform.
    #[error("mlskeyd runs on Linux only: use software keys on this platform")]
    Unsupported,
    /// There is a door, and nobody answers behind it.
    #[error("mlskeyd cannot be reached {reason}; check that it runs, then try again")]
    Unreachable {
        /// Where, and what went wrong there.
        reason: String,
    },
    /// App and daemon have no wire version in common: says which side is to be
    /// updated.
    #[error("{0}")]
    Incompatible(String),
    /// The daemon does not serve this process: the reason, and what to do.
    #[error("mlskeyd refused the connection: {0}")]
    NotServed(String),
    /// The daemon refused the request, or the device failed.
    #[error(transparent)]
    Failure(#[from] Failure),
    /// The deadline passed.
    #[error("mlskeyd did not answer in time: try again, or allow a longer deadline")]
    Timeout,
    /// The app cancelled the request.
    #[error("the request was cancelled")]
    Cancelled,
    /// What answers is not an mlskeyd that keeps to the protocol.
    #[error("mlskeyd broke the protocol: {0}; update app and daemon to the same release")]
    Protocol(String),
    /// Custody has no such signature scheme.
    #[error("no custody for signature scheme {0:?}: use Ed25519 or ECDSA P-256")]
    SchemeUnsupported(SignatureScheme),
    /// Custody has no such HPKE configuration, and software keys are not
    /// allowed.
    #[error("no custody for {0}: use cipher suite 0x0001, 0x0002 or 0x0003")]
    HpkeUnsupported(String),
    /// Custody has no such HPKE configuration, so an init or leaf key was made
    /// in software, in the app's memory. It is told once for each key.
    #[error(
        "a private key was made in software, since there is no custody for {0}: \
         use cipher suite 0x0001, 0x0002 or 0x0003, or require custody"
    )]
    MadeInSoftware(String),
    /// A private HPKE operation that no key in custody does.
    #[error("a key in custody does not do {0}: use a key of the app's own for it")]
    OperationUnsupported(&'static str),
    /// A credential that is neither basic nor X.509, or is malformed.
    #[error("no custody for this credential: use a basic or a well-formed X.509 credential")]
    CredentialUnsupported,
    /// No label of what is no MLS structure.
    #[error("{0:?} is no label: use 1 to 64 printable ASCII characters")]
    NoLabel(String),
    /// The identity is not there.
    #[error("no identity {0:?}: create it first")]
    NoIdentity(String),
    /// The group's own leaf has none of the identity's keys.
    #[error(
        "the group knows none of the keys of identity {0:?}: refresh the identity; if its key \
         has ended, join the group anew by an external commit"
    )]
    NoKeyOfLeaf(String),
}

#[cfg(target_os = "linux")]
impl From<CallError> for ProviderError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotInstalled { doors } => Self::NotInstalled {
                doors: doors.to_string(),
            },
            CallError::Unreachable { reason } => Self::Unreachable { reason },
            CallError::Incompatible { message } => Self::Incompatible(message),
            CallError::Refused(reason) => Self::NotServed(reason),
            CallError::Failure(failure) => Self::Failure(failure),
            CallError::Timeout => Self::Timeout,
            CallError::Cancelled => Self::Cancelled,
            CallError::Protocol(what) => Self::Protocol(what),
        }
    }
}

impl ProviderError {
    pub(crate) fn no_custody_for(config: &HpkeConfig) -> Self {
        Self::HpkeUnsupported(described(config))
    }

    pub(crate) fn made_in_software(config: &HpkeConfig) -> Self {
        Self::MadeInSoftware(described(config))
    }
}

fn described(config: &HpkeConfig) -> String {
    format!("HPKE with {:?}, {:?}, {:?}", config.0, config.1, config.2)
}

/// What was being done when something failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// A signature.
    Sign,
    /// Opening an HPKE ciphertext: a Welcome, or a path secret.
    Open,
    /// Making an HPKE key pair.
    GenerateHpke,
    /// Exporting a secret from an HPKE context.
    Export,
    /// Telling the daemon which keys a storage still needs. The storage itself
    /// is not affected: what could not be said is said again.
    Claim,
    /// A request of the app itself, which has the error as its result, too.
    Request,
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Sign => "sign",
            Self::Open => "open",
            Self::GenerateHpke => "generate HPKE key",
            Self::Export => "export from HPKE context",
            Self::Claim => "claim",
            Self::Request => "request",
        })
    }
}

/// A refusal or failure, as [`last_failure`](crate::CustodyProvider::last_failure)
/// and [`on_refusal`](crate::CustodyProviderBuilder::on_refusal) give it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation}{}: {error}", self.about())]
pub struct CustodyFailure {
    /// What was being done.
    pub operation: Operation,
    /// The key that was asked for, if one was.
    pub key: Option<KeyId>,
    /// Why it failed and what to do next.
    pub error: ProviderError,
}

impl CustodyFailure {
    /// The key, for the text; the daemon's own failures name it.
    fn about(&self) -> String {
        match (&self.key, &self.error) {
            (Some(key), error) if !matches!(error, ProviderError::Failure(_)) => {
                format!(" with key {key}")
            }
            _ => String::new(),
        }
    }
}

pub(crate) type OnProgress = Box<dyn Fn(&Progress) + Send + Sync>;
pub(crate) type OnRefusal = Box<dyn Fn(&CustodyFailure) + Send + Sync>;

/// Tells the app what its provider meets.
pub(crate) struct Watch {
    provider: u64,
    on_progress: Option<OnProgress>,
    on_refusal: Option<OnRefusal>,
}

/// Most providers of which one thread remembers the last failure.
const MAX_REMEMBERED: usize = 16;

thread_local! {
    /// The last failure of each provider on this thread, the newest last.
    static LAST: RefCell<Vec<(u64, CustodyFailure)>> = const { RefCell::new(Vec::new()) };
}

impl Watch {
    pub(crate) fn new(on_progress: Option<OnProgress>, on_refusal: Option<OnRefusal>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            provider: NEXT.fetch_add(1, Ordering::Relaxed),
            on_progress,
            on_refusal,
        }
    }

    pub(crate) fn progress(&self, progress: &Progress) {
        if let Some(on_progress) = &self.on_progress {
            on_progress(progress);
        }
    }

    /// Remembers, traces and reports a failure.
    pub(crate) fn failed(&self, operation: Operation, key: Option<KeyId>, error: ProviderError) {
        tracing::warn!(%operation, key = key.map(tracing::field::display), %error, "custody failed");
        let failure = CustodyFailure {
            operation,
            key,
            error,
        };
        LAST.with_borrow_mut(|last| {
            last.retain(|(provider, _)| *provider != self.provider);
            if last.len() >= MAX_REMEMBERED {
                last.remove(0);
            }
            last.push((self.provider, failure.clone()));
        });
        if let Some(on_refusal) = &self.on_refusal {
            on_refusal(&failure);
        }
    }

    /// Takes what this thread remembers.
    pub(crate) fn take_last(&self) -> Option<CustodyFailure> {
        LAST.with_borrow_mut(|last| {
            let at = last
                .iter()
                .position(|(provider, _)| *provider == self.provider)?;
            Some(last.remove(at).1)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn a_failure_is_answered_once_on_its_own_thread_by_its_own_provider() {
        let (one, other) = (Arc::new(Watch::new(None, None)), Watch::new(None, None));
        one.failed(Operation::Open, None, ProviderError::Cancelled);
        one.failed(Operation::Sign, None, ProviderError::Timeout);
        assert!(other.take_last().is_none());
        let elsewhere = Arc::clone(&one);
        std::thread::spawn(move || assert!(elsewhere.take_last().is_none()))
            .join()
            .unwrap();
        assert_eq!(one.take_last().unwrap().error, ProviderError::Timeout);
        assert!(one.take_last().is_none());
    }

    #[test]
    fn memory_of_failures_is_bounded() {
        let watches: Vec<_> = (0..100).map(|_| Watch::new(None, None)).collect();
        for watch in &watches {
            watch.failed(Operation::Sign, None, ProviderError::Timeout);
        }
        assert!(watches[0].take_last().is_none());
        assert!(watches[99].take_last().is_some());
        LAST.with_borrow(|last| assert!(last.len() < MAX_REMEMBERED));
    }

    #[test]
    fn the_callback_hears_of_each_failure() {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ear = Arc::clone(&heard);
        let watch = Watch::new(
            None,
            Some(Box::new(move |failure| {
                ear.lock().unwrap().push(failure.operation)
            })),
        );
        watch.failed(Operation::Sign, None, ProviderError::Timeout);
        watch.failed(Operation::Open, None, ProviderError::Timeout);
        assert_eq!(*heard.lock().unwrap(), [Operation::Sign, Operation::Open]);
    }
}
