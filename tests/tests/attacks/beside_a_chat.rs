//! An attacker inside one app tries all there is, again and again, while two others chat with
//! OpenMLS on the same daemon: each attempt is refused by the policy or rule that is there for
//! it, before the token with the attacker's keys, and the chat does not notice.

mod attempts;

use std::fs::{Permissions, set_permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};

use attempts::Mallory;
use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME};
use mlskeyd_protocol::client::{AdminClient, Call, CallError, Client, ClientConfig};
use mlskeyd_protocol::v1::*;
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, FaultyHsm, Hub, Options, Rollout, Stage};

use crate::callers::{STRANGER, ran_as_root, stranger};

const COMPANY: &str = r#"
@id("company/no-removals") @reason("only administrators remove members")
forbid(principal, action == Action::"SignProposalRemove", resource in Identity::"mallory");

// What the attacker's app has had signed until then is beyond this. The others, who have the
// same owner, are other identities.
@id("company/few-messages") @reason("too many")
forbid(principal, action == Action::"SignApplicationMessage", resource in Identity::"another")
when { context.rates.signatures_minute >= 10 };
"#;

/// Ends the chat when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whose policies are signed.
struct Company {
    rollout: Rollout,
    admin: AdminClient,
}

impl Company {
    fn reload(&self) -> Result<PoliciesInForce, CallError> {
        let request = ReloadPolicies {};
        self.admin.reload_policies(request, &Call::default())
    }

    fn roll_out(&self, policies: &str, serial: u64) {
        self.rollout.sign(policies, serial);
        self.rollout.deliver();
        self.reload().unwrap();
    }

    /// Somebody who can write there puts a set without policies in the place of the company's.
    fn is_replaced_unsigned<T>(&self, meanwhile: impl Fn() -> T) -> T {
        self.rollout.write("", 3, &[]);
        self.is_replaced(meanwhile)
    }

    /// The same with one that was signed before.
    fn is_replaced_by_older<T>(&self, meanwhile: impl Fn() -> T) -> T {
        self.rollout.sign("", 1);
        self.is_replaced(meanwhile)
    }

    fn is_replaced<T>(&self, meanwhile: impl Fn() -> T) -> T {
        self.rollout.deliver();
        let reloaded = self.reload();
        let came = meanwhile();
        self.rollout.deliver();
        assert!(reloaded.is_err(), "such a set is in force: {reloaded:?}");
        self.reload().unwrap();
        came
    }
}

#[test]
fn an_attacker_is_refused_by_name_while_others_chat() {
    if ran_as_root("beside_a_chat::an_attacker_is_refused_by_name_while_others_chat") {
        return;
    }
    let stage = Stage::new(programs!());
    let hsm = FaultyHsm::new(&stage);
    hsm.softhsm().add_token("mallory");
    let hub = Hub::start(&stage);
    let rollout = Rollout::new(&stage.path(""), &programs!().ctl, "ed25519");
    let options = Options {
        extra: format!(
            "{}\n[policy]\ncredentials = [\"alice\", \"bob\", \"mallory\", \"another\"]\n{}",
            hsm.device("token", "mallory"),
            rollout.configuration(),
        ),
        ..Options::default()
    };
    let daemon = Daemon::start(&stage, &options);
    // Other users reach the socket, as they do in /run.
    for directory in [stage.path(""), stage.path("daemon")] {
        set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    }
    let config = || ClientConfig::new(daemon.socket(), "attacks");
    let company = Company {
        rollout,
        admin: AdminClient::new(config()),
    };
    company.roll_out("", 1);
    let [mut alice, mut bob] = Chat::pair(&stage, &daemon, &hub);
    let mallory = Mallory::new(|| Client::new(config()), "token");
    let attempts = mallory.attempts(&company);
    company.roll_out(COMPANY, 2);

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
        let before = hsm.key_calls();
        let reaches_the_token = || hsm.key_calls() != before;
        for _ in 0..10 {
            for (what, by, attempt) in &attempts {
                let failure = attempt().expect_err(what);
                assert_eq!(failure.policy.as_deref(), Some(*by), "{what}: {failure:?}");
                assert!(!failure.advice.is_empty(), "{what}: {failure:?}");
                assert!(!reaches_the_token(), "{what}");
            }
            let leaked = mallory.leaked();
            let leaked = leaked.each_ref().map(String::as_str);
            let outcomes = stranger(&stage.path(""), &daemon.socket(), &leaked);
            let is_use = |outcome: &&serde_json::Value| {
                ["sign", "open"].map(Into::into).contains(&outcome["what"])
            };
            let uses: Vec<_> = outcomes.iter().filter(is_use).collect();
            assert_eq!(uses.len(), 2);
            for outcome in uses {
                assert_eq!(outcome["code"], "NotFound", "{outcome}");
            }
            assert!(!reaches_the_token(), "another owner's keys");
        }
        // What is permitted does, so what is not is seen if it does.
        mallory.says_something().unwrap();
        assert!(reaches_the_token());
        drop(end);
        chat.join().unwrap()
    });
    assert!(rounds > 0, "nobody chatted");

    // That somebody else's keys are there is not told to whom they are not for: the rule that
    // kept them is on record.
    let entries = Entries::open(&daemon.state().join(FILE_NAME)).unwrap();
    let records: Vec<_> = entries.map(|entry| entry.unwrap().record).collect();
    for key in mallory.keys() {
        let is_refusal = |record: &&mlskeyd::audit::Record| {
            let by = record.caller.as_ref().map(|caller| caller.owner.uid);
            record.key == Some(key)
                && by == Some(STRANGER)
                && matches!(&record.outcome, AuditOutcome::Denied { policy, .. } if policy == "rule/owner")
        };
        let times = records.iter().filter(is_refusal).count();
        assert!(times >= 10, "{times}");
    }
}
