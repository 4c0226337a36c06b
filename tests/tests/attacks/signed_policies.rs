//! Who can write where policies are rolled out, and has not the key that signs them.

use std::fs;
use std::path::PathBuf;

use mlskeyd::audit::{AuditOutcome, Record};
use mlskeyd_protocol::client::Call;
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Rollout, SshKey};

use crate::forge::*;
use crate::house::{App, House};
use crate::suite::SUITE_1 as SUITE;

const POLICIES: &str = Rollout::NAMESPACE;
const FREEZE: &str = "freeze@mlskeyd";

/// A house whose security team signs what it rolls out.
struct Company {
    house: House,
    rollout: Rollout,
    /// Somebody else.
    mallory: SshKey,
}

impl Company {
    fn new(kind: &str) -> Self {
        let mut house = House::new("");
        house.stop();
        let rollout = Rollout::new(house.path(), &programs!().ctl, kind);
        let mallory = SshKey::new(house.path(), "mallory", "ed25519");
        fs::create_dir(house.path().join("freeze.d")).unwrap();
        let mut company = Self {
            house,
            rollout,
            mallory,
        };
        company.start();
        company
    }

    fn start(&mut self) {
        let configuration = format!(
            "[policy]\nfreeze_dir = {:?}\n{}",
            self.path("freeze.d"),
            self.rollout.configuration(),
        );
        self.house.start(&configuration);
    }

    fn restart(&mut self) {
        self.house.stop();
        self.start();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.house.path().join(name)
    }

    fn reload(&self) -> Result<PoliciesInForce, Failure> {
        let admin = self.house.admin();
        let reloaded = admin.reload_policies(ReloadPolicies {}, &Call::default());
        reloaded.map_err(crate::house::failure)
    }

    fn in_force(&self) -> PoliciesInForce {
        let admin = self.house.admin();
        admin.status(&Call::default()).unwrap().policies
    }

    fn notes(&self, action: &str) -> Vec<String> {
        let noted = |record: &Record| match &record.outcome {
            AuditOutcome::Noted { note } if record.action == action => Some(note.to_string()),
            _ => None,
        };
        self.house.records().iter().filter_map(noted).collect()
    }

    /// A file that freezes or thaws.
    fn order(&self, name: &str, target: &str, serial: u64, action: &str) -> PathBuf {
        let text = format!(
            "target = {target:?}\nserial = {serial}\naction = {action:?}\nreason = \"an incident\"\n"
        );
        let fresh = self.path(name);
        fs::write(&fresh, text).unwrap();
        fresh
    }

    /// Puts a file and its signature there, the signature first.
    fn roll_out(&self, file: &PathBuf) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let there = self.path("freeze.d").join(name);
        let signature = format!("{}.sig", file.display());
        if fs::exists(&signature).unwrap() {
            fs::rename(signature, format!("{}.sig", there.display())).unwrap();
        }
        fs::rename(file, there).unwrap();
    }

    fn order_signed(&self, name: &str, target: &str, serial: u64, action: &str) {
        let file = self.order(name, target, serial, action);
        self.rollout.security.sign(FREEZE, &file);
        self.roll_out(&file);
    }

    fn frozen(&self) -> usize {
        let admin = self.house.admin();
        let frozen = admin.frozen(ReadFrozen {}, &Call::default());
        frozen.unwrap().frozen.len()
    }
}

fn text() -> Vec<u8> {
    let content = application("hello");
    message(SUITE, "talk", 1, Sender::Member(0), &content)
}

const NO_MESSAGES: &str = r#"@id("company/no-messages") @reason("be quiet")
    forbid(principal, action == Action::"SignApplicationMessage", resource);"#;

fn refused_by(app: &App) -> String {
    app.sign(&text()).unwrap_err().policy.unwrap()
}

/// Waits for what the daemon does by itself.
fn until(what: impl Fn() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

/// Does something to a signed set that has no policies.
type Attack = fn(&Company);

const ATTACKS: [(&str, Attack); 11] = [
    ("manifest.toml.sig: it is not there; sign", |company| {
        fs::remove_file(company.rollout.fresh("manifest.toml.sig")).unwrap();
    }),
    (
        "manifest.toml: it is not there, and a signed set was in force",
        |company| {
            fs::remove_file(company.rollout.manifest()).unwrap();
        },
    ),
    ("none of the configured `signers`", |company| {
        company.mallory.sign(POLICIES, &company.rollout.manifest());
    }),
    (
        "for \"freeze@mlskeyd\", not for \"policies@mlskeyd\"",
        |company| {
            company
                .rollout
                .security
                .sign(FREEZE, &company.rollout.manifest());
        },
    ),
    ("it was changed after security@bank", |company| {
        let text = fs::read_to_string(company.rollout.manifest()).unwrap();
        fs::write(
            company.rollout.manifest(),
            text.replace("serial = 8", "serial = 9"),
        )
        .unwrap();
    }),
    ("no signature of OpenSSH's", |company| {
        fs::write(company.rollout.fresh("manifest.toml.sig"), "signed: me").unwrap();
    }),
    (
        "90-company.cedar: it is not as the manifest has it",
        |company| {
            fs::write(company.rollout.fresh("90-company.cedar"), "// x").unwrap();
        },
    ),
    ("91.cedar: the manifest does not list it", |company| {
        fs::write(company.rollout.fresh("91.cedar"), "").unwrap();
    }),
    (
        "90-company.cedar: the manifest lists it, and it is not there",
        |company| {
            fs::remove_file(company.rollout.fresh("90-company.cedar")).unwrap();
        },
    ),
    ("older than what was in force: serial 7, now 5", |company| {
        company.rollout.sign("", 5);
    }),
    (
        "other content than what was in force with the same serial 7",
        |company| {
            company.rollout.sign("", 7);
        },
    ),
];

#[test]
fn what_is_not_signed_as_it_must_be_changes_nothing() {
    let mut company = Company::new("ed25519");
    let app = App::new(&company.house, SUITE, "alice");
    company.rollout.sign(NO_MESSAGES, 7);
    company.rollout.deliver();
    let now = company.reload().unwrap();
    let signed = now.signed.unwrap();
    assert_eq!((signed.serial, now.warnings.len()), (7, 0));
    assert!(signed.signer.starts_with("security@bank (SHA256:"));
    let note = company.notes("PoliciesLoaded").pop().unwrap();
    assert!(
        note.contains(&format!("serial 7, signed by {}", signed.signer)),
        "{note}"
    );
    assert_eq!(refused_by(&app), "company/no-messages");
    let (devices, away) = (company.path("state/devices"), company.path("away"));

    for (why, attack) in ATTACKS {
        company.rollout.sign("", 8);
        attack(&company);
        company.rollout.deliver();
        let failure = company.reload().unwrap_err();
        assert!(failure.message.contains(why), "{failure:?}");
        assert_eq!(refused_by(&app), "company/no-messages", "{why}");
        let is_told =
            |note: &String| note.starts_with("refused, by an administrator") && note.contains(why);
        assert!(company.notes("PoliciesLoaded").iter().any(is_told), "{why}");
        assert!(company.in_force().warnings[0].contains(why));

        // The daemon that starts with it, too, and without a device that could sign.
        company.house.stop();
        fs::rename(&devices, &away).unwrap();
        company.start();
        assert_eq!(refused_by(&app), "company/no-messages", "{why}");
        let now = company.in_force();
        assert_eq!(now.signed.unwrap().serial, 7);
        assert!(now.warnings[0].contains(why), "{why}");
        let note = company.notes("PoliciesLoaded").pop().unwrap();
        assert!(
            note.starts_with("at the start: ") && note.contains(why),
            "{note}"
        );
        company.house.stop();
        fs::rename(&away, &devices).unwrap();
        company.start();
    }
    company.rollout.sign("", 8);
    company.rollout.deliver();
    company.reload().unwrap();
    app.sign(&text()).unwrap();
    company.restart();
    app.sign(&text()).unwrap();
    company.rollout.sign(NO_MESSAGES, 7);
    company.rollout.deliver();
    company.reload().unwrap_err();
    company.restart();
    company.reload().unwrap_err();
    app.sign(&text()).unwrap();
}

#[test]
fn until_a_set_is_signed_the_vendors_policies_are_in_force() {
    let mut company = Company::new("ecdsa");
    let app = App::new(&company.house, SUITE, "alice");
    let unsigned = company.path("policies.d/90-company.cedar");
    fs::write(unsigned, NO_MESSAGES).unwrap();
    let now = company.reload().unwrap();
    assert!(
        now.warnings[0].contains("the vendor's policies alone"),
        "{now:?}"
    );
    app.sign(&text()).unwrap();
    company.restart();
    app.sign(&text()).unwrap();
    let note = company.notes("PoliciesLoaded").pop().unwrap();
    assert!(note.contains("the vendor's policies alone"), "{note}");

    // One that expired years ago is in force all the same.
    company
        .rollout
        .write(NO_MESSAGES, 1, &["--expires", "2020-01-01"]);
    company
        .rollout
        .security
        .sign(POLICIES, &company.rollout.manifest());
    company.rollout.deliver();
    let expired = "serial 1 EXPIRED at 2020-01-01T00:00:00Z";
    for restart in [false, true] {
        if restart {
            company.restart();
        } else {
            let now = company.reload().unwrap();
            assert!(now.warnings[0].contains(expired), "{now:?}");
        }
        assert_eq!(refused_by(&app), "company/no-messages");
        assert!(company.in_force().warnings[0].contains(expired));
        let note = company.notes("PoliciesLoaded").pop().unwrap();
        assert!(
            note.contains("signed by security@bank") && note.contains(expired),
            "{note}"
        );
    }
}

#[test]
fn a_signed_file_freezes_at_once_and_until_somebody_thaws() {
    let mut company = Company::new("ed25519");
    let app = App::new(&company.house, SUITE, "alice");
    app.sign(&text()).unwrap();
    let uid = company.house.keys()[0].owner.uid;
    let user = format!("user {uid}");
    company.order_signed("leaver.toml", &user, 1, "freeze");
    until(|| app.sign(&text()).is_err());
    let failure = app.sign(&text()).unwrap_err();
    assert_eq!(failure.policy.as_deref(), Some("rule/frozen"));
    assert!(failure.message.contains("an incident"), "{failure:?}");
    until(|| !company.notes("Frozen").is_empty());
    let note = company.notes("Frozen").pop().unwrap();
    assert!(
        note.contains("by leaver.toml, serial 1, signed by security@bank"),
        "{note}"
    );
    company.restart();
    assert_eq!(refused_by(&app), "rule/frozen");
    // Who takes it away thaws nothing.
    company.house.stop();
    fs::remove_file(company.path("freeze.d/leaver.toml")).unwrap();
    company.start();
    assert_eq!(refused_by(&app), "rule/frozen");

    // An administrator does, and the same file freezes nothing again.
    company.order_signed("leaver.toml", &user, 1, "freeze");
    let thaw = Thaw {
        target: FreezeTarget::User(uid),
    };
    company.house.admin().thaw(thaw, &Call::default()).unwrap();
    app.sign(&text()).unwrap();
    company.reload().unwrap();
    company.restart();
    app.sign(&text()).unwrap();

    // A newer one does, and a file thaws that, for good.
    company.order_signed("leaver.toml", &user, 2, "freeze");
    until(|| app.sign(&text()).is_err());
    company.order_signed("back.toml", &user, 3, "thaw");
    until(|| app.sign(&text()).is_ok());
    until(|| company.notes("Thawed").len() == 2);
    assert!(
        company
            .notes("Thawed")
            .pop()
            .unwrap()
            .contains("by back.toml, serial 3")
    );
    company.restart();
    app.sign(&text()).unwrap();
    // One that comes late says nothing any more.
    fs::remove_file(company.path("freeze.d/back.toml")).unwrap();
    company.order_signed("late.toml", &user, 2, "freeze");
    company.reload().unwrap();
    app.sign(&text()).unwrap();
    // A daemon that was away learns of it when it starts.
    company.house.stop();
    company.order_signed("all.toml", "all", 1, "freeze");
    company.start();
    assert_eq!(refused_by(&app), "rule/frozen");
}

/// Signs a file that freezes or thaws, or does not.
type Signing = fn(&Company, &PathBuf);

#[test]
fn a_file_that_nobody_signed_freezes_and_thaws_nothing() {
    let company = Company::new("ed25519");
    let app = App::new(&company.house, SUITE, "alice");
    company.order_signed("device.toml", "device other", 1, "freeze");
    until(|| company.frozen() == 1);
    for (action, target) in [("freeze", "all"), ("thaw", "device other")] {
        let sign: [(&str, Signing); 4] = [
            (
                "there is no it.toml.sig; sign it with `ssh-keygen",
                |_, _| {},
            ),
            ("none of the configured", |company, file| {
                company.mallory.sign(FREEZE, file)
            }),
            ("for \"policies@mlskeyd\"", |company, file| {
                company.rollout.security.sign(POLICIES, file);
            }),
            ("it was changed after security@bank", |company, file| {
                company.rollout.security.sign(FREEZE, file);
                let text = fs::read_to_string(file).unwrap();
                fs::write(file, text.replace("serial = 2", "serial = 3")).unwrap();
            }),
        ];
        for (why, sign) in sign {
            let before = company.notes("FreezeFileRefused").len();
            for name in ["it.toml", "it.toml.sig"] {
                let _ = fs::remove_file(company.path("freeze.d").join(name));
            }
            let file = company.order("it.toml", target, 2, action);
            sign(&company, &file);
            company.roll_out(&file);
            let is_told = || {
                let notes = company.notes("FreezeFileRefused");
                notes[before..]
                    .iter()
                    .any(|note| note.starts_with("it.toml: ") && note.contains(why))
            };
            until(is_told);
            // Not again as long as it lies there.
            let told = company.notes("FreezeFileRefused").len();
            company.reload().unwrap();
            assert_eq!(company.notes("FreezeFileRefused").len(), told, "{why}");
            assert_eq!(company.frozen(), 1, "{why}");
            app.sign(&text()).unwrap();
        }
    }
}

/// Who rolls out by writing files one after the other.
#[test]
fn a_signed_set_comes_in_force_by_itself_once_it_is_whole() {
    let company = Company::new("ed25519");
    let app = App::new(&company.house, SUITE, "alice");
    company.rollout.sign(NO_MESSAGES, 1);
    company.rollout.deliver();
    company.reload().unwrap();
    company.rollout.sign("", 2);
    for name in ["90-company.cedar", "manifest.toml", "manifest.toml.sig"] {
        fs::copy(
            company.rollout.fresh(name),
            company.path("policies.d").join(name),
        )
        .unwrap();
    }
    until(|| app.sign(&text()).is_ok());
    assert_eq!(company.in_force().signed.unwrap().serial, 2);
}

#[test]
fn without_signers_signatures_are_not_looked_at() {
    let mut company = Company::new("ed25519");
    company.rollout.sign("", 7);
    company.rollout.deliver();
    company.house.stop();
    let configuration = format!(
        "[policy]\nlocal_dir = {:?}\nfreeze_dir = {:?}",
        company.path("policies.d"),
        company.path("freeze.d"),
    );
    company.house.start(&configuration);
    let app = App::new(&company.house, SUITE, "alice");
    fs::write(company.path("policies.d/91.cedar"), NO_MESSAGES).unwrap();
    assert_eq!(company.reload().unwrap().signed, None);
    assert_eq!(refused_by(&app), "company/no-messages");
    company.order_signed("all.toml", "all", 1, "freeze");
    company.reload().unwrap();
    assert_eq!(company.frozen(), 0);

    // Once they are, what was in force without them is not any more.
    company.restart();
    let warnings = company.in_force().warnings;
    assert!(
        warnings[0].contains("the vendor's policies alone"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("91.cedar: the manifest does not list it"),
        "{warnings:?}"
    );
    assert_eq!(company.frozen(), 1);
    let thaw = Thaw {
        target: FreezeTarget::All,
    };
    company.house.admin().thaw(thaw, &Call::default()).unwrap();
    app.sign(&text()).unwrap();
}
