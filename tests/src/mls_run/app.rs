//! One participant: an app with a database of its own, whose keys are in
//! custody. Each change of the group is one transaction of the database.

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use mlskeyd_provider::{CustodyIdentity, CustodyProvider, CustodySigner, Handle};
use openmls::prelude::tls_codec::{Deserialize as _, Serialize as _};
use openmls::prelude::*;
use openmls_sqlite_storage::SqliteStorageProvider;
use openmls_traits::storage::StorageProvider as _;
use rusqlite::Connection;

use super::Plan;
use crate::crypto::{Crypto, capabilities};
use crate::stock::Json;

const GROUP: &[u8] = b"the group";

pub(super) type Provider = CustodyProvider<SqliteStorageProvider<Json, Rc<Connection>>, Crypto>;

/// What a message was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Text(String),
    Proposal,
    Epoch,
    Removed,
}

/// What of an app lives as long as its process.
struct Process {
    /// `None`: no member.
    group: Option<MlsGroup>,
    provider: Provider,
    identity: CustodyIdentity,
    connection: Rc<Connection>,
}

pub(super) struct App {
    name: String,
    database: PathBuf,
    socket: PathBuf,
    plan: Plan,
    process: Option<Process>,
    /// Published, and not used yet.
    key_package: Option<KeyPackage>,
    refusals: Arc<Mutex<Vec<String>>>,
}

impl App {
    /// Starts the app for the first time.
    pub(super) fn install(name: &str, database: PathBuf, socket: PathBuf, plan: &Plan) -> Self {
        let mut connection = Connection::open(&database).unwrap();
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .unwrap();
        SqliteStorageProvider::<Json, &mut Connection>::new(&mut connection)
            .run_migrations()
            .unwrap();
        let mut app = Self {
            name: name.to_owned(),
            database,
            socket,
            plan: plan.clone(),
            process: None,
            key_package: None,
            refusals: Arc::default(),
        };
        let credential = BasicCredential::new(name.as_bytes().to_vec()).into();
        let scheme = plan.suite.signature_algorithm();
        app.provider_over(connection.into())
            .create_identity(name, &credential, scheme)
            .unwrap();
        app.restart();
        app
    }

    fn provider_over(&self, connection: Rc<Connection>) -> Provider {
        let refusals = Arc::clone(&self.refusals);
        let builder = match &self.plan.bus {
            None => CustodyProvider::builder().socket(&self.socket),
            // As in a sandbox: it is to find the way by itself.
            Some(bus) => CustodyProvider::builder()
                .socket(self.socket.with_extension("not-there"))
                .bus(bus),
        };
        builder
            .storage(
                format!("{}/laptop", self.name),
                SqliteStorageProvider::new(connection),
            )
            .crypto(Crypto::default())
            .device(&self.plan.device)
            .require_custody(true)
            .on_refusal(move |failure| refusals.lock().unwrap().push(failure.to_string()))
            .build()
            .unwrap()
    }

    /// Ends the app, and starts it again on its database.
    pub(super) fn restart(&mut self) {
        println!("   {} restarts", self.name);
        let was_member = self.process.as_ref().map(|process| process.group.is_some());
        self.process = None;
        let connection = Rc::new(Connection::open(&self.database).unwrap());
        let provider = self.provider_over(Rc::clone(&connection));
        let identity = provider.identity(&self.name).unwrap();
        self.process = Some(Process {
            group: None,
            provider,
            identity,
            connection,
        });
        self.reload();
        let is_member = self.is_member();
        assert_eq!(was_member.unwrap_or(is_member), is_member, "{}", self.name);
    }

    /// Takes the group from the database.
    fn reload(&mut self) {
        let process = self.process_mut();
        process.group = process.load().filter(MlsGroup::is_active);
    }

    fn process(&self) -> &Process {
        self.process.as_ref().expect("the app runs")
    }

    fn process_mut(&mut self) -> &mut Process {
        self.process.as_mut().expect("the app runs")
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn provider(&self) -> &Provider {
        &self.process().provider
    }

    pub(super) fn is_member(&self) -> bool {
        self.process().group.is_some()
    }

    pub(super) fn group(&self) -> Option<&MlsGroup> {
        self.process().group.as_ref()
    }

    pub(super) fn leaf_index(&self) -> LeafNodeIndex {
        self.group().expect("a member").own_leaf_index()
    }

    /// Does it know of proposals that nobody committed yet?
    pub(super) fn has_proposals(&self) -> bool {
        self.group().expect("a member").has_pending_proposals()
    }

    /// What custody refused, or could not do, since this was asked last.
    pub(super) fn take_refusals(&self) -> Vec<String> {
        std::mem::take(&mut self.refusals.lock().unwrap())
    }

    pub(super) fn key_package(&self) -> Option<&KeyPackage> {
        self.key_package.as_ref()
    }

    pub(super) fn has_key_package(&self) -> bool {
        self.key_package.is_some()
    }

    pub(super) fn publish_key_package(&mut self) {
        println!("   {} publishes a KeyPackage", self.name);
        let suite = self.plan.suite;
        let bundle = self
            .process_mut()
            .transact(|provider, signer, with_key, _| {
                KeyPackage::builder()
                    .leaf_node_capabilities(capabilities(suite))
                    .build(suite, provider, signer, with_key)
                    .unwrap()
            });
        assert!(Handle::from_bytes(bundle.init_private_key()).is_some());
        let published = bundle.into_key_package();
        if let Some(old) = self.key_package.replace(published) {
            self.delete_key_package(&old);
        }
    }

    pub(super) fn withdraw_key_package(&mut self) {
        println!("   {} withdraws its KeyPackage", self.name);
        let key_package = self.key_package.take().expect("one is published");
        self.delete_key_package(&key_package);
    }

    fn delete_key_package(&mut self, key_package: &KeyPackage) {
        self.process_mut().transact(|provider, _, _, _| {
            let reference = key_package.hash_ref(provider.crypto()).unwrap();
            provider.storage().delete_key_package(&reference).unwrap();
        });
    }

    pub(super) fn create(&mut self) {
        let config = MlsGroupCreateConfig::builder()
            .ciphersuite(self.plan.suite)
            .capabilities(capabilities(self.plan.suite))
            .use_ratchet_tree_extension(true)
            .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
            .max_past_epochs(2)
            .build();
        self.process_mut()
            .transact(|provider, signer, with_key, group| {
                let id = GroupId::from_slice(GROUP);
                let made = MlsGroup::new_with_group_id(provider, signer, &config, id, with_key);
                *group = Some(made.unwrap());
            });
    }

    /// Makes a commit, which is pending then.
    pub(super) fn commit(
        &mut self,
        with: impl for<'g> FnOnce(CommitBuilder<'g, Initial>) -> CommitBuilder<'g, Initial>,
    ) -> CommitMessageBundle {
        println!("   {} commits", self.name);
        self.process_mut()
            .change(|provider, signer, group| commit(provider, signer, group, with))
    }

    pub(super) fn merge_pending_commit(&mut self) {
        self.process_mut()
            .change(|provider, _, group| group.merge_pending_commit(provider).unwrap());
    }

    pub(super) fn clear_pending_commit(&mut self) {
        self.process_mut().change(|provider, _, group| {
            group.clear_pending_commit(provider.storage()).unwrap();
        });
    }

    pub(super) fn propose_update(&mut self) -> MlsMessageOut {
        println!("   {} proposes", self.name);
        self.process_mut().change(propose_update)
    }

    pub(super) fn write(&mut self, text: &str) -> MlsMessageOut {
        self.process_mut().change(|provider, signer, group| {
            group
                .create_message(provider, signer, text.as_bytes())
                .unwrap()
        })
    }

    /// Does something, and has the database take it back.
    pub(super) fn roll_back(&mut self, choice: u32) {
        let suite = self.plan.suite;
        let process = self.process();
        let custody = process.provider.transaction();
        let database = process.connection.unchecked_transaction().unwrap();
        do_in_vain(choice, suite, process);
        database.rollback().unwrap();
        drop(custody);
        self.reload();
    }

    /// Does something, and dies before the database commits.
    pub(super) fn die_in_transaction(&mut self, choice: u32) {
        let suite = self.plan.suite;
        let process = self.process();
        let custody = process.provider.transaction();
        let database = process.connection.unchecked_transaction().unwrap();
        do_in_vain(choice, suite, process);
        database.rollback().unwrap();
        // Nobody is left who could say that it was rolled back.
        std::mem::forget(custody);
        self.restart();
    }

    /// Does what a message says.
    pub(super) fn receive(&mut self, message: &MlsMessageOut) -> Received {
        let message = over_the_wire(message).try_into_protocol_message().unwrap();
        let received = self.process_mut().change(|provider, _, group| {
            let processed = group.process_message(provider, message).unwrap();
            match processed.into_content() {
                ProcessedMessageContent::ApplicationMessage(text) => {
                    Received::Text(String::from_utf8(text.into_bytes()).unwrap())
                }
                ProcessedMessageContent::ProposalMessage(proposal) => {
                    let storage = provider.storage();
                    group.store_pending_proposal(storage, *proposal).unwrap();
                    Received::Proposal
                }
                ProcessedMessageContent::StagedCommitMessage(commit) => {
                    let removed = commit.self_removed();
                    group.merge_staged_commit(provider, *commit).unwrap();
                    if removed {
                        Received::Removed
                    } else {
                        Received::Epoch
                    }
                }
                _ => panic!("a message of an unknown kind"),
            }
        });
        if received == Received::Removed {
            println!("   {} is out", self.name);
            self.process_mut().group = None;
        }
        received
    }

    /// Opens a Welcome, and has the database take back what that wrote.
    pub(super) fn open_welcome_in_vain(&mut self, welcome: &MlsMessageOut) {
        println!("   {} opens a Welcome in vain", self.name);
        let process = self.process_mut();
        let custody = process.provider.transaction();
        let database = process.connection.unchecked_transaction().unwrap();
        stage_welcome(&process.provider, welcome);
        database.rollback().unwrap();
        drop(custody);
    }

    pub(super) fn join(&mut self, welcome: &MlsMessageOut) {
        println!("   {} joins", self.name);
        self.process_mut().transact(|provider, _, _, group| {
            let staged = stage_welcome(provider, welcome);
            *group = Some(staged.into_group(provider).unwrap());
        });
        self.key_package = None;
    }

    pub(super) fn group_info(&mut self) -> MlsMessageOut {
        self.process_mut().change(|provider, signer, group| {
            group
                .export_group_info(provider.crypto(), signer, true)
                .unwrap()
        })
    }

    /// Joins by a GroupInfo, without an invitation; answers the commit.
    pub(super) fn join_externally(&mut self, info: &MlsMessageOut) -> MlsMessageOut {
        println!("   {} joins externally", self.name);
        let MlsMessageBodyIn::GroupInfo(info) = over_the_wire(info).extract() else {
            panic!("no GroupInfo");
        };
        // Of a membership that ended.
        self.delete_group();
        let leaf = LeafNodeParameters::builder()
            .with_capabilities(capabilities(self.plan.suite))
            .build();
        self.process_mut()
            .transact(|provider, signer, with_key, group| {
                let (made, bundle) = MlsGroup::external_commit_builder()
                    .with_config(join_config())
                    .build_group(provider, info, with_key)
                    .unwrap()
                    .leaf_node_parameters(leaf)
                    .load_psks(provider.storage())
                    .unwrap()
                    .build(provider.rand(), provider.crypto(), signer, |_| true)
                    .unwrap()
                    .finalize(provider)
                    .unwrap();
                *group = Some(made);
                bundle.into_commit()
            })
    }

    /// Deletes the group, if there is one: active or not.
    pub(super) fn delete_group(&mut self) {
        let process = self.process_mut();
        if let Some(mut stored) = process.load() {
            process.transact(|provider, _, _, group| {
                stored.delete(provider.storage()).unwrap();
                *group = None;
            });
        }
    }

    /// Reads, as any app does when it starts.
    pub(super) fn look_around(&self) {
        self.process().load();
    }
}

impl Process {
    fn load(&self) -> Option<MlsGroup> {
        MlsGroup::load(self.provider.storage(), &GroupId::from_slice(GROUP)).unwrap()
    }

    /// Does `work` in a transaction of the database.
    fn transact<T>(
        &mut self,
        work: impl FnOnce(&Provider, &CustodySigner, CredentialWithKey, &mut Option<MlsGroup>) -> T,
    ) -> T {
        let custody = self.provider.transaction();
        let database = self.connection.unchecked_transaction().unwrap();
        let with_key = self.identity.credential_with_key().unwrap();
        let signer = self.identity.signer();
        let done = work(&self.provider, &signer, with_key, &mut self.group);
        database.commit().unwrap();
        custody.committed();
        done
    }

    /// The same, for a member.
    fn change<T>(&mut self, work: impl FnOnce(&Provider, &CustodySigner, &mut MlsGroup) -> T) -> T {
        self.transact(|provider, signer, _, group| {
            work(provider, signer, group.as_mut().expect("a member"))
        })
    }
}

/// What is taken back then: the group in memory is not to be used any more.
fn do_in_vain(choice: u32, suite: Ciphersuite, process: &Process) {
    let (provider, signer) = (&process.provider, process.identity.signer());
    let mut group = process.load().expect("a member");
    if choice == 0 {
        propose_update(provider, &signer, &mut group);
        return;
    }
    if choice == 1 {
        let with_key = process.identity.credential_with_key().unwrap();
        KeyPackage::builder()
            .leaf_node_capabilities(capabilities(suite))
            .build(suite, provider, &signer, with_key)
            .unwrap();
        return;
    }
    commit(provider, &signer, &mut group, |builder| {
        builder.force_self_update(true)
    });
    if choice == 2 {
        group.merge_pending_commit(provider).unwrap();
    }
}

fn propose_update(
    provider: &Provider,
    signer: &CustodySigner,
    group: &mut MlsGroup,
) -> MlsMessageOut {
    let proposed = group.propose_self_update(provider, signer, LeafNodeParameters::default());
    proposed.unwrap().0
}

fn commit(
    provider: &Provider,
    signer: &CustodySigner,
    group: &mut MlsGroup,
    with: impl for<'g> FnOnce(CommitBuilder<'g, Initial>) -> CommitBuilder<'g, Initial>,
) -> CommitMessageBundle {
    with(group.commit_builder())
        .load_psks(provider.storage())
        .unwrap()
        .build(provider.rand(), provider.crypto(), signer, |_| true)
        .unwrap()
        .stage_commit(provider)
        .unwrap()
}

fn stage_welcome(provider: &Provider, welcome: &MlsMessageOut) -> StagedWelcome {
    let MlsMessageBodyIn::Welcome(welcome) = over_the_wire(welcome).extract() else {
        panic!("no Welcome");
    };
    StagedWelcome::build_from_welcome(provider, &join_config(), welcome)
        .unwrap()
        .replace_old_group()
        .build()
        .unwrap()
}

fn join_config() -> MlsGroupJoinConfig {
    MlsGroupJoinConfig::builder()
        .use_ratchet_tree_extension(true)
        .wire_format_policy(MIXED_CIPHERTEXT_WIRE_FORMAT_POLICY)
        .max_past_epochs(2)
        .build()
}

fn over_the_wire(message: &MlsMessageOut) -> MlsMessageIn {
    MlsMessageIn::tls_deserialize_exact(message.tls_serialize_detached().unwrap()).unwrap()
}
