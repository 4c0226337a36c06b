//! Yubico's PKCS#11 module, through OpenSC's `pkcs11-tool`.

use super::bench::{Bench, NEW, OLD, PIN, library};

/// As Yubico's module wants it of its security officer.
const MANAGEMENT_KEY: &str = "010203040506070801020304050607080102030405060708";

#[test]
fn it_makes_keys_that_sign_and_agree() {
    for version in [OLD, NEW] {
        let bench = Bench::new(version);
        let module = library(&["libykcs11.so", "libykcs11.so.2"]);
        let module = module.to_str().unwrap();
        let tool = |arguments: &[&str]| {
            bench.run("pkcs11-tool", &[&["--module", module], arguments].concat())
        };
        let listed = tool(&["-L"]);
        assert!(listed.contains("YubiKey PIV #12345678"), "{listed}");
        let text = bench.write("text", b"to be signed");
        let officer = ["--login", "--login-type", "so", "--so-pin", MANAGEMENT_KEY];
        let user = ["--login", "--pin", PIN];
        // Its number 1 is slot 9a, and 3 is 9d.
        for id in ["01", "03"] {
            let make = ["--keypairgen", "--id", id, "--key-type", "EC:prime256v1"];
            tool(&[&officer[..], &make].concat());
            let [raw, public] = ["raw", "public"].map(|name| bench.file(&format!("{name}-{id}")));
            tool(&["--read-object", "--type", "pubkey", "--id", id, "-o", &raw]);
            bench.openssl(&[
                "pkey", "-pubin", "-inform", "DER", "-in", &raw, "-out", &public,
            ]);
            let signature = bench.file(&format!("signature-{id}"));
            let sign = [
                "--sign",
                "--id",
                id,
                "-m",
                "ECDSA-SHA256",
                "--signature-format",
                "openssl",
            ];
            let files = ["-i", &text, "-o", &signature];
            tool(&[&user[..], &sign, &files].concat());
            bench.openssl(&[
                "dgst",
                "-sha256",
                "-verify",
                &public,
                "-signature",
                &signature,
                &text,
            ]);
        }
        let [own, peer, derived] = ["own.pem", "peer.der", "derived"].map(|name| bench.file(name));
        bench.openssl(&[
            "ecparam",
            "-name",
            "prime256v1",
            "-genkey",
            "-noout",
            "-out",
            &own,
        ]);
        bench.openssl(&[
            "pkey", "-in", &own, "-pubout", "-outform", "DER", "-out", &peer,
        ]);
        let derive = [
            "--derive",
            "--id",
            "03",
            "-m",
            "ECDH1-DERIVE",
            "-i",
            &peer,
            "-o",
            &derived,
        ];
        tool(&[&user[..], &derive].concat());
        let expected = bench.file("expected");
        bench.openssl(&[
            "pkeyutl",
            "-derive",
            "-inkey",
            &own,
            "-peerkey",
            &bench.file("public-03"),
            "-out",
            &expected,
        ]);
        let [derived, expected] = [derived, expected].map(|path| std::fs::read(path).unwrap());
        assert_eq!(derived, expected);
    }
}
