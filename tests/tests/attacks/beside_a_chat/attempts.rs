//! An attacker who has taken over an app, and all that it tries.

use mlskeyd_protocol::client::{Call, Client};
use mlskeyd_protocol::v1::*;

use super::Company;
use crate::forge::*;
use crate::house::{App, failure};
use crate::suite::SUITE_2 as SUITE;

const BINDING: &str = "rule/binding-by-signing";
const UNKNOWN: &str = "builtin/unknown-structure";
const OPENING: &str = "rule/open-by-binding";
const NO_REMOVALS: &str = "company/no-removals";

/// What is tried, and what refuses it.
pub type Attempt<'a> = (&'a str, &'a str, Box<dyn Fn() -> Result<(), Failure> + 'a>);

/// The attacker, whose keys are on a token of their own.
pub struct Mallory {
    pub app: App,
    /// Another identity of the same owner, which its app has taken over, too.
    other: App,
    epoch: u64,
    /// A leaf key that is bound to a group, and to another one.
    here: GeneratedHpke,
    there: GeneratedHpke,
    ninth: Vec<u8>,
    /// A removal in another group, by its reference: it was signed while it was permitted.
    referred: Vec<u8>,
}

impl Mallory {
    pub fn new(client: impl Fn() -> Client, device: &str) -> Self {
        let app = |name| {
            let placement = Placement {
                device: Some(device.to_owned()),
                tier: None,
            };
            App::placed(client(), SUITE, name, placement)
        };
        let (app, other) = (app("mallory"), app("another"));
        let (here, there) = (app.generate(), app.generate());
        app.signed_leaf(&here, Source::Update, "talk", 0);
        app.signed_leaf(&there, Source::Update, "elsewhere", 0);
        let removal = message(SUITE, "board", 5, Sender::Member(0), &proposal(&remove(3)));
        let signature = app.sign(&removal).unwrap();
        let context = group_context(SUITE, "board", 5);
        let referred = proposal_reference(&removal, &context, &signature);
        let mut mallory = Self {
            app,
            other,
            epoch: 5,
            here,
            there,
            ninth: Vec::new(),
            referred,
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

    /// What somebody else would need to use its keys, as [`stranger`](crate::callers::stranger)
    /// takes it.
    pub fn leaked(&self) -> [String; 5] {
        let content = self.message(self.epoch, &application("hello"));
        [
            self.app.me.key.to_string(),
            self.here.key.to_string(),
            hex::encode(content),
            "mallory".to_owned(),
            "laptop".to_owned(),
        ]
    }

    /// The keys whose ids those are.
    pub fn keys(&self) -> [KeyId; 2] {
        [self.app.me.key, self.here.key]
    }

    /// What its app may do.
    pub fn says_something(&self) -> Result<(), Failure> {
        self.sign(&self.message(self.epoch, &application("hello")))
    }

    pub fn attempts<'a>(&'a self, company: &'a Company) -> Vec<Attempt<'a>> {
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
        let removal = self.message(self.epoch, &proposal(&remove(1)));
        let with_removal = app.signed_leaf(&app.generate(), Source::Commit, "talk", 0);
        let by_reference = app.signed_leaf(&app.generate(), Source::Commit, "board", 0);
        let by_reference = commit_of(&[], &[&self.referred], &by_reference);
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
            signs("a forbidden proposal", NO_REMOVALS, removal.clone()),
            signs(
                "the same in a commit",
                NO_REMOVALS,
                self.message(
                    self.epoch + 1,
                    &commit_of(&[&remove(1)], &[], &with_removal),
                ),
            ),
            signs(
                "the same by reference",
                NO_REMOVALS,
                message(SUITE, "board", 5, Sender::Member(0), &by_reference),
            ),
            (
                "the same after policies that nobody signed",
                NO_REMOVALS,
                Box::new({
                    let removal = removal.clone();
                    move || company.is_replaced_unsigned(|| self.sign(&removal))
                }),
            ),
            (
                "the same after older policies, which were signed",
                NO_REMOVALS,
                Box::new({
                    let removal = removal.clone();
                    move || company.is_replaced_by_older(|| self.sign(&removal))
                }),
            ),
            (
                "more messages than are permitted",
                "company/few-messages",
                Box::new(|| {
                    let text = self.message(1, &application("hello"));
                    self.other.sign(&text).map(drop)
                }),
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
                        placement: Placement {
                            device: Some(app.me.device.clone()),
                            tier: None,
                        },
                    };
                    let made = app.client.create_identity(request, &Call::default());
                    made.map(drop).map_err(failure)
                }),
            ),
        ]
    }
}
