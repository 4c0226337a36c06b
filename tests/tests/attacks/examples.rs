//! The policies that are shipped as examples, as the company's: each refuses what it is there
//! for, by its id, and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use mlskeyd_protocol::v1::*;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{SoftHsm, Stage};
use serde_json::Value;

use crate::forge::*;
use crate::house::{App, House};
use crate::policies::{company, refused_by};
use crate::suite::{SUITE_1, SUITE_2, Suite};

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies/examples")
}

/// The example of this name, as it is shipped.
fn example(name: &str) -> String {
    fs::read_to_string(directory().join(name).with_extension("cedar")).unwrap()
}

/// The same, about a group that the user of this test is in.
fn about_us(name: &str, group: &str) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid());
    let ours = nix::unistd::Group::from_gid(user.unwrap().unwrap().gid);
    let ours = ours.unwrap().unwrap().name;
    let text = example(name);
    let quoted = format!("Group::{group:?}");
    assert!(text.contains(&quoted), "{name} is not about {group}");
    text.replace(&quoted, &format!("Group::{ours:?}"))
}

/// A company without policies, an app in it, and the policies that it gets.
struct Office {
    house: House,
    file: PathBuf,
    app: App,
}

impl Office {
    fn new(suite: Suite) -> Self {
        let (house, file) = company("");
        let app = App::new(&house, suite, "mallory");
        Self { house, file, app }
    }

    fn has(&self, policies: &str) {
        fs::write(&self.file, policies).unwrap();
        self.house.reload();
    }

    fn refused_by(&self, content: &[u8]) -> String {
        refused_by(&self.app, content)
    }

    fn signs(&self, content: &[u8]) {
        self.app.sign(content).unwrap();
    }

    /// A message of a member of this group.
    fn says(&self, group: &str, epoch: u64, body: &[u8]) -> Vec<u8> {
        message(self.app.suite, group, epoch, Sender::Member(0), body)
    }

    fn text(&self) -> Vec<u8> {
        self.says("talk", 1, &application("hello"))
    }

    fn leaf(&self, source: Source) -> Vec<u8> {
        let app = &self.app;
        app.signed_leaf(&app.generate(), source, "talk", 0)
    }

    fn addition(&self) -> Vec<u8> {
        let app = &self.app;
        let (package, signature) = app.key_package(&app.generate(), &app.generate(), ALWAYS, false);
        self.says("talk", 1, &add(&package, &signature))
    }
}

fn approved_suites() {
    let office = Office::new(SUITE_2);
    let other = App::new(&office.house, SUITE_1, "another");
    office.has(&example("approved-suites"));
    office.signs(&office.text());
    let text = message(SUITE_1, "talk", 1, Sender::Member(0), &application("hello"));
    assert_eq!(refused_by(&other, &text), "approved-suites");
}

/// The incident is over: what was a way around it is none any more.
fn break_glass() {
    let office = Office::new(SUITE_1);
    let removal = office.says("talk", 1, &proposal(&remove(1)));
    office.has(&example("break-glass").replace("User::\"bob\"", "App::\"default\""));
    assert_eq!(office.refused_by(&removal), "no-removals");
    office.signs(&office.text());
    office.has(&about_us("break-glass", "service-desk"));
    office.signs(&removal);
}

/// There is no device to consent with.
fn consent_for_adding() {
    let office = Office::new(SUITE_1);
    let addition = office.addition();
    office.has(&example("consent-for-adding"));
    assert_eq!(office.refused_by(&addition), "consent-for-adding");
    office.signs(&office.says("talk", 1, &proposal(&remove(1))));
}

fn hardware_for_traders() {
    let stage = Stage::new(programs!());
    let softhsm = SoftHsm::new(&stage);
    softhsm.add_token("traders");
    let (mut house, file) = company("");
    house.stop();
    house.start(&format!(
        "pkcs11_helper = {:?}\n[[devices]]\nname = \"software\"\nkind = \"software\"\n\n{}\n\
         [policy]\nlocal_dir = {:?}",
        programs!().pkcs11,
        softhsm.device("token", "traders"),
        file.parent().unwrap(),
    ));
    let on = |name: &str, device: &str| {
        let placement = Placement {
            device: Some(device.to_owned()),
            tier: None,
        };
        App::placed(house.client(), SUITE_2, name, placement)
    };
    let (soft, hard) = (on("soft", "software"), on("hard", "token"));
    let text = message(SUITE_2, "talk", 1, Sender::Member(0), &application("hello"));
    fs::write(&file, about_us("hardware-for-traders", "traders")).unwrap();
    house.reload();
    hard.sign(&text).unwrap();
    hard.generate();
    assert_eq!(refused_by(&soft, &text), "hardware-for-traders");
    let refused = soft.try_generate().unwrap_err();
    assert_eq!(refused.policy.as_deref(), Some("new-hardware-for-traders"));
}

fn no_external_joins() {
    let office = Office::new(SUITE_1);
    let leaf = office.leaf(Source::Commit);
    let join = external_commit(b"encapsulated", &leaf);
    let join = message(SUITE_1, "talk", 1, Sender::NewMemberCommit, &join);
    let info = |extensions: &[u8]| {
        let context = group_context(SUITE_1, "talk", 1);
        group_info_tbs(&context, extensions, 0)
    };
    office.has(&example("no-external-joins"));
    assert_eq!(office.refused_by(&join), "no-external-joins");
    let open = info(&extension(4, &opaque(&[9; 32])));
    assert_eq!(office.refused_by(&open), "no-open-groups");
    office.signs(&office.says("talk", 1, &commit(&leaf)));
    office.signs(&info(&[]));
}

fn one_app_only() {
    let office = Office::new(SUITE_1);
    office.has(&example("one-app-only"));
    assert_eq!(office.refused_by(&office.text()), "one-app-only");
    office.has(&example("one-app-only").replace("App::\"wire\"", "App::\"default\""));
    office.signs(&office.text());
}

fn one_commit_per_epoch() {
    let office = Office::new(SUITE_1);
    office.has(&example("one-commit-per-epoch"));
    let commits = |epoch| office.says("talk", epoch, &commit(&office.leaf(Source::Commit)));
    let first = commits(1);
    office.signs(&first);
    assert_eq!(office.refused_by(&commits(1)), "one-commit-per-epoch");
    // What was signed may be signed again.
    office.signs(&first);
    office.signs(&commits(2));
}

fn read_only_group() {
    let office = Office::new(SUITE_1);
    let text = office.says("announcements", 1, &application("hello"));
    office.has(&example("read-only-group"));
    assert_eq!(office.refused_by(&text), "read-only-group");
    let app = &office.app;
    let leaf = app.signed_leaf(&app.generate(), Source::Update, "announcements", 0);
    office.signs(&office.says("announcements", 1, &update(&leaf)));
    office.signs(&office.text());
    office.has(&about_us("read-only-group", "press-office"));
    office.signs(&text);
}

/// Whatever the time is: the record of the request tells which one it was, and no hour is
/// late enough for the same policy with another hour.
fn working_hours() {
    let office = Office::new(SUITE_1);
    office.has(&example("working-hours"));
    office.signs(&office.text());
    let policy = about_us("working-hours", "contractors");
    office.has(&policy);
    let signed = office.app.sign(&office.text());
    let records = office.house.records();
    let is_text = |record: &&mlskeyd::audit::Record| record.action == "SignApplicationMessage";
    let facts = records.iter().rev().find(is_text).unwrap().facts.as_ref();
    let facts: Value = serde_json::from_str(facts.unwrap()).unwrap();
    let now = |what: &str| facts["context"]["now"][what].as_u64().unwrap();
    let is_on_duty = now("weekday") <= 5 && (7..19).contains(&now("hour"));
    assert_eq!(signed.is_ok(), is_on_duty, "{facts}");
    let never = policy.replace("now.hour >= 7", "now.hour >= 24");
    assert_ne!(never, policy);
    office.has(&never);
    assert_eq!(office.refused_by(&office.text()), "working-hours");
}

macro_rules! examples {
    ($($example:ident),+ $(,)?) => {
        mod refuses_what_it_is_for_and_nothing_else {
            $(#[test] fn $example() { super::$example(); })+
        }

        #[test]
        fn each_example_is_tried() {
            let files = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
            let policies = files.filter(|file| file.extension().is_some_and(|it| it == "cedar"));
            let names = policies.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned());
            let tried = [$(stringify!($example)),+].map(|it| it.replace('_', "-"));
            assert_eq!(names.collect::<BTreeSet<_>>(), BTreeSet::from(tried));
        }
    };
}

examples!(
    approved_suites,
    break_glass,
    consent_for_adding,
    hardware_for_traders,
    no_external_joins,
    one_app_only,
    one_commit_per_epoch,
    read_only_group,
    working_hours,
);
