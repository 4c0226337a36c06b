//! An app that makes KeyPackages, joins, commits and leaves; and what it may be
//! told when that does not work.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mlskeyd_protocol::v1::{Failure, FailureCode, Interaction};
use mlskeyd_provider::{CustodyFailure, CustodyIdentity, CustodyProvider, ProviderError};
use openmls::prelude::*;
use openmls_basic_credential::SignatureKeyPair;
use openmls_memory_storage::MemoryStorage;
use openmls_rust_crypto::OpenMlsRustCrypto;

/// HPKE keys of P-256 are wrapped, so that there is something to wrap.
const SUITE: Ciphersuite = Ciphersuite::MLS_128_DHKEMP256_AES128GCM_SHA256_P256;

/// What a request may fail with while a device is in trouble.
const MAY_BE: [FailureCode; 5] = [
    FailureCode::DeviceAbsent,
    FailureCode::DeviceFailed,
    FailureCode::Busy,
    FailureCode::Timeout,
    FailureCode::LimitReached,
];

/// What an app has done.
#[derive(Default)]
pub struct Tally {
    /// Rounds that are complete.
    pub rounds: AtomicU64,
    /// Requests that succeeded.
    pub done: AtomicU64,
    /// Requests that failed.
    pub failed: AtomicU64,
    /// It asks for nothing any more.
    pub rests: AtomicBool,
}

impl Tally {
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    pub fn done(&self) -> u64 {
        self.done.load(Ordering::SeqCst)
    }

    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::SeqCst)
    }

    pub fn rests(&self) -> bool {
        self.rests.load(Ordering::SeqCst)
    }
}

/// An app.
pub struct App {
    provider: CustodyProvider<MemoryStorage>,
    identity: CustodyIdentity,
    /// All that its provider met.
    failures: Arc<Mutex<Vec<CustodyFailure>>>,
    tally: Arc<Tally>,
    /// It should end: what fails is not repeated.
    end: Arc<AtomicBool>,
    friend: Friend,
}

impl App {
    pub fn new(socket: &Path, name: &str, device: &str, end: &Arc<AtomicBool>) -> Self {
        let failures: Arc<Mutex<Vec<CustodyFailure>>> = Arc::default();
        let told = Arc::clone(&failures);
        let provider = CustodyProvider::builder()
            .socket(socket)
            .memory_storage(MemoryStorage::default())
            .device(device)
            .require_custody(true)
            // No person is needed for any of this, so none is waited for.
            .interaction(Interaction::Never)
            .on_refusal(move |failure| told.lock().unwrap().push(failure.clone()))
            .build()
            .unwrap();
        let credential = BasicCredential::new(name.as_bytes().to_vec()).into();
        let scheme = SUITE.signature_algorithm();
        let identity = provider.create_identity(name, &credential, scheme).unwrap();
        Self {
            provider,
            identity,
            failures,
            tally: Arc::default(),
            end: Arc::clone(end),
            friend: Friend::new(),
        }
    }

    pub fn tally(&self) -> Arc<Tally> {
        Arc::clone(&self.tally)
    }

    /// Does rounds until it should `stop`; then it rests, with a KeyPackage that
    /// nobody used, until it should end.
    pub fn live(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::SeqCst) {
            if self.round().is_none() {
                return;
            }
        }
        if self.key_package().is_some() {
            self.tally.rests.store(true, Ordering::SeqCst);
        }
        while !self.end.load(Ordering::SeqCst) {
            std::thread::park();
        }
    }

    /// From a KeyPackage to the end of a group; whatever fails is repeated.
    /// `None`: it should end.
    fn round(&self) -> Option<()> {
        let package = self.key_package()?;
        let (mut theirs, welcome) = self.friend.invite(package);
        let mut ours = self.insist(|| self.join(&welcome))?;
        assert_same_epoch(&ours, &theirs);
        let commit = self.insist(|| self.commit(&mut ours))?;
        self.friend.receive(&mut theirs, commit);
        self.at_once(|| ours.merge_pending_commit(&self.provider))
            .unwrap();
        assert_same_epoch(&ours, &theirs);
        self.assert_nothing_failed();
        self.at_once(|| ours.delete(self.provider.storage()))
            .unwrap();
        self.assert_nothing_failed();
        self.tally.rounds.fetch_add(1, Ordering::SeqCst);
        Some(())
    }

    /// A KeyPackage that others accept.
    pub fn key_package(&self) -> Option<KeyPackage> {
        let package = self.insist(|| {
            let with_key = self.identity.credential_with_key().unwrap();
            let signer = self.identity.signer();
            KeyPackage::builder()
                .build(SUITE, &self.provider, &signer, with_key)
                .map(|bundle| bundle.key_package().clone())
                .map_err(|error| format!("{error:?}"))
        })?;
        let received = KeyPackageIn::from(package.clone());
        received
            .validate(self.provider.crypto(), ProtocolVersion::Mls10)
            .unwrap();
        Some(package)
    }

    fn join(&self, welcome: &Welcome) -> Result<MlsGroup, String> {
        let config = MlsGroupJoinConfig::builder()
            .use_ratchet_tree_extension(true)
            .build();
        StagedWelcome::new_from_welcome(&self.provider, &config, welcome.clone(), None)
            .map_err(|error| format!("{error:?}"))?
            .into_group(&self.provider)
            .map_err(|error| format!("{error:?}"))
    }

    fn commit(&self, group: &mut MlsGroup) -> Result<MlsMessageOut, String> {
        let parameters = LeafNodeParameters::default();
        group
            .self_update(&self.provider, &self.identity.signer(), parameters)
            .map(CommitMessageBundle::into_commit)
            .map_err(|error| format!("{error:?}"))
    }

    /// Does something as one change of the storage, between whose parts no key is
    /// without a record: without grace it would die. The storage is memory, and
    /// keeps what was changed before a failure.
    fn at_once<T>(&self, change: impl FnOnce() -> T) -> T {
        let transaction = self.provider.transaction();
        let result = change();
        transaction.committed();
        result
    }

    /// The storage does not need the device.
    fn assert_nothing_failed(&self) {
        assert_eq!(*self.failures.lock().unwrap(), []);
    }

    /// Does it until it succeeds. Each failure must be one that tells what is
    /// the matter.
    fn insist<T>(&self, mut request: impl FnMut() -> Result<T, String>) -> Option<T> {
        loop {
            let result = self.at_once(&mut request);
            let failures = std::mem::take(&mut *self.failures.lock().unwrap());
            failures.iter().for_each(assert_clear);
            match result {
                Ok(done) => {
                    self.tally.done.fetch_add(1, Ordering::SeqCst);
                    return Some(done);
                }
                Err(error) => {
                    assert!(!failures.is_empty(), "it failed without a reason: {error}");
                    self.tally.failed.fetch_add(1, Ordering::SeqCst);
                }
            }
            if self.end.load(Ordering::SeqCst) {
                return None;
            }
            // As a patient app does, lest eight of them do nothing but ask.
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The failure is the device's, and says so.
fn assert_clear(failure: &CustodyFailure) {
    match &failure.error {
        ProviderError::Failure(of_daemon) if is_of_device(of_daemon) => {}
        ProviderError::Timeout => {}
        _ => panic!("{failure:?}"),
    }
}

/// The daemon's half of that.
pub fn is_of_device(failure: &Failure) -> bool {
    let text = failure.to_string();
    let lies = ["destroyed", "cannot come back", "missing"];
    MAY_BE.contains(&failure.code)
        && failure.message.contains("device hsm")
        && !failure.advice.is_empty()
        && !lies.iter().any(|lie| text.contains(lie))
}

fn assert_same_epoch(ours: &MlsGroup, theirs: &MlsGroup) {
    assert_eq!(ours.epoch(), theirs.epoch());
    assert_eq!(
        ours.epoch_authenticator().as_slice(),
        theirs.epoch_authenticator().as_slice()
    );
}

/// Somebody with keys in software, who invites the app.
struct Friend {
    provider: OpenMlsRustCrypto,
    signer: SignatureKeyPair,
}

impl Friend {
    fn new() -> Self {
        Self {
            provider: OpenMlsRustCrypto::default(),
            signer: SignatureKeyPair::new(SUITE.signature_algorithm()).unwrap(),
        }
    }

    /// A group of both, and the Welcome to it.
    fn invite(&self, package: KeyPackage) -> (MlsGroup, Welcome) {
        let with_key = CredentialWithKey {
            credential: BasicCredential::new(b"friend".to_vec()).into(),
            signature_key: self.signer.public().into(),
        };
        let mut group = MlsGroup::builder()
            .ciphersuite(SUITE)
            .use_ratchet_tree_extension(true)
            .build(&self.provider, &self.signer, with_key)
            .unwrap();
        let (_, welcome, _) = group
            .add_members(&self.provider, &self.signer, &[package])
            .unwrap();
        group.merge_pending_commit(&self.provider).unwrap();
        let MlsMessageBodyOut::Welcome(welcome) = welcome.body().clone() else {
            panic!("no Welcome");
        };
        (group, welcome)
    }

    /// Checks the app's signature, and follows its commit.
    fn receive(&self, group: &mut MlsGroup, commit: MlsMessageOut) {
        let message = MlsMessageIn::from(commit)
            .try_into_protocol_message()
            .unwrap();
        let processed = group.process_message(&self.provider, message).unwrap();
        let ProcessedMessageContent::StagedCommitMessage(commit) = processed.into_content() else {
            panic!("no commit");
        };
        group.merge_staged_commit(&self.provider, *commit).unwrap();
    }
}
