//! An attacker inside one app tries all there is, again and again, while two others chat with
//! OpenMLS on the same daemon: each attempt is refused by the policy or rule that is there for
//! it, and the chat does not notice.

use std::sync::atomic::{AtomicBool, Ordering};

use mlskeyd_protocol::client::{Call, Client, ClientConfig};
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};

use crate::forge::*;
use crate::house::{App, failure};
use crate::suite::SUITE_1 as SUITE;

const BINDING: &str = "rule/binding-by-signing";
const UNKNOWN: &str = "builtin/unknown-structure";
const OPENING: &str = "rule/open-by-binding";

const COMPANY: &str = r#"
@id("company/no-removals") @reason("only administrators remove members")
forbid(principal, action == Action::"SignProposalRemove", resource in Identity::"mallory");
"#;

/// Ends the chat when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What is tried, and what refuses it.
type Attempt<'a> = (&'a str, &'a str, Box<dyn Fn() -> Result<(), Failure> + 'a>);

struct Mallory {
    app: App,
    /// Another identity of the same owner, which its app has taken over, too.
    other: App,
    epoch: u64,
    /// A leaf key that is bound to a group, and to another one.
    here: GeneratedHpke,
    there: GeneratedHpke,
    ninth: Vec<u8>,
}

impl Mallory {
    fn new(client: impl Fn() -> Client) -> Self {
        let app = App::at(client(), SUITE, "mallory");
        let other = App::at(client(), SUITE, "another");
        let (here, there) = (app.generate(), app.generate());
        app.signed_leaf(&here, Source::Update, "talk", 0);
        app.signed_leaf(&there, Source::Update, "elsewhere", 0);
        let mut mallory = Self {
            app,
            other,
            epoch: 5,
            here,
            there,
            ninth: Vec::new(),
        };
        for _ in 0..8 {
            mallory.app.sign(&mallory.new_commit()).unwrap();
        }
        mallory.ninth = mallory.new_commit();
        mallory
    }

    fn message(&self, epoch: u64, body: &[u8]) -> Vec<u8> {
        message(SUITE, "talk", epoch, Sender::Member(0), body)
    }

    fn new_commit(&self) -> Vec<u8> {
        let leaf = self
            .app
            .signed_leaf(&self.app.generate(), Source::Commit, "talk", 0);
        self.message(self.epoch, &commit(&leaf))
    }

    fn sign(&self, content: &[u8]) -> Result<(), Failure> {
        self.app.sign(content).map(drop)
    }

    /// A leaf of the app's own making, in the place where one of custody should be.
    fn own_leaf(&self, source: Source, group: &str) -> Vec<u8> {
        let leaf = self.app.leaf(&self.app.own_hpke(1), source);
        self.app.self_signed(&leaf, group, 0)
    }

    fn attempts(&self) -> Vec<Attempt<'_>> {
        let app = &self.app;
        let text = |epoch| self.message(epoch, &application("hello"));
        let signs = |what, by, content: Vec<u8>| -> Attempt<'_> {
            (what, by, Box::new(move || self.sign(&content)))
        };
        let mut new_name = app.leaf(&self.here, Source::Update);
        new_name.credential = credential("chairman@bank.example");
        let mut swapped = app.leaf(&self.here, Source::Update);
        swapped.signature_key = app.own.public.clone();
        let mine = app.leaf(&app.own_hpke(1), ALWAYS);
        let honest = self.message(self.epoch, &application("hello"));
        let (init, leaf) = (app.generate(), app.generate());
        let signed = app.signed_leaf(&leaf, ALWAYS, "", 0);
        let own_init = app.own_hpke(2).public_key;
        let in_a_package = self.own_leaf(ALWAYS, "");
        let added = key_package(SUITE, &init.public_key, &in_a_package, false);
        let removal = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
        vec![
            signs("a new credential", BINDING, new_name.tbs("talk", 0)),
            signs("a swapped signature key", BINDING, swapped.tbs("talk", 0)),
            (
                "another identity",
                BINDING,
                Box::new(|| {
                    let leaf = self.other.leaf(&self.here, Source::Update);
                    self.sign(&leaf.tbs("talk", 0))
                }),
            ),
            signs("an own leaf key, alone", BINDING, mine.tbs("", 0)),
            signs(
                "an own leaf in a KeyPackage",
                BINDING,
                key_package_tbs(&key_package(SUITE, &init.public_key, &in_a_package, false)),
            ),
            signs(
                "an own init key in a KeyPackage",
                BINDING,
                key_package_tbs(&key_package(SUITE, &own_init, &signed, false)),
            ),
            signs(
                "an own leaf in an Update",
                BINDING,
                self.message(self.epoch, &update(&self.own_leaf(Source::Update, "talk"))),
            ),
            signs(
                "an own leaf in a commit",
                BINDING,
                self.message(
                    self.epoch + 1,
                    &commit(&self.own_leaf(Source::Commit, "talk")),
                ),
            ),
            signs(
                "an own leaf in an external commit",
                BINDING,
                message(
                    SUITE,
                    "talk",
                    self.epoch + 1,
                    Sender::NewMemberCommit,
                    &external_commit(b"encapsulated", &self.own_leaf(Source::Commit, "talk")),
                ),
            ),
            signs(
                "an own leaf in an external Add",
                BINDING,
                message(
                    SUITE,
                    "talk",
                    self.epoch,
                    Sender::NewMemberProposal,
                    &add(&added, &app.own.sign(&key_package_tbs(&added))),
                ),
            ),
            signs("a leaf key of another group", BINDING, {
                let leaf = app.leaf(&self.there, Source::Update);
                leaf.tbs("talk", 0)
            }),
            signs("an older epoch", "no-rollback", text(self.epoch - 1)),
            signs("an absurd epoch", "no-epoch-jump", text(u64::MAX / 2)),
            signs(
                "one commit too many",
                "commits-per-epoch",
                self.ninth.clone(),
            ),
            signs(
                "a forbidden proposal",
                "company/no-removals",
                self.message(self.epoch, &proposal(&remove(1))),
            ),
            signs(
                "the same in a commit",
                "company/no-removals",
                self.message(self.epoch + 1, &commit_of(&[&remove(1)], &[], &removal)),
            ),
            signs("a made-up label", UNKNOWN, labelled("FriendlyTBS", &honest)),
            signs(
                "a truncated structure",
                UNKNOWN,
                honest[..honest.len() - 1].to_vec(),
            ),
            signs(
                "a doubled structure",
                UNKNOWN,
                [&honest[..], &honest].concat(),
            ),
            signs(
                "a targeted message",
                "rule/not-permitted",
                targeted_message("talk", 5, 0, 1),
            ),
            (
                "a foreign ciphertext",
                OPENING,
                Box::new(|| {
                    let context = group_context(SUITE, "elsewhere", 1);
                    let info = labelled("UpdatePathNode", &context);
                    app.open(&self.here, &info, &SUITE.path_secret()).map(drop)
                }),
            ),
            (
                "somebody else's name",
                "own-credential",
                Box::new(|| {
                    let request = CreateIdentity {
                        name: "chairman".to_owned(),
                        credential: Credential::Basic(Bytes::from(b"chairman".as_slice())),
                        scheme: SUITE.scheme,
                        placement: Placement::default(),
                    };
                    let made = app.client.create_identity(request, &Call::default());
                    made.map(drop).map_err(failure)
                }),
            ),
        ]
    }
}

#[test]
fn an_attacker_is_refused_by_name_while_others_chat() {
    let stage = Stage::new(programs!());
    let policies = stage.path("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("90.cedar"), COMPANY).unwrap();
    let hub = Hub::start(&stage);
    let options = Options {
        extra: format!(
            "[policy]\nlocal_dir = {:?}\ncredentials = [\"alice\", \"bob\", \"mallory\", \"another\"]",
            policies.display().to_string()
        ),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    let mut alice = Chat::start(&stage, &daemon, &hub, "alice", 1);
    let mut bob = Chat::start(&stage, &daemon, &hub, "bob", 1);
    bob.ok("keypackage");
    alice.ok("create g");
    alice.ok("add g bob");
    bob.ok("receive");
    let mallory = Mallory::new(|| Client::new(ClientConfig::new(daemon.socket(), "attacks")));
    let attempts = mallory.attempts();

    let is_over = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let chat = scope.spawn(|| {
            let mut rounds = 0;
            while !is_over.load(Ordering::Relaxed) {
                alice.ok("send g hello");
                bob.ok("receive");
                bob.ok("update g");
                alice.ok("receive");
                rounds += 1;
            }
            rounds
        });
        // Also if something is not refused: else the chat went on for ever.
        let end = End(&is_over);
        for _ in 0..10 {
            for (what, by, attempt) in &attempts {
                let failure = attempt().expect_err(what);
                assert_eq!(failure.policy.as_deref(), Some(*by), "{what}: {failure:?}");
                assert!(!failure.advice.is_empty(), "{what}: {failure:?}");
            }
        }
        drop(end);
        chat.join().unwrap()
    });
    assert!(rounds > 0, "nobody chatted");
}
