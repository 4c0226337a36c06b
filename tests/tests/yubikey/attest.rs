//! Evidence that a key is in a YubiKey.

use std::path::PathBuf;

use serde_json::Value;

use super::bench::{Bench, NEW, OLD};
use super::scene::Scene;

const NONCE: &str = "00112233445566778899aabbccddeeff";

fn ready(version: [u8; 3], scheme: &str) -> Scene {
    let bench = Bench::new(version, &["--signature", &format!("9a:{scheme}")]);
    let settings = bench.with_pin("management_key = \"on-card\"");
    let scene = Scene::new(bench, &settings);
    scene.await_state("ready");
    scene.adopt("alice", "9a", scheme).unwrap();
    scene
}

/// Evidence of an identity, as a file.
fn evidence(scene: &Scene, name: &str) -> Result<PathBuf, String> {
    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    let made = scene
        .daemon
        .ctl(&["attest", "evidence", &owner, name, "--nonce", NONCE])?;
    let path = scene.bench.stage.path(format!("{name}.evidence"));
    std::fs::write(&path, made.to_string()).unwrap();
    Ok(path)
}

/// The verdict, and the exit code.
fn verdict(scene: &Scene, evidence: &std::path::Path, root: &str, nonce: &str) -> (i32, Value) {
    let roots = scene.bench.stage.path("roots.pem");
    std::fs::write(&roots, root).unwrap();
    let paths = [evidence, &roots].map(|path| path.to_str().unwrap().to_owned());
    let [evidence, roots] = &paths;
    let verify = [
        "attest", "verify", evidence, "--roots", roots, "--nonce", nonce,
    ];
    let output = scene.daemon.ctl_command(&verify).output().unwrap();
    let shown = serde_json::from_slice(&output.stdout).unwrap_or_default();
    (output.status.code().unwrap(), shown)
}

#[test]
fn a_key_in_a_slot_is_accepted_up_to_the_makers_root() {
    for (version, scheme) in [
        (OLD, "p256"),
        (OLD, "p384"),
        (NEW, "p256"),
        (NEW, "ed25519"),
    ] {
        let mut scene = ready(version, scheme);
        let root = scene.bench.cards.root(scene.bench.card);
        let evidence = evidence(&scene, "alice").unwrap();
        let (code, shown) = verdict(&scene, &evidence, &root, NONCE);
        assert_eq!(
            (code, &shown["verdict"]),
            (0, &"accepted".into()),
            "{shown}"
        );
        let text = shown.to_string();
        assert!(text.contains("1234") && text.contains("once"), "{text}");
        // An old one, and one of somebody else's YubiKey.
        let (code, shown) = verdict(&scene, &evidence, &root, &NONCE.replace('0', "1"));
        assert_eq!(
            (code, &shown["reason"]),
            (6, &"other-nonce".into()),
            "{shown}"
        );
        let other = scene.bench.cards.make(4321, version);
        let root = scene.bench.cards.root(other);
        let (code, shown) = verdict(&scene, &evidence, &root, NONCE);
        assert_eq!((code, &shown["reason"]), (6, &"f9-chain".into()), "{shown}");
    }
}

#[test]
fn a_sealed_key_has_no_evidence() {
    let scene = ready(OLD, "p256");
    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    let create = ["identities", "create", &owner, "bob", "--device", "yubikey"];
    scene.daemon.ctl(&create).unwrap();
    let refused = evidence(&scene, "bob").unwrap_err();
    assert!(refused.contains("sealed"), "{refused}");
}
