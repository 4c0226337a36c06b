use std::fs;
use std::os::unix::fs::PermissionsExt;

use secrecy::SecretBox;

use super::super::LABEL;
use super::super::manifest::{Manifest, NAMESPACE};
use super::*;
use crate::config::Config;
use crate::signers::tests::Key;
use crate::store_key::{KEY_LEN, StoreKey};

const PERMIT: &str = "@id(\"all\") @reason(\"x\") permit(principal, action, resource);";

struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["vendor", "local", "state"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self { dir }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        path
    }

    fn store(&self, key: u8) -> PolicyStore {
        self.store_of(key, None)
    }

    /// Where this one signs.
    fn signed_by(&self, signer: &Key) -> PolicyStore {
        let signers = Signers::parse([signer.line().as_str()]);
        self.store_of(1, Some(signers.unwrap()))
    }

    fn store_of(&self, key: u8, signers: Option<Signers>) -> PolicyStore {
        let dirs = PolicyDirs {
            vendor: self.dir.path().join("vendor"),
            local: self.dir.path().join("local"),
            candidate: None,
        };
        let key = StoreKey::new(SecretBox::new(Box::new([key; KEY_LEN])));
        let key = key.subkey(LABEL).unwrap();
        let kept = self.dir.path().join("state/policies.last");
        PolicyStore::new(dirs, signers, kept, key)
    }

    /// One policy of this id, in a set that is signed.
    fn sign(&self, signer: &Key, serial: u64, expires: Option<&str>, id: &str) {
        self.write("local/10.cedar", &PERMIT.replace("all", id));
        let files = PolicyFiles::of_directory(&self.dir.path().join("local"));
        let files = files.unwrap().unwrap();
        let expires = expires.map(|text| text.parse().unwrap());
        let manifest = Manifest::write(serial, expires, &files).unwrap();
        let signature = signer.sign(NAMESPACE, manifest.as_bytes());
        self.write("local/manifest.toml", &manifest);
        self.write("local/manifest.toml.sig", &signature);
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.dir.path().join(name)).unwrap();
    }
}

fn failed(loaded: Result<Loaded, PolicyError>) -> String {
    match loaded {
        Err(error) => error.to_string(),
        Ok(loaded) => panic!("in force: {}", loaded.about.note()),
    }
}

fn in_force(loaded: Result<Loaded, PolicyError>) -> Vec<String> {
    ids(&loaded.unwrap().set)
        .into_iter()
        .map(str::to_owned)
        .collect()
}

fn ids(set: &Set) -> Vec<&str> {
    set.ids().collect()
}

#[test]
fn a_file_of_the_company_takes_the_place_of_the_vendors() {
    let bench = Bench::new();
    bench.write("vendor/10.cedar", PERMIT);
    bench.write("vendor/20.cedar", &PERMIT.replace("all", "other"));
    bench.write("vendor/30.txt", "no policy");
    bench.write("local/20.cedar", "");
    bench.write("local/40.cedar", &PERMIT.replace("all", "own"));
    bench.write("local/.50.cedar", "of an editor");
    assert_eq!(ids(&bench.store(1).load().unwrap().set), ["all", "own"]);
}

#[test]
fn without_the_vendors_directory_there_is_what_is_built_in() {
    let bench = Bench::new();
    fs::remove_dir(bench.dir.path().join("vendor")).unwrap();
    fs::remove_dir(bench.dir.path().join("local")).unwrap();
    let set = bench.store(1).load().unwrap().set;
    assert!(ids(&set).contains(&"no-rollback"));
}

#[test]
fn what_others_may_write_is_refused() {
    let bench = Bench::new();
    let path = bench.write("vendor/10.cedar", PERMIT);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o664)).unwrap();
    let error = failed(bench.store(1).load());
    assert!(error.contains("0664"), "{error}");
}

#[test]
fn with_bad_files_the_last_good_set_is_in_force() {
    let bench = Bench::new();
    bench.write("vendor/10.cedar", PERMIT);
    let store = bench.store(1);
    store.at_start().unwrap();
    bench.write("vendor/10.cedar", "permit(");
    let error = failed(store.load());
    assert!(error.contains("10.cedar:1"), "{error}");
    assert_eq!(ids(&store.at_start().unwrap().set), ["all"]);
    // Not one that somebody else wrote.
    failed(bench.store(2).at_start());
    let kept = bench.dir.path().join("state/policies.last");
    let mut bytes = fs::read(&kept).unwrap();
    bytes[20] ^= 1;
    fs::write(&kept, bytes).unwrap();
    failed(store.at_start());
}

/// The vendor's, and one file of the company's.
fn signed() -> (Bench, Key, PolicyStore) {
    let bench = Bench::new();
    bench.write("vendor/00.cedar", &PERMIT.replace("all", "vendors"));
    let key = Key::new(1);
    let store = bench.signed_by(&key);
    (bench, key, store)
}

#[test]
fn of_what_nobody_signed_nothing_counts() {
    let (bench, key, store) = signed();
    bench.write("local/10.cedar", PERMIT);
    let loaded = store.load().unwrap();
    assert_eq!(ids(&loaded.set), ["vendors"]);
    let warnings = loaded.about.as_loaded().warnings;
    assert!(
        warnings[0].contains("the vendor's policies alone"),
        "{warnings:?}"
    );
    // A bad one keeps nobody from starting.
    bench.sign(&Key::new(2), 1, None, "mallory");
    assert!(failed(store.load()).contains("none of the configured"));
    assert_eq!(in_force(bench.signed_by(&key).at_start()), ["vendors"]);

    bench.sign(&key, 1, None, "own");
    let loaded = store.load().unwrap();
    assert_eq!(ids(&loaded.set), ["own", "vendors"]);
    let note = loaded.about.note();
    assert!(
        note.starts_with("2 policies, serial 1, signed by security@bank (SHA256:"),
        "{note}"
    );
    assert_eq!(store.in_force().warnings, Vec::<String>::new());
}

#[test]
fn an_older_set_is_refused_also_by_the_next_daemon() {
    let (bench, key, store) = signed();
    bench.sign(&key, 7, None, "seven");
    store.load().unwrap();
    for (serial, id, why) in [
        (5, "five", "older than what was in force: serial 7, now 5"),
        (
            7,
            "other",
            "other content than what was in force with the same serial 7",
        ),
    ] {
        bench.sign(&key, serial, None, id);
        let next = bench.signed_by(&key);
        for store in [&store, &next] {
            let error = failed(store.load());
            assert!(error.contains(why), "{error}");
            assert!(store.in_force().warnings[0].contains(why));
        }
        let loaded = next.at_start().unwrap();
        assert_eq!(ids(&loaded.set), ["seven", "vendors"]);
        assert!(loaded.about.note().contains(why), "{}", loaded.about.note());
    }
    // The same again, also signed again, and a newer one.
    bench.sign(&key, 7, None, "seven");
    store.load().unwrap();
    bench.sign(&key, 8, None, "eight");
    assert_eq!(in_force(store.load()), ["eight", "vendors"]);
}

#[test]
fn who_takes_the_manifest_away_takes_nothing_out_of_force() {
    let (bench, key, store) = signed();
    bench.sign(&key, 7, None, "seven");
    store.load().unwrap();
    for name in ["manifest.toml", "manifest.toml.sig", "10.cedar"] {
        bench.sign(&key, 7, None, "seven");
        bench.remove(&format!("local/{name}"));
        let error = failed(store.load());
        assert!(
            error.contains(name) && error.contains("not there"),
            "{error}"
        );
        assert_eq!(
            in_force(bench.signed_by(&key).at_start()),
            ["seven", "vendors"]
        );
    }
    fs::remove_dir_all(bench.dir.path().join("local")).unwrap();
    assert!(failed(store.load()).contains("serial 7"));
    assert_eq!(
        in_force(bench.signed_by(&key).at_start()),
        ["seven", "vendors"]
    );
}

/// Signers that come into the configuration, go, and come again.
#[test]
fn what_was_in_force_unsigned_is_not_where_signatures_are_asked_for() {
    let (bench, key, _) = signed();
    bench.write("local/10.cedar", PERMIT);
    assert_eq!(in_force(bench.store(1).at_start()), ["all", "vendors"]);
    bench.sign(&Key::new(2), 1, None, "mallory");
    assert_eq!(in_force(bench.signed_by(&key).at_start()), ["vendors"]);
    bench.write("vendor/00.cedar", "permit(");
    // The vendor's of the last time, then.
    assert_eq!(in_force(bench.signed_by(&key).at_start()), ["vendors"]);
    bench.write("vendor/00.cedar", &PERMIT.replace("all", "vendors"));

    bench.sign(&key, 7, None, "seven");
    assert_eq!(
        in_force(bench.signed_by(&key).at_start()),
        ["seven", "vendors"]
    );
    bench.write("local/10.cedar", "permit(");
    assert_eq!(in_force(bench.store(1).at_start()), ["seven", "vendors"]);
    bench.write("local/10.cedar", PERMIT);
    assert_eq!(in_force(bench.store(1).at_start()), ["all", "vendors"]);
    assert_eq!(
        in_force(bench.signed_by(&key).at_start()),
        ["seven", "vendors"]
    );
    bench.sign(&key, 5, None, "five");
    assert!(failed(bench.signed_by(&key).load()).contains("serial 7, now 5"));
}

#[test]
fn a_signed_set_that_cannot_be_kept_is_refused() {
    let (bench, key, store) = signed();
    bench.sign(&key, 7, None, "seven");
    // A directory in its place.
    let kept = bench.dir.path().join("state/policies.last");
    fs::create_dir_all(kept.with_extension("new").join("x")).unwrap();
    let error = failed(store.load());
    assert!(error.contains("policies.last cannot be used"), "{error}");
    fs::remove_dir_all(kept.with_extension("new")).unwrap();
    store.load().unwrap();

    // Nor one of which it is not known whether it is older.
    let mut bytes = fs::read(&kept).unwrap();
    bytes[40] ^= 1;
    fs::write(&kept, bytes).unwrap();
    bench.sign(&key, 8, None, "eight");
    for loaded in [store.load(), bench.signed_by(&key).at_start()] {
        let error = failed(loaded);
        assert!(
            error.contains("it was changed") && error.contains("move it away"),
            "{error}"
        );
    }
    fs::remove_file(&kept).unwrap();
    assert_eq!(in_force(store.load()), ["eight", "vendors"]);
}

#[test]
fn what_has_expired_stays_in_force_and_says_so() {
    let (bench, key, store) = signed();
    bench.sign(&key, 7, Some("2999-01-01T00:00:00Z"), "seven");
    let loaded = store.load().unwrap();
    assert_eq!(store.in_force().warnings, Vec::<String>::new());
    assert_eq!(
        loaded.about.as_loaded().signed.unwrap().expires,
        Some(32_472_144_000)
    );
    bench.sign(&key, 8, Some("2020-01-01T00:00:00Z"), "eight");
    let loaded = store.load().unwrap();
    assert_eq!(ids(&loaded.set), ["eight", "vendors"]);
    let warning = &store.in_force().warnings[0];
    assert!(
        warning.contains("serial 8 EXPIRED at 2020-01-01T00:00:00Z"),
        "{warning}"
    );
    assert!(loaded.about.note().contains("EXPIRED"));
}

#[test]
fn who_else_may_write_the_manifest_signs_nothing() {
    let (bench, key, store) = signed();
    for name in ["manifest.toml", "manifest.toml.sig"] {
        bench.sign(&key, 7, None, "seven");
        let path = bench.dir.path().join("local").join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        let error = failed(store.load());
        assert!(error.contains(name) && error.contains("0666"), "{error}");
        fs::write(&path, vec![b'#'; 2 * 1024 * 1024]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = failed(store.load());
        assert!(error.contains("it is longer than"), "{error}");
    }
}

#[test]
fn what_looks_wrong_is_in_force_and_told() {
    let bench = Bench::new();
    let lines = (0..25).map(|n| {
        format!("@id(\"p{n}\") @reason(\"x\") forbid(principal, action in Action::\"Sign\", resource in Device::\"tokn-{n}\");\n")
    });
    bench.write("local/10.cedar", &lines.collect::<String>());
    let config = Config::parse(&bench.dir.path().join("mlskeyd.toml"), "").unwrap();
    let store = bench.store(1).with_known(Known::of(&config));
    let load = || {
        let loaded = store.load().unwrap();
        store.found(store.lint(&loaded.set, None));
        store.about_now()
    };
    let now = load();
    assert_eq!(now.note(), "25 policies; the policies have 25 lints");
    let told = now.as_loaded().warnings;
    assert_eq!(told.len(), MAX_LINTS + 1);
    assert_eq!(
        told[0],
        "10.cedar:1: lint: there is no Device \"tokn-0\" on this machine"
    );
    assert_eq!(
        told[MAX_LINTS],
        "and 5 lints more: `mlskeyctl policy check` tells all"
    );
    assert_eq!(
        store.in_force().warnings,
        ["the policies have 25 lints: `mlskeyctl policy reload` says what"]
    );
    bench.write("local/10.cedar", "");
    assert_eq!(load().note(), "0 policies");
    assert_eq!(store.in_force().warnings, [""; 0]);
}

#[test]
fn a_directory_is_bounded() {
    let (bench, _, store) = signed();
    let most = " ".repeat(1024 * 1024);
    for file in 0..17 {
        store.load().unwrap();
        bench.write(&format!("local/{file}.cedar"), &most);
    }
    let error = failed(store.load());
    assert!(error.contains("more than 16 MiB"), "{error}");
}
