//! Attacks on the signature key beside honest requests, and the course that
//! they take.

use mlskeyd_protocol::v1::FailureCode;

use crate::forge::*;
use crate::house::{App, House};
use crate::suite::Suite;

/// Something that must not be signed.
struct Attack {
    what: String,
    content: Vec<u8>,
    action: &'static str,
    policy: &'static str,
    /// A part of the reason.
    why: &'static str,
}

pub const RULE: &str = "rule/binding-by-signing";
const UNKNOWN: &str = "builtin/unknown-structure";

/// Attacks, and honest requests with the same keys.
pub struct Scene {
    pub app: App,
    attacks: Vec<Attack>,
    pub honest: Vec<(&'static str, Vec<u8>)>,
}

impl Scene {
    pub fn new(house: &House, suite: Suite) -> Self {
        Self {
            app: App::new(house, suite, "mallory"),
            attacks: Vec::new(),
            honest: Vec::new(),
        }
    }

    pub fn attack(
        &mut self,
        what: impl Into<String>,
        content: Vec<u8>,
        action: &'static str,
        why: &'static str,
    ) {
        self.attacks.push(Attack {
            what: what.into(),
            content,
            action,
            policy: RULE,
            why,
        });
    }

    pub fn unknown(&mut self, what: impl Into<String>, content: Vec<u8>) {
        self.attacks.push(Attack {
            what: what.into(),
            content,
            action: "SignUnknown",
            policy: UNKNOWN,
            why: "no MLS structure",
        });
    }

    /// All attacks are refused before the device, and all honest requests are
    /// served.
    pub fn play(&self, house: &mut House) {
        let before = house.keys();
        self.assert_refused();
        assert_eq!(house.keys(), before, "a refused request changes no key");
        let text = message(
            self.app.suite,
            "talk",
            1,
            Sender::Member(0),
            &application("hello"),
        );
        self.app.sign(&text).unwrap();
        assert_eq!(
            self.app.client.incarnation(),
            0,
            "an attack cost the app its connection"
        );

        // Without its device nothing can be signed, but all is refused as before.
        house.restart_without_device();
        self.assert_refused();
        let failure = self.app.sign(&self.honest[0].1).unwrap_err();
        assert_ne!(failure.code, FailureCode::Denied, "{failure:?}");
        assert_eq!(failure.key, Some(self.app.me.key));
        assert_eq!(failure.device.as_deref(), Some("software"));

        house.restart_with_device();
        self.assert_recorded(house, 2);
        for (what, content) in &self.honest {
            let sign = |when| {
                let signed = self.app.sign(content);
                signed.unwrap_or_else(|e| panic!("{what}, {when}: {e:?}"))
            };
            assert_eq!(sign("first"), sign("again"), "{what}");
        }
        // What is bound now helps no attack, and a replay is one no less.
        for attack in &self.attacks {
            let failure = self.app.sign(&attack.content).unwrap_err();
            assert_eq!(
                failure.code,
                FailureCode::Denied,
                "{}: {failure:?}",
                attack.what
            );
        }
    }

    /// Makes every attack once; each is refused, and says so well.
    fn assert_refused(&self) {
        for attack in &self.attacks {
            let what = &attack.what;
            let Err(failure) = self.app.sign(&attack.content) else {
                panic!("{what} was signed ({})", attack.action);
            };
            assert_eq!(failure.code, FailureCode::Denied, "{what}: {failure:?}");
            assert_eq!(
                failure.policy.as_deref(),
                Some(attack.policy),
                "{what}: {failure:?}"
            );
            assert!(failure.message.contains(attack.why), "{what}: {failure:?}");
            assert!(!failure.advice.is_empty(), "{what}");
            assert_eq!(failure.key, Some(self.app.me.key), "{what}");
            assert_eq!(failure.device.as_deref(), Some("software"), "{what}");
        }
    }

    /// Each refusal is on record, by its action and its reason.
    fn assert_recorded(&self, house: &House, times: u64) {
        for attack in &self.attacks {
            let same = |other: &&Attack| other.action == attack.action && other.why == attack.why;
            let made = u64::try_from(self.attacks.iter().filter(same).count()).unwrap();
            let recorded = house.denials(Some(self.app.me.key), attack.action, attack.why);
            assert_eq!(
                recorded,
                made * times,
                "{} ({})",
                attack.what,
                attack.action
            );
        }
    }
}
