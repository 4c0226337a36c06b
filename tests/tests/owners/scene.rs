//! Two messengers in a group, whose program has no name, and then is the app `wire`.

use std::collections::BTreeSet;

use mlskeyd::audit::{AuditOutcome, Entries, FILE_NAME};
use mlskeyd_tests::books::{self, Named};
use mlskeyd_tests::programs;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Stage};
use sha2::{Digest, Sha256};

/// Alice and bob. The stage comes last: it is removed after its processes.
pub(crate) struct Scene {
    pub(crate) alice: Chat,
    pub(crate) bob: Chat,
    _hub: Hub,
    pub(crate) daemon: Daemon,
    pub(crate) stage: Stage,
}

impl Scene {
    /// They chat, and their keys are those of an app without a name.
    pub(crate) fn new() -> Self {
        let stage = Stage::new(programs!());
        let hub = Hub::start(&stage);
        let daemon = Daemon::start(&stage, &Options::default());
        let [alice, bob] = Chat::pair(&stage, &daemon, &hub);
        let mut scene = Self {
            alice,
            bob,
            _hub: hub,
            daemon,
            stage,
        };
        scene.talk();
        scene.bob.ok("keypackage");
        assert_eq!(scene.owners(), of(&["default"]));
        scene
    }

    /// The configuration in which their program is `wire`, with more about that.
    pub(crate) fn named(&self, more: &str) -> Options {
        let program = &self.stage.programs().chat;
        let digest = hex::encode(Sha256::digest(std::fs::read(program).unwrap()));
        Options {
            extra: format!("[apps.wire]\nexe = {program:?}\nsha256 = \"{digest}\"\n{more}"),
            ..Options::default()
        }
    }

    /// The daemon starts again, so that their program has a name.
    pub(crate) fn name(&mut self, more: &str) {
        let options = self.named(more);
        self.daemon.stop();
        self.daemon.restart(&options);
    }

    /// All kinds of things that take keys: the epoch changes, and both follow.
    pub(crate) fn talk(&mut self) {
        self.alice.ok("update g");
        self.bob.ok("receive");
        self.bob.ok("update g");
        self.alice.ok("receive");
        self.alice.ok("send g are you there?");
        assert_eq!(self.bob.ok("receive").events.len(), 1);
        self.bob.ok("send g I am");
        assert_eq!(self.alice.ok("receive").events.len(), 1);
        let same = self.alice.ok("authenticator g");
        assert_eq!(same, self.bob.ok("authenticator g"));
    }

    /// Claims came along: what the databases name lives, and all else is destroyed when its
    /// time has come.
    pub(crate) fn assert_claims_are_kept(&mut self, options: &Options) {
        let at_once = ["grace", "orphan_grace", "max_unclaimed_age"];
        let sweeping = Options {
            lifetimes: at_once.map(|name| (name, "0s".to_owned())).to_vec(),
            ..options.clone()
        };
        self.daemon.stop();
        self.daemon.restart(&sweeping);
        loop {
            self.alice.ok("authenticator g");
            self.bob.ok("authenticator g");
            let swept = self.daemon.ctl(&["keys", "sweep"]).unwrap();
            if swept["waiting"] == 0 && swept["destroyed"] == 0 {
                break;
            }
        }
        self.daemon.stop();
        self.daemon.restart(options);
        let living = books::living_hpke_keys(&books::keys(&self.daemon).unwrap());
        let named = [&self.alice, &self.bob].map(|chat| Named::read(chat.directory()));
        let needed: BTreeSet<_> = named
            .iter()
            .flat_map(|named| named.groups.union(&named.key_packages))
            .cloned()
            .collect();
        let updates = named.iter().flat_map(|named| &named.updates).cloned();
        let known: BTreeSet<_> = needed.iter().cloned().chain(updates).collect();
        assert!(needed.is_subset(&living), "{needed:?} of {living:?}");
        assert!(living.is_subset(&known), "{living:?} of {known:?}");
    }

    /// This user, as this app.
    pub(crate) fn owner(&self, app: &str) -> String {
        format!("{}/{app}", rustix::process::geteuid().as_raw())
    }

    pub(crate) fn reassign(&self, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let command = ["keys", "reassign", "--yes"];
        self.daemon.ctl(&[&command[..], arguments].concat())
    }

    /// The apps of this user to which anything belongs that is not destroyed.
    pub(crate) fn owners(&self) -> BTreeSet<String> {
        let uid = rustix::process::geteuid().as_raw();
        let mut owners = BTreeSet::new();
        for list in [
            ["keys", "list"],
            ["identities", "list"],
            ["storage", "list"],
        ] {
            let listed = self.daemon.ctl(&list).unwrap();
            for one in listed.as_array().unwrap() {
                if one["owner"]["uid"] == uid {
                    owners.insert(one["owner"]["app"].as_str().unwrap().to_owned());
                }
            }
        }
        owners
    }

    /// What was noted under this name, by whom.
    pub(crate) fn notes(&self, action: &str) -> Vec<(bool, String)> {
        let entries = Entries::open(&self.daemon.state().join(FILE_NAME)).unwrap();
        let records = entries.map(|entry| entry.unwrap().record);
        records
            .filter(|record| record.action == action)
            .map(|record| match record.outcome {
                AuditOutcome::Noted { note } => (record.caller.is_some(), note.into_owned()),
                other => panic!("{other:?}"),
            })
            .collect()
    }

    /// The registry is not taken for one that was put back: nothing that went on record is
    /// missing from the guard's memory.
    pub(crate) fn assert_nothing_forgotten(&self) {
        assert_eq!(self.notes("RegistryRestored"), []);
    }
}

pub(crate) fn of(apps: &[&str]) -> BTreeSet<String> {
    apps.iter().map(|app| (*app).to_owned()).collect()
}
