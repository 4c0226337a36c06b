use std::os::unix::fs::PermissionsExt;

use secrecy::SecretBox;

use super::super::{FILE, LABEL};
use super::*;
use crate::signers::tests::Key;
use crate::store_key::{KEY_LEN, StoreKey};

const USER: FreezeTarget = FreezeTarget::User(1000);

struct Bench {
    dir: tempfile::TempDir,
    key: Key,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("freeze.d")).unwrap();
        Self {
            dir,
            key: Key::new(1),
        }
    }

    fn open(&self) -> Frozen {
        let key = StoreKey::new(SecretBox::new(Box::new([7; KEY_LEN])));
        let key = key.subkey(LABEL).unwrap();
        let signers = Signers::parse([self.key.line().as_str()]).unwrap();
        let frozen = Frozen::open(self.dir.path().join(FILE), key);
        frozen.with_files(self.dir.path().join("freeze.d"), Some(signers))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("freeze.d").join(name)
    }

    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn put(&self, name: &str, text: &str) {
        self.write(name, text.as_bytes());
        let signature = self.key.sign(NAMESPACE, text.as_bytes());
        self.write(&format!("{name}.sig"), signature.as_bytes());
    }

    fn order(&self, name: &str, target: &str, serial: u64, action: &str) {
        self.put(
            name,
            &format!(
                "target = {target:?}\nserial = {serial}\naction = {action:?}\nreason = \"leaver\""
            ),
        );
    }
}

fn actions(frozen: &Frozen) -> Vec<&'static str> {
    let notes = frozen.look_at_files();
    notes.into_iter().map(|(action, _)| action).collect()
}

#[test]
fn a_file_freezes_once_and_for_good() {
    let bench = Bench::new();
    let frozen = bench.open();
    assert_eq!(actions(&frozen), [""; 0]);
    bench.put(
        "a.toml",
        "target = \"user 1000\"\nserial = 1\nreason = \"leaver\"",
    );
    let notes = frozen.look_at_files();
    assert_eq!(notes[0].0, "Frozen");
    assert!(
        notes[0]
            .1
            .starts_with("user 1000: leaver; by a.toml, serial 1, signed by security@bank")
    );
    assert_eq!(actions(&frozen), [""; 0]);
    fs::remove_file(bench.path("a.toml")).unwrap();
    assert_eq!(actions(&frozen), [""; 0]);
    assert!(frozen.has(&USER) && bench.open().has(&USER));

    // Not again after a thaw, by no daemon, while the same file lies there.
    bench.put(
        "a.toml",
        "target = \"user 1000\"\nserial = 1\nreason = \"leaver\"",
    );
    frozen.thaw(&USER).unwrap();
    for frozen in [frozen, bench.open()] {
        assert_eq!(actions(&frozen), [""; 0]);
        assert!(!frozen.has(&USER));
    }
    bench.order("a.toml", "user 1000", 2, "freeze");
    let frozen = bench.open();
    assert_eq!(actions(&frozen), ["Frozen"]);
    assert!(frozen.has(&USER));
}

#[test]
fn the_newest_file_counts_in_whichever_order_they_come() {
    let bench = Bench::new();
    let frozen = bench.open();
    bench.order("c.toml", "user 1000", 1, "freeze");
    bench.order("b.toml", "user 1000", 2, "thaw");
    assert_eq!(actions(&frozen), ["Frozen", "Thawed"]);
    assert!(!frozen.has(&USER));
    bench.order("a.toml", "user 1000", 3, "freeze");
    assert_eq!(actions(&frozen), ["Frozen"]);
    // Who brings an older one thaws nothing, nor with one that comes late.
    bench.order("d.toml", "user 1000", 2, "thaw");
    bench.order("e.toml", "user 1000", 1, "thaw");
    assert_eq!(actions(&frozen), [""; 0]);
    bench.order("f.toml", "user 1000", 3, "thaw");
    assert_eq!(actions(&frozen), ["FreezeFileRefused"]);
    assert_eq!(actions(&frozen), [""; 0]);
    assert!(frozen.has(&USER));
    bench.order("f.toml", "user 1000", 4, "thaw");
    bench.order("g.toml", "app other", 1, "freeze");
    assert_eq!(actions(&frozen), ["Frozen", "Thawed"]);
    assert!(!frozen.has(&USER) && frozen.has(&FreezeTarget::App("other".to_owned())));
}

#[test]
fn what_an_administrator_froze_no_file_thaws() {
    let bench = Bench::new();
    let frozen = bench.open();
    frozen.freeze(USER, "here".to_owned()).unwrap();
    bench.order("a.toml", "user 1000", 1, "freeze");
    assert_eq!(actions(&frozen), ["Frozen"]);
    bench.order("a.toml", "user 1000", 2, "thaw");
    assert_eq!(actions(&frozen), ["FreezeFileRefused"]);
    assert!(frozen.has(&USER));
    assert_eq!(frozen.listed().frozen[0].reason, "here");
    frozen.thaw(&USER).unwrap();
    assert!(!frozen.has(&USER));
    bench.order("a.toml", "user 1000", 3, "thaw");
    let notes = frozen.look_at_files();
    assert!(notes[0].1.ends_with("it is not frozen"), "{notes:?}");
}

#[test]
fn what_nobody_signed_changes_nothing_and_is_told_once() {
    let bench = Bench::new();
    let frozen = bench.open();
    let text = "target = \"user 1000\"\nserial = 1";
    let signed = |namespace: &str, key: u8| Key::new(key).sign(namespace, text.as_bytes());
    let large = format!("{text}\n#{}", "x".repeat(20_000));
    for (content, signature, why) in [
        (
            text,
            None,
            "there is no a.toml.sig; sign it with `ssh-keygen",
        ),
        (text, Some(String::new()), "no signature of OpenSSH's"),
        (text, Some(signed(NAMESPACE, 2)), "none of the configured"),
        (
            text,
            Some(signed("policies@mlskeyd", 1)),
            "not for \"freeze@mlskeyd\"",
        ),
        (
            "target = \"all\"\nserial = 1",
            Some(signed(NAMESPACE, 1)),
            "it was changed after",
        ),
        (&large, Some(signed(NAMESPACE, 1)), "longer than 16 KiB"),
        (text, Some("x".repeat(10_000)), "longer than 8 KiB"),
    ] {
        bench.write("a.toml", content.as_bytes());
        let _ = fs::remove_file(bench.path("a.toml.sig"));
        if let Some(signature) = signature {
            bench.write("a.toml.sig", signature.as_bytes());
        }
        let notes = frozen.look_at_files();
        assert_eq!(notes.len(), 1, "{why}: {notes:?}");
        assert_eq!(notes[0].0, "FreezeFileRefused");
        assert!(notes[0].1.contains(why), "{notes:?}");
        assert_eq!(actions(&frozen), [""; 0]);
        assert_eq!(*frozen.listed().frozen, []);
    }
    bench.order("a.toml", "user 1000", 1, "freeze");
    fs::set_permissions(bench.path("a.toml"), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(frozen.look_at_files()[0].1.contains("0666"));
    bench.order("a.toml", "user 1000", 1, "freeze");
    assert_eq!(actions(&frozen), ["Frozen"]);
}

#[test]
fn what_was_signed_and_says_nothing_is_refused() {
    let bench = Bench::new();
    let frozen = bench.open();
    for (text, why) in [
        ("target = \"user 1000\"", "missing field `serial`"),
        ("serial = 1", "missing field `target`"),
        (
            "target = \"user alice\"\nserial = 1",
            "nothing that can be frozen",
        ),
        (
            "target = \"all\"\nserial = 1\nuntil = 3",
            "unknown field `until`",
        ),
        (
            "target = \"all\"\nserial = 1\naction = \"burn\"",
            "unknown variant `burn`",
        ),
        (
            "target = \"all\"\nserial = 1\nreason = \"a\\nb\"",
            "a reason has",
        ),
        ("target = \"app \\u0007\"\nserial = 1", "an app's name"),
    ] {
        bench.put("a.toml", text);
        let notes = frozen.look_at_files();
        assert!(notes[0].1.contains(why), "{notes:?}");
    }
    assert_eq!(*frozen.listed().frozen, []);
}

#[test]
fn without_signers_nothing_is_looked_at() {
    let bench = Bench::new();
    bench.order("a.toml", "user 1000", 1, "freeze");
    let frozen = bench.open();
    let frozen = frozen.with_files(bench.dir.path().join("freeze.d"), None);
    assert_eq!(actions(&frozen), [""; 0]);
    assert!(!frozen.has(&USER));
}

#[test]
fn what_could_not_be_written_down_is_obeyed_again() {
    let bench = Bench::new();
    let frozen = bench.open();
    // A directory in its place.
    let place = bench.dir.path().join(FILE);
    fs::create_dir_all(place.join("x")).unwrap();
    bench.order("a.toml", "user 1000", 1, "freeze");
    assert_eq!(actions(&frozen), [""; 0]);
    assert!(frozen.has(&USER));
    fs::remove_dir_all(place).unwrap();
    assert_eq!(actions(&frozen), ["Frozen"]);
    assert!(bench.open().has(&USER));
}

/// No more is remembered than that nobody can use what is forgotten.
#[test]
fn what_is_remembered_is_bounded() {
    let bench = Bench::new();
    let frozen = bench.open();
    let order = |uid: u32, word: Word, serial: u64| Order {
        target: FreezeTarget::User(uid),
        word,
        reason: String::new(),
        serial,
        digest: Sha256::digest(uid.to_be_bytes()).into(),
        file: String::new(),
        signer: String::new(),
    };
    frozen.obey(&[order(0, Word::Freeze, 1)]).unwrap();
    for first in (1..10_001).step_by(500) {
        let orders = (first..first + 500).map(|uid| order(uid, Word::Thaw, 2));
        frozen.obey(&orders.collect::<Vec<_>>()).unwrap();
    }
    assert!(fs::metadata(bench.dir.path().join(FILE)).unwrap().len() < 400_000);
    // Older than all of these, and frozen.
    let old = frozen.obey(&[order(0, Word::Thaw, 1)]).unwrap();
    assert_eq!(old, [Obeyed::Before]);
    // Nor may more be frozen than others may freeze.
    let orders = (1..1002).map(|uid| order(uid, Word::Freeze, 3));
    let obeyed = frozen.obey(&orders.collect::<Vec<_>>()).unwrap();
    let refused = obeyed.iter().filter(|it| matches!(it, Obeyed::No(_)));
    assert_eq!((refused.count(), frozen.listed().frozen.len()), (2, 1000));
}
