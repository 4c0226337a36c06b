//! OpenSC, which knows PIV and no YubiKey.

use super::bench::{Bench, NEW, OLD, PIN, library};

#[test]
fn it_signs_with_keys_that_have_certificates() {
    for version in [OLD, NEW] {
        let bench = Bench::new(version);
        let readers = bench.run("opensc-tool", &["-l"]);
        assert!(
            readers.contains("Yes") && readers.contains("YubiKey"),
            "{readers}"
        );
        let named = bench.run("opensc-tool", &["-n"]);
        assert!(named.contains("Personal Identity Verification"), "{named}");
        let piv = "yubico-piv-tool";
        let public = bench.file("public");
        bench.run(piv, &["-a", "set-chuid", "-a", "set-ccc"]);
        bench.run(
            piv,
            &["-a", "generate", "-s", "9a", "-A", "ECCP256", "-o", &public],
        );
        let certificate = bench.certify(&public);
        bench.run(
            piv,
            &["-a", "import-certificate", "-s", "9a", "-i", &certificate],
        );

        let module = library(&["opensc-pkcs11.so", "pkcs11/opensc-pkcs11.so"]);
        let module = module.to_str().unwrap();
        let listed = bench.run(
            "pkcs11-tool",
            &["--module", module, "-O", "--login", "--pin", PIN],
        );
        assert!(listed.contains("Private Key Object"), "{listed}");
        let text = bench.write("text", b"to be signed");
        let signature = bench.file("signature");
        bench.run(
            "pkcs11-tool",
            &[
                "--module",
                module,
                "--login",
                "--pin",
                PIN,
                "--sign",
                "--id",
                "01",
                "-m",
                "ECDSA-SHA256",
                "--signature-format",
                "openssl",
                "-i",
                &text,
                "-o",
                &signature,
            ],
        );
        bench.openssl(&[
            "dgst",
            "-sha256",
            "-verify",
            &public,
            "-signature",
            &signature,
            &text,
        ]);
        let (done, said) = bench.attempt(
            "pkcs11-tool",
            &["--module", module, "--login", "--pin", "999999", "-O"],
        );
        assert!(!done && said.contains("PIN"), "{said}");
    }
}
