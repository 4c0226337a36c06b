//! Yubico's `ykman`.

use super::bench::{Bench, NEW, OLD, PIN, PUK};

/// The management key that YubiKeys leave the factory with.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

/// Runs it on the card in reader 0, beside which is one without a card: what it says.
fn attempt(bench: &Bench, arguments: &[&str]) -> (bool, String) {
    let program = std::env::var("MLSKEYD_YKMAN").expect("cargo xtask test installs ykman");
    let reader = ["--reader", "Yubico YubiKey OTP+FIDO+CCID 00 00"];
    bench.attempt(&program, &[&reader, arguments].concat())
}

fn run(bench: &Bench, arguments: &[&str]) -> String {
    let (done, said) = attempt(bench, arguments);
    assert!(done, "ykman {arguments:?}: {said}");
    said
}

#[test]
fn it_tells_what_the_card_is() {
    for (version, shown) in [(OLD, "5.4.3"), (NEW, "5.7.1")] {
        let bench = Bench::new(version);
        let told = run(&bench, &["info"]);
        assert!(told.contains(shown) && told.contains("12345678"), "{told}");
        let told = run(&bench, &["piv", "info"]);
        assert!(told.contains("3/3"), "{told}");
        assert!(told.contains("Using default PIN"), "{told}");
    }
}

#[test]
fn it_makes_keys_of_all_kinds_and_certificates() {
    for version in [OLD, NEW] {
        let bench = Bench::new(version);
        let old: &[(&str, &str)] = &[("9a", "ECCP256"), ("82", "ECCP384")];
        let new: &[(&str, &str)] = &[("9c", "ED25519"), ("9d", "X25519")];
        let kinds = if version == NEW {
            [old, new].concat()
        } else {
            old.to_vec()
        };
        for (slot, kind) in kinds {
            let [public, attested, certificate] = ["public", "attested", "certificate"]
                .map(|name| bench.file(&format!("{name}-{slot}")));
            let make = ["piv", "keys", "generate", "-m", MANAGEMENT_KEY, "-P", PIN];
            let policies = ["--pin-policy", "once", "--touch-policy", "never"];
            run(
                &bench,
                &[&make[..], &["-a", kind], &policies, &[slot, &public]].concat(),
            );
            let told = run(&bench, &["piv", "keys", "info", slot]);
            assert!(told.contains(kind) && told.contains("GENERATED"), "{told}");
            run(&bench, &["piv", "keys", "attest", slot, &attested]);
            let of_it = ["x509", "-in", &attested, "-noout", "-pubkey"];
            assert_eq!(
                bench.openssl(&of_it),
                std::fs::read_to_string(&public).unwrap()
            );
            if kind == "X25519" {
                continue;
            }
            let certify = [
                "piv",
                "certificates",
                "generate",
                "-m",
                MANAGEMENT_KEY,
                "-P",
                PIN,
            ];
            run(
                &bench,
                &[&certify[..], &["-s", "test", slot, &public]].concat(),
            );
            run(
                &bench,
                &["piv", "certificates", "export", slot, &certificate],
            );
            bench.openssl(&["verify", "-CAfile", &certificate, &certificate]);
        }
        let (done, _) = attempt(
            &bench,
            &[
                "piv",
                "keys",
                "generate",
                "-m",
                MANAGEMENT_KEY,
                "-P",
                PIN,
                "-a",
                "ED25519",
                "83",
                "-",
            ],
        );
        assert_eq!(done, version == NEW);
    }
}

#[test]
fn it_moves_and_deletes_keys_where_the_card_can() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        let make = [
            "piv",
            "keys",
            "generate",
            "-m",
            MANAGEMENT_KEY,
            "-P",
            PIN,
            "-a",
            "ECCP256",
        ];
        run(&bench, &[&make[..], &["82", "-"]].concat());
        let before = bench.cards.snapshot(bench.card);
        let of_key = ["-m", MANAGEMENT_KEY, "-P", PIN];
        let (moved, _) = attempt(
            &bench,
            &[&["piv", "keys", "move"], &of_key[..], &["82", "83"]].concat(),
        );
        let (deleted, _) = attempt(
            &bench,
            &[&["piv", "keys", "delete"], &of_key[..], &["83"]].concat(),
        );
        assert_eq!((moved, deleted), (version == NEW, version == NEW));
        let after = bench.cards.snapshot(bench.card);
        assert_eq!(after.len(), before.len() - usize::from(version == NEW));
    }
}

#[test]
fn it_changes_what_unlocks_the_card() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        run(
            &bench,
            &["piv", "access", "change-pin", "-P", PIN, "-n", "271828"],
        );
        run(
            &bench,
            &["piv", "access", "change-puk", "-p", PUK, "-n", "31415926"],
        );
        let protect = [
            "piv",
            "access",
            "change-management-key",
            "-m",
            MANAGEMENT_KEY,
        ];
        run(
            &bench,
            &[
                &protect[..],
                &["-P", "271828", "--generate", "--protect", "-a", "AES192"],
            ]
            .concat(),
        );
        let told = run(&bench, &["piv", "info"]);
        assert!(
            told.contains("AES192") && told.contains("protected by PIN"),
            "{told}"
        );
        assert!(!told.contains("Using default"), "{told}");
        // With that it makes keys.
        run(
            &bench,
            &[
                "piv", "keys", "generate", "-P", "271828", "-a", "ECCP256", "9a", "-",
            ],
        );
        assert_eq!(bench.cards.tries(bench.card), 3);
    }
}

/// What `mlskeyctl` made ready is as `ykman` knows it.
#[test]
fn it_takes_what_mlskeyctl_made_ready() {
    let bench = Bench::new(NEW);
    bench.cards.provision(&["--signature", "9a:p256"]).unwrap();
    let told = run(&bench, &["piv", "info"]);
    assert!(told.contains("protected by PIN"), "{told}");
    let pin = mlskeyd_tests::rig::PIN;
    run(
        &bench,
        &[
            "piv", "keys", "generate", "-P", pin, "-a", "ECCP256", "82", "-",
        ],
    );
}
