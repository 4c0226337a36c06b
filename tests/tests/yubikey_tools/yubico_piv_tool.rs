//! Yubico's own `yubico-piv-tool`.

use super::bench::{Bench, NEW, OLD, PIN, PUK};

const TOOL: &str = "yubico-piv-tool";
const NEW_KEY: &str = "aabbccddeeff00112233445566778899aabbccddeeff0011";

#[test]
fn it_makes_keys_that_sign_and_openssl_verifies() {
    for version in [OLD, NEW] {
        let bench = Bench::new(version);
        let status = bench.run(TOOL, &["-a", "status"]);
        assert!(status.contains("12345678"), "{status}");
        let text = bench.write("text", b"to be signed");
        for (slot, algorithm, hash) in [("9a", "ECCP256", "SHA256"), ("9c", "ECCP384", "SHA384")] {
            let [public, signature] =
                ["public", "signature"].map(|name| bench.file(&format!("{name}-{slot}")));
            let made = ["-s", slot, "-A", algorithm, "-a", "generate", "-o", &public];
            let policies = ["--pin-policy=once", "--touch-policy=never"];
            bench.run(TOOL, &[&made[..], &policies].concat());
            let sign = [
                "-a",
                "verify-pin",
                "-P",
                PIN,
                "--sign",
                "-s",
                slot,
                "-A",
                algorithm,
                "-H",
                hash,
                "-i",
                &text,
                "-o",
                &signature,
            ];
            bench.run(TOOL, &sign);
            let hash = format!("-{}", hash.to_lowercase());
            bench.openssl(&[
                "dgst",
                &hash,
                "-verify",
                &public,
                "-signature",
                &signature,
                &text,
            ]);
            let certificate = bench.certify(&public);
            let import = ["-a", "import-certificate", "-s", slot, "-i", &certificate];
            bench.run(TOOL, &import);
            let test = [
                "-a",
                "verify-pin",
                "-P",
                PIN,
                "-a",
                "test-signature",
                "-s",
                slot,
                "-i",
                &certificate,
            ];
            bench.run(TOOL, &test);
            let derive = [
                "-a",
                "verify-pin",
                "-P",
                PIN,
                "-a",
                "test-decipher",
                "-s",
                slot,
                "-i",
                &certificate,
            ];
            bench.run(TOOL, &derive);
        }
    }
}

#[test]
fn it_verifies_and_changes_pins_and_keys() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        let (done, said) = bench.attempt(TOOL, &["-a", "verify-pin", "-P", "999999"]);
        assert!(!done && said.contains("2 tries left"), "{said}");
        bench.run(TOOL, &["-a", "change-pin", "-P", PIN, "-N", "271828"]);
        bench.run(TOOL, &["-a", "verify-pin", "-P", "271828"]);
        bench.run(TOOL, &["-a", "change-puk", "-P", PUK, "-N", "31415926"]);
        for _ in 0..3 {
            let _ = bench.attempt(TOOL, &["-a", "verify-pin", "-P", "999999"]);
        }
        assert_eq!(bench.cards.tries(bench.card), 0);
        bench.run(
            TOOL,
            &["-a", "unblock-pin", "-P", "31415926", "-N", "112233"],
        );
        bench.run(TOOL, &["-a", "verify-pin", "-P", "112233"]);
        bench.run(TOOL, &["-a", "set-mgm-key", "-n", NEW_KEY]);
        let (done, _) = bench.attempt(TOOL, &["-a", "generate", "-s", "9a", "-A", "ECCP256"]);
        assert!(!done, "the old management key is no key");
        let key = format!("--key={NEW_KEY}");
        bench.run(TOOL, &[&key, "-a", "generate", "-s", "9a", "-A", "ECCP256"]);
        bench.run(TOOL, &[&key, "-a", "set-chuid"]);
        bench.run(TOOL, &[&key, "-a", "set-ccc"]);
    }
}

#[test]
fn what_it_attests_openssl_follows_to_the_root() {
    for version in [OLD, NEW] {
        let mut bench = Bench::new(version);
        bench.run(TOOL, &["-a", "generate", "-s", "9a", "-A", "ECCP256"]);
        let [slot, f9] = ["slot.pem", "f9.pem"].map(|name| bench.file(name));
        bench.run(TOOL, &["-a", "attest", "-s", "9a", "-o", &slot]);
        bench.run(TOOL, &["-a", "read-certificate", "-s", "f9", "-o", &f9]);
        let root = bench.cards.root(bench.card);
        let root = bench.write("root.pem", root.as_bytes());
        bench.openssl(&["verify", "-CAfile", &root, "-untrusted", &f9, &slot]);
        let text = bench.openssl(&["x509", "-in", &slot, "-noout", "-text"]);
        assert!(text.contains("YubiKey PIV Attestation 9a"), "{text}");
        assert!(text.contains("1.3.6.1.4.1.41482.3.8"), "{text}");
    }
}

#[test]
fn it_resets_what_is_blocked() {
    let mut bench = Bench::new(NEW);
    bench.run(TOOL, &["-a", "generate", "-s", "9a", "-A", "ECCP256"]);
    let (done, said) = bench.attempt(TOOL, &["-a", "reset"]);
    assert!(!done, "{said}");
    for _ in 0..3 {
        let _ = bench.attempt(TOOL, &["-a", "verify-pin", "-P", "999999"]);
        let _ = bench.attempt(
            TOOL,
            &["-a", "change-puk", "-P", "99999999", "-N", "31415926"],
        );
    }
    bench.run(TOOL, &["-a", "reset"]);
    assert_eq!(bench.cards.snapshot(bench.card), []);
    bench.run(TOOL, &["-a", "verify-pin", "-P", PIN]);
}
