//! Somebody who hears all that passes between the daemon and a TPM: what it must
//! not hear in a chat.

use std::collections::{BTreeMap, BTreeSet};

use aho_corasick::AhoCorasick;
use mlskeyd::devices::tpm2::{Revealed, Tpm2Device};
use mlskeyd::devices::{Algorithm, Device as _, Kem, SecretBytes, Start, StoredKey, Tier};
use mlskeyd::store_key::StoreKey;
use mlskeyd_protocol::client::{AdminClient, Call, ClientConfig};
use mlskeyd_protocol::v1::{KeyPin, RotateIdentity};
use mlskeyd_tests::programs;
use mlskeyd_tests::registry_keys::stored_keys;
use mlskeyd_tests::rig::{Chat, Daemon, Hub, Options, Recovery, Stage, Swtpm, Tap, code};
use mlskeyd_tests::suite::{SUITE_1, Suite};
use tss_esapi::constants::CommandCode;

use super::bystander::Bystander;
use super::lockout::Holder;

/// What is secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Of a sealed key.
    PrivateKey,
    /// What a key of the TPM's agrees on.
    SharedSecret,
    /// With which a key, or the index of the root, is used.
    Authorisation,
    /// Of a key, whether right or wrong.
    Pin,
    /// What generations are encrypted under.
    Root,
    /// The secret of a generation.
    Generation,
    /// The store key, and what follows from it.
    StoreKey,
    /// What was said in the chat.
    Text,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::PrivateKey,
        Self::SharedSecret,
        Self::Authorisation,
        Self::Pin,
        Self::Root,
        Self::Generation,
        Self::StoreKey,
        Self::Text,
    ];
}

/// What to look for.
#[derive(Default)]
struct Secrets(BTreeMap<Vec<u8>, Kind>);

impl Secrets {
    fn add(&mut self, kind: Kind, secret: &[u8]) {
        assert!(
            secret.len() >= 16,
            "long enough to be found only where it is"
        );
        self.0.insert(secret.to_vec(), kind);
    }

    fn of(&self, kind: Kind) -> Vec<&[u8]> {
        let of_kind = self.0.iter().filter(|(_, other)| **other == kind);
        of_kind.map(|(secret, _)| secret.as_slice()).collect()
    }

    /// Those of which half, or more, passed.
    fn heard_by(&self, tap: &Tap) -> Vec<(Kind, &[u8])> {
        let secrets: Vec<_> = self.0.iter().collect();
        let halves = secrets.iter().flat_map(|(secret, _)| {
            let (first, second) = secret.split_at(secret.len() / 2);
            [first, second]
        });
        let search = AhoCorasick::new(halves).unwrap();
        let bytes = tap.bytes();
        let found = search.find_overlapping_iter(&bytes);
        let found: BTreeSet<_> = found.map(|found| found.pattern().as_usize() / 2).collect();
        let secret = |number: usize| (*secrets[number].1, secrets[number].0.as_slice());
        found.into_iter().map(secret).collect()
    }
}

struct Scene {
    daemon: Daemon,
    options: Options,
    tap: Tap,
    tpm: Swtpm,
    stage: Stage,
    secrets: Secrets,
    keys: Vec<(StoredKey, Revealed)>,
}

/// Long enough to be found only where they are.
const PIN: &str = "two pins in the hand of alice";
const WRONG: &str = "one pin in the bush of mallory";

impl Scene {
    fn new() -> Self {
        Self::configured(|_| String::new())
    }

    /// New keys are bound to measurements, and alice has a key with a PIN, which was
    /// once given wrongly.
    fn guarded(suite: Suite) -> Self {
        let recovery = |stage: &Stage| Recovery::new(stage, "recovery").device(&[7]);
        let mut scene = Self::configured(recovery);
        let alice = Holder::new(&scene.daemon, "alice", suite, PIN);
        alice.unlock_by(WRONG).unwrap_err();
        assert!(alice.unlock().unwrap());
        for pin in [PIN, WRONG] {
            scene.secrets.add(Kind::Pin, pin.as_bytes());
        }
        scene
    }

    fn configured(more: impl FnOnce(&Stage) -> String) -> Self {
        let stage = Stage::new(programs!());
        let tpm = Swtpm::new(&stage);
        let tap = Tap::before(&tpm);
        let options = Options {
            extra: Swtpm::device_at("tpm", &tap.tcti()) + &more(&stage),
            default_device: Some("tpm"),
            ..Options::default()
        };
        Self {
            daemon: Daemon::start(&stage, &options),
            options,
            tap,
            tpm,
            stage,
            secrets: Secrets::default(),
            keys: Vec::new(),
        }
    }

    /// A group's life.
    fn chat(&mut self, suite: u16) {
        let hub = Hub::start(&self.stage);
        let start = |name| Chat::start(&self.stage, &self.daemon, &hub, name, suite);
        let mut chats = ["alice", "bob", "carol"].map(start);
        chats.iter_mut().for_each(|chat| {
            chat.ok("keypackage");
        });
        for (who, command) in [
            (0, "create team"),
            (0, "add team bob"),
            (0, "send team Can you hear me, Bob, and nobody else?"),
            (
                1,
                "send team Loud and clear, and I hope that you are alone.",
            ),
            (1, "update team"),
            (1, "propose-update team"),
            (0, "add team carol"),
            (2, "update team"),
            (0, "remove team carol"),
            (2, "external-join team"),
            (2, "send team Here I am again, as if nothing had happened."),
        ] {
            if let Some(text) = command.strip_prefix("send team ") {
                self.secrets.add(Kind::Text, text.as_bytes());
            }
            chats[who].ok(command);
            for (other, chat) in chats.iter_mut().enumerate() {
                if other != who {
                    chat.ok("receive");
                }
            }
        }
        for chat in &mut chats {
            chat.quit();
        }
    }

    /// Gives an identity another key and has the old one destroyed: a new root.
    fn destroy_one(&self) {
        let admin = AdminClient::new(ClientConfig::new(self.daemon.socket(), "sniffer"));
        let identities = admin.identities(&Call::default()).unwrap();
        let mut identities = identities.iter();
        let one = identities.find(|one| one.identity.pin == KeyPin::None);
        let one = one.unwrap();
        let request = RotateIdentity {
            owner: one.owner.clone(),
            name: one.identity.name.clone(),
            placement: Default::default(),
            grace: Some(0),
            pin: None,
            drop_pin: false,
        };
        admin.rotate_identity(request, &Call::default()).unwrap();
        let swept = admin.sweep_all(&Call::default(), |_| {}).unwrap();
        assert_eq!((swept.stuck, swept.waiting), (0, 0));
    }

    /// Stops the daemon and learns all its secrets, past the tap.
    fn learn(&mut self) {
        self.daemon.stop();
        let store_key = StoreKey::load_file(&self.daemon.store_key()).unwrap();
        let written = std::fs::read(self.daemon.store_key()).unwrap();
        self.secrets.add(Kind::StoreKey, &written);
        let files = store_key.subkey("mlskeyd v1 tpm2 files tpm").unwrap();
        self.secrets.add(Kind::StoreKey, files.expose());
        self.secrets.add(Kind::Authorisation, &self.index_auth());

        let directory = self.daemon.state().join("devices/tpm");
        let config = self.tpm.config();
        let mut device =
            Tpm2Device::new("tpm", &config, &directory, &store_key, Start::MustExist).unwrap();
        for key in stored_keys(&self.daemon) {
            if key.pin {
                let (pins, pin) = (device.key_pins().unwrap(), PIN.as_bytes().to_vec());
                pins.unlock_key(&key, &SecretBytes::new(pin), false)
                    .unwrap();
            }
            let revealed = device.reveal(&key).unwrap();
            self.secrets.add(Kind::Authorisation, &revealed.auth);
            self.secrets.add(Kind::Generation, &revealed.generation);
            self.secrets.add(Kind::Root, &revealed.root[8..]);
            self.keys.push((key, revealed));
        }
        drop(device);
        let direct = self.tpm.tcti();
        for (kind, secret) in self.used(&mut Bystander::over(&direct)) {
            self.secrets.add(kind, &secret);
        }
    }

    /// How many secrets of these kinds did not pass the tap.
    fn unheard(&self, kinds: &[Kind]) -> usize {
        let heard = self.secrets.heard_by(&self.tap).into_iter();
        let heard = heard.filter(|(kind, _)| kinds.contains(kind)).count();
        let all = kinds.iter().map(|kind| self.secrets.of(*kind).len());
        all.sum::<usize>() - heard
    }

    fn index_auth(&self) -> [u8; 32] {
        let store_key = StoreKey::load_file(&self.daemon.store_key()).unwrap();
        *store_key
            .subkey("mlskeyd v1 tpm2 index tpm")
            .unwrap()
            .expose()
    }

    /// What the keys give to one who uses them: what was sealed, and what each key
    /// agrees on with each point that was given to any.
    fn used(&self, by: &mut Bystander) -> Vec<(Kind, Vec<u8>)> {
        let mut found = Vec::new();
        let points = self.points();
        for (key, revealed) in &self.keys {
            match (key.tier, key.algorithm) {
                (Tier::Sealed, _) => {
                    found.push((Kind::PrivateKey, by.unseal(revealed).unwrap()));
                }
                (_, Algorithm::Hpke(Kem::DhKemP256)) => {
                    let agreed = points
                        .iter()
                        .map(|point| by.agree(revealed, point).unwrap());
                    found.extend(agreed.map(|secret| (Kind::SharedSecret, secret)));
                }
                _ => by.sign(revealed).unwrap(),
            }
        }
        found
    }

    /// The public keys of peers, which travel as they are.
    fn points(&self) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
        let commands = self.tap.commands(0);
        let agreements = commands.iter();
        let agreements = agreements.filter(|it| code(it) == Some(CommandCode::EcdhZGen));
        agreements.map(|command| point(command)).collect()
    }
}

/// The point of a TPM2_ECDH_ZGen (TPM 2.0 Library, Part 3, 14.5): after the header
/// (10 bytes), the key (4) and the authorisation.
fn point(command: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let number = |at: usize, length: usize| {
        let bytes = &command[at..at + length];
        bytes
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(*byte))
    };
    let x = 18 + number(14, 4) + 2;
    let y = x + 2 + number(x, 2);
    let coordinate = |at: usize| command[at + 2..at + 2 + number(at, 2)].to_vec();
    (coordinate(x), coordinate(y))
}

fn nothing_is_heard(mut scene: Scene, suite: u16) {
    scene.chat(suite);
    scene.learn();
    // All that was made, and what it was used for, did pass here.
    for (_, revealed) in &scene.keys {
        assert!(scene.tap.saw(&revealed.private), "the TPM makes it known");
    }
    let (sealed, shared) = (Kind::PrivateKey, Kind::SharedSecret);
    let counts = [sealed, shared].map(|kind| scene.secrets.of(kind).len());
    let unsealed = scene.tap.commands(0);
    let unsealed = unsealed
        .iter()
        .filter(|it| code(it) == Some(CommandCode::Unseal))
        .count();
    let agreements = scene.points().len();
    println!(
        "{} keys: {counts:?} sealed and agreed on; unsealed {} times, {agreements} agreements",
        scene.keys.len(),
        unsealed,
    );
    let enough = match suite {
        1 => counts[0] == scene.keys.len() && unsealed > 20,
        _ => agreements >= 5 && counts[1] > agreements,
    };
    assert!(enough && scene.keys.len() >= 12);
    if !scene.secrets.of(Kind::Pin).is_empty() {
        // Each of them in a session that has seen the measurements.
        let measured = scene.tap.commands(0);
        let measured = measured.iter();
        let measured = measured.filter(|it| code(it) == Some(CommandCode::PolicyPcr));
        assert!(measured.count() >= unsealed);
        assert!(scene.keys.iter().all(|(_, it)| it.policy.is_some()));
        assert_eq!(scene.keys.iter().filter(|(key, _)| key.pin).count(), 1);
    }
    let roots = scene.secrets.of(Kind::Root).len();
    scene.daemon.restart(&scene.options);
    scene.destroy_one();
    scene.learn();
    assert_eq!(scene.secrets.of(Kind::Root).len(), roots + 1);
    assert_eq!(scene.secrets.heard_by(&scene.tap), []);

    let index = scene.tpm.indices().remove(0);
    let index = u32::from_str_radix(index.trim_start_matches("0x"), 16).unwrap();
    // One who encrypts nothing uses all keys, also the one that was destroyed, whose
    // object and value were learnt before.
    let mut careless = Bystander::over(&scene.tap.tcti());
    scene.used(&mut careless);
    for (key, revealed) in &scene.keys {
        assert!(scene.tap.saw(&revealed.auth), "{key:?}");
    }
    let by_use = [Kind::PrivateKey, Kind::SharedSecret, Kind::Authorisation];
    // All but the value of the index.
    assert_eq!(scene.unheard(&by_use), 1);
    assert!(scene.unheard(&[Kind::Root]) > 0);
    careless.read(index, 40, &scene.index_auth());
    assert_eq!(scene.unheard(&by_use), 0);
    // The one before is in the TPM no more.
    assert_eq!(scene.unheard(&[Kind::Root]), 1);
    for (secret, kind) in &scene.secrets.0 {
        if !by_use.contains(kind) {
            careless.seal(secret, b"");
        }
    }
    assert_eq!(scene.unheard(&Kind::ALL), 0);
}

#[test]
fn nothing_is_heard_of_keys_that_the_tpm_seals() {
    nothing_is_heard(Scene::new(), 1);
}

#[test]
fn nothing_is_heard_of_keys_that_the_tpm_has() {
    nothing_is_heard(Scene::new(), 2);
}

#[test]
fn nothing_is_heard_of_a_pin_nor_of_keys_that_are_bound_to_measurements() {
    nothing_is_heard(Scene::guarded(SUITE_1), 1);
}
