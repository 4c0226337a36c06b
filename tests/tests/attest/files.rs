//! What a verifier reads from files, and writes into them.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use mlskeyd_tests::rig::Stage;

use super::scene::{NONCE, REFUSED, Verifier, made, stage};

const FAILED: i32 = 1;
const WRONG_USAGE: i32 = 2;

/// What a person sees of a verdict on this file.
fn verify(stage: &Stage, evidence: &Path, roots: &Path, more: &[&str]) -> (i32, String) {
    let mut command = Command::new(&stage.programs().ctl);
    command.args(["attest", "verify"]).arg(evidence);
    command.arg("--roots").arg(roots).args(["--nonce", NONCE]);
    let Output {
        status,
        stdout,
        stderr,
    } = command.args(more).output().unwrap();
    let said = String::from_utf8([stdout, stderr].concat()).unwrap();
    (status.code().unwrap(), said)
}

#[test]
fn files_that_are_none_are_told_from_evidence_that_is_refused() {
    let (machine, maker) = made();
    let (stage, roots) = (stage(), maker.authority());
    let file = |name: &str, content: &[u8]| {
        let path = stage.path(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let evidence = machine.evidence("alice", NONCE, "evidence").unwrap();
    let judge = |path: &Path, roots: &Path, more: &[&str]| verify(&stage, path, roots, more);

    let (code, said) = judge(&stage.path("nowhere"), &roots, &[]);
    assert!(code == FAILED && said.contains("nowhere"), "{said}");
    let (code, said) = judge(&evidence, &file("empty", b""), &[]);
    assert!(
        code == FAILED && said.contains("no certificate in it"),
        "{said}"
    );
    let secret = evidence.to_str().unwrap();
    let (code, said) = judge(
        &evidence,
        &roots,
        &["--secret", secret, "--response", secret],
    );
    assert!(code == FAILED && said.contains("of format"), "{said}");
    assert_eq!(
        judge(&evidence, &roots, &["--secret", secret]).0,
        WRONG_USAGE
    );

    let long = file("long", &[b' '; 100_000]);
    let (code, said) = judge(&long, &roots, &[]);
    assert!(
        code == REFUSED && said.contains("refused (document)"),
        "{said}"
    );
    // What it is called does not speak to the terminal.
    let text = std::fs::read_to_string(&evidence).unwrap();
    let speaks = text.replace("\"uid\"", "\"\\u001b[2J\": 1, \"uid\"");
    let (code, said) = judge(&file("speaks", speaks.as_bytes()), &roots, &[]);
    assert!(code == REFUSED && said.contains("[2J"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");

    let verifier = Verifier::new(&stage, roots.clone());
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    let secret = asked.secret.to_str().unwrap();
    let more = ["--secret", secret, "--response", secret];
    let (code, said) = judge(&evidence, &roots, &more);
    assert!(
        code == REFUSED && said.contains("refused (response)"),
        "{said}"
    );
}

#[test]
fn a_secret_is_the_verifiers_alone_and_replaces_nothing() {
    let (machine, maker) = made();
    let stage = stage();
    let verifier = Verifier::new(&stage, maker.authority());
    let evidence = machine.evidence("alice", NONCE, "evidence").unwrap();
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    let mode = std::fs::metadata(&asked.secret).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);

    let challenge = |challenge: &Path, secret: &Path| {
        let mut command = Command::new(&stage.programs().ctl);
        command.args(["attest", "challenge"]).arg(&evidence);
        command.arg("--roots").arg(maker.authority());
        command.arg("--out-challenge").arg(challenge);
        command.arg("--out-secret").arg(secret);
        command.output().unwrap().status.code().unwrap()
    };
    let before = std::fs::read(&asked.secret).unwrap();
    let (new, other) = (stage.path("new"), stage.path("other"));
    assert_eq!(challenge(&new, &asked.secret), FAILED);
    assert_eq!(std::fs::read(&asked.secret).unwrap(), before);
    assert!(!new.exists());
    assert_eq!(challenge(&asked.challenge, &other), FAILED);
    assert!(!other.exists(), "it is of no use without its challenge");
    assert_eq!(challenge(&new, &other), 0);
}
