//! What an honest machine shows, and what it cannot show.

use mlskeyd::attest::tpm::{EkKind, endorsement};
use mlskeyd::attest::{Challenge, DeviceChallenge, Envelope, Evidence};
use mlskeyd_protocol::v1::SignatureScheme;
use mlskeyd_tests::rig::{Maker, Recovery, Swtpm, Tap, with_input};
use serde_json::Value;

use super::hostile::{Hostile, claims_of};
use super::scene::{ACCEPTED, Asked, Machine, NONCE, NOT_BOUND, Verifier, made, stage};

/// From the evidence to the verdict.
fn is_accepted(machine: &mut Machine, verifier: &Verifier<'_>, through_a_power_cut: bool) -> Value {
    is_accepted_of("alice", machine, verifier, through_a_power_cut)
}

/// The same of this identity.
fn is_accepted_of(
    name: &str,
    machine: &mut Machine,
    verifier: &Verifier<'_>,
    through_a_power_cut: bool,
) -> Value {
    let evidence = machine.evidence(name, NONCE, "evidence").unwrap();
    let (code, json) = verifier.verify(&evidence, None);
    assert_eq!(
        (code, &json["verdict"]),
        (NOT_BOUND, &"ak-not-bound".into())
    );
    assert!(
        json["detail"]
            .as_str()
            .unwrap()
            .contains("the AK is not bound to this TPM")
    );
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    if through_a_power_cut {
        machine.tpm.kill();
        machine.tpm.start();
    }
    let response = machine.activate(&asked.challenge, "response").unwrap();
    let answered = std::fs::read_to_string(&response).unwrap();
    let secret = hex::encode(secret_of(&asked));
    assert!(!answered.contains(&secret), "it does not travel back");
    let (code, json) = verifier.verify(&evidence, Some((&asked, &response)));
    assert_eq!(
        (code, &json["verdict"]),
        (ACCEPTED, &"accepted".into()),
        "{json}"
    );
    json
}

/// What is in the TPM for good: nobody may be connected.
fn permanent(tpm: &Swtpm) -> (Vec<String>, String) {
    (tpm.indices(), tpm.tool(&["getcap", "handles-persistent"]))
}

#[test]
fn a_key_is_accepted_beside_an_rsa_key_that_its_maker_certified() {
    let (mut machine, maker) = made();
    let stage = stage();
    let verifier = Verifier::new(&stage, maker.authority());
    let judged = is_accepted(&mut machine, &verifier, false);
    let identities = machine.daemon.ctl(&["identities"]).unwrap();
    let claims = &judged["claims"];
    assert_eq!(claims["public_key"], identities[0]["public_key"]);
    assert_eq!(claims["key"], identities[0]["key"]);
    assert_eq!(claims["identity"], "alice");
    assert_eq!(claims["device"], "tpm");
    assert_eq!(claims["tier"], "hardware");
    assert_eq!(claims["algorithm"], "ecdsa-p256-sha256");
    assert_eq!(claims["nonce"], NONCE);
    assert_eq!(claims["uid"], rustix::process::geteuid().as_raw());
    assert_eq!(claims["app"], "default");
}

#[test]
fn a_p384_key_is_accepted() {
    let (mut machine, maker) = made();
    machine.add("bob", SignatureScheme::EcdsaP384Sha384);
    let stage = stage();
    let verifier = Verifier::new(&stage, maker.authority());
    let judged = is_accepted_of("bob", &mut machine, &verifier, false);
    let identities = machine.daemon.ctl(&["identities"]).unwrap();
    let mut identities = identities.as_array().unwrap().iter();
    let bob = identities
        .find(|identity| identity["name"] == "bob")
        .unwrap();
    let claims = &judged["claims"];
    assert_eq!(claims["public_key"], bob["public_key"]);
    assert_eq!(claims["key"], bob["key"]);
    assert_eq!(claims["identity"], "bob");
    assert_eq!(claims["tier"], "hardware");
    assert_eq!(claims["algorithm"], "ecdsa-p384-sha384");
}

#[test]
fn a_key_is_accepted_beside_a_p256_key_whose_certificates_are_in_the_tpm() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    maker.certify_p256(&tpm);
    let verifiers = super::scene::stage();
    let verifier = Verifier::new(&verifiers, maker.root());
    let mut machine = Machine::new(stage, tpm);
    // Its seed makes the same keys again.
    is_accepted(&mut machine, &verifier, true);
    // An RSA key takes a chip long to make.
    let challenge = std::fs::read(machine.stage.path("evidence")).unwrap();
    let Evidence::Tpm2(evidence) = Envelope::read(&challenge).unwrap().evidence else {
        panic!("it is of a TPM");
    };
    let used = endorsement::kind(&evidence.keys.ek_public);
    assert_eq!(used, Some(EkKind::EccP256));
}

#[test]
fn an_endorsement_key_that_the_system_keeps_is_used_if_it_is_one() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    // A key of somebody's in its place.
    tpm.tool(&["evictcontrol", "-C", "o", "-c", "0x81010001"]);
    tpm.tool(&[
        "createprimary",
        "-C",
        "e",
        "-G",
        "rsa2048",
        "-c",
        "other.ctx",
    ]);
    tpm.tool(&["evictcontrol", "-C", "o", "-c", "other.ctx", "0x81010001"]);
    tpm.tool(&["flushcontext", "-t"]);
    let verifiers = super::scene::stage();
    let verifier = Verifier::new(&verifiers, maker.authority());
    let mut machine = Machine::new(stage, tpm);
    is_accepted(&mut machine, &verifier, false);
}

#[test]
fn attestation_leaves_nothing_in_the_tpm() {
    let (mut machine, maker) = made();
    machine.daemon.stop();
    let before = permanent(&machine.tpm);
    machine.daemon.restart(&machine.options);
    let stage = stage();
    let verifier = Verifier::new(&stage, maker.authority());
    is_accepted(&mut machine, &verifier, false);
    // It is refused after the session for the endorsement key has begun.
    let evidence = machine.evidence("alice", NONCE, "more").unwrap();
    let asked = verifier.challenge(&evidence, "more").unwrap();
    let spoilt = spoil(&asked.challenge);
    for _ in 0..4 {
        let refused = machine.activate(&spoilt, "refused").unwrap_err();
        assert!(refused.contains("for another device"), "{refused}");
    }
    // More often than there is room for sessions.
    for _ in 0..4 {
        machine.evidence("alice", NONCE, "again").unwrap();
        machine.activate(&asked.challenge, "answered").unwrap();
    }
    machine.daemon.stop();
    assert_eq!(machine.tpm.loaded(), [""; 0]);
    assert_eq!(permanent(&machine.tpm), before);
}

/// Evidence asks nothing of the key, so it is there whatever the machine has measured.
#[test]
fn a_key_that_is_bound_to_measurements_is_accepted_with_these_and_with_others() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    let recovery = Recovery::new(&stage, "recovery");
    let device = tpm.device("tpm") + &recovery.device(&[7]);
    let mut machine = Machine::configured(stage, tpm, device);
    let verifiers = super::scene::stage();
    let verifier = Verifier::new(&verifiers, maker.authority());
    is_accepted(&mut machine, &verifier, false);
    // Also in a row, in the session of the one before.
    machine.evidence("alice", NONCE, "again").unwrap();
    machine.daemon.stop();
    assert_eq!(machine.tpm.loaded(), [""; 0]);
    machine.tpm.measure(7, 1);
    machine.daemon.restart(&machine.options);
    let verifiers = super::scene::stage();
    let verifier = Verifier::new(&verifiers, maker.authority());
    is_accepted(&mut machine, &verifier, false);
    machine.daemon.stop();
    assert_eq!(machine.tpm.loaded(), [""; 0]);
}

/// The same challenge with one bit of its credential changed.
fn spoil(challenge: &std::path::Path) -> std::path::PathBuf {
    let mut json: Value = serde_json::from_slice(&std::fs::read(challenge).unwrap()).unwrap();
    let credential = &mut json["content"]["challenge"]["tpm2"]["credential"];
    let mut bytes = hex::decode(credential.as_str().unwrap()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    *credential = hex::encode(bytes).into();
    let spoilt = challenge.with_extension("spoilt");
    std::fs::write(&spoilt, json.to_string()).unwrap();
    spoilt
}

/// What only the verifier and the TPM know of a challenge.
fn secret_of(asked: &Asked) -> Vec<u8> {
    let secret: Value = serde_json::from_slice(&std::fs::read(&asked.secret).unwrap()).unwrap();
    hex::decode(secret["content"]["secret"].as_str().unwrap()).unwrap()
}

#[test]
fn nobody_on_the_way_to_the_tpm_reads_the_secret_of_a_challenge() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    let tap = Tap::before(&tpm);
    let mut machine = Machine::over(stage, tpm, &tap.tcti());
    let stage = super::scene::stage();
    let verifier = Verifier::new(&stage, maker.authority());
    let evidence = machine.evidence("alice", NONCE, "evidence").unwrap();
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    machine.activate(&asked.challenge, "response").unwrap();
    let challenge = Challenge::read(&std::fs::read(&asked.challenge).unwrap()).unwrap();
    let DeviceChallenge::Tpm2(passed) = challenge.challenge;
    assert!(tap.saw(&passed.credential), "it hears the TPM");
    assert!(!tap.saw(&secret_of(&asked)));

    // Without the session that the daemon has, it would.
    machine.daemon.stop();
    let mut careless = Hostile::over(&machine.tpm, &tap.tcti());
    let (ak, key) = (careless.real_ak(), careless.real_key());
    let ek = careless.ek();
    let envelope = careless.certify(ek, &ak, &key, &claims_of(&key));
    let evidence = stage.path("careless");
    std::fs::write(&evidence, envelope.write()).unwrap();
    let asked = verifier.challenge(&evidence, "careless").unwrap();
    let challenge = Challenge::read(&std::fs::read(&asked.challenge).unwrap()).unwrap();
    careless.activate(ak.0, &challenge).unwrap();
    assert!(tap.saw(&secret_of(&asked)));
}

#[test]
fn a_tpm_that_nobody_certified_says_so() {
    let stage = stage();
    let tpm = Swtpm::new(&stage);
    let machine = Machine::new(stage, tpm);
    let refused = machine.evidence("alice", NONCE, "evidence").unwrap_err();
    assert!(refused.contains("no certificate of its maker"), "{refused}");
}

#[test]
fn a_password_of_the_endorsement_hierarchy_is_named() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    tpm.tool(&["changeauth", "-c", "endorsement", "hush"]);
    let machine = Machine::new(stage, tpm);
    let refused = machine.evidence("alice", NONCE, "evidence").unwrap_err();
    assert!(
        refused.contains("endorsement hierarchy has a password"),
        "{refused}"
    );
    assert!(!refused.contains("hush"), "{refused}");
    // All else works.
    machine.add("bob", SignatureScheme::EcdsaP256Sha256);
}

#[test]
fn a_key_with_a_pin_is_attested_when_it_is_unlocked() {
    const PIN: &str = "31415926";
    let (machine, maker) = made();
    let owner = format!("{}/default", rustix::process::geteuid().as_raw());
    let identities = |verb: &str, more: &[&str]| {
        let arguments = [&["identities", verb, &owner, "bob"], more].concat();
        let output = with_input(machine.daemon.ctl_command(&arguments), PIN);
        assert!(output.status.success(), "{output:?}");
    };
    let more = ["--device", "tpm", "--scheme", "p256", "--pin"];
    identities("create", &more);
    let refused = machine.evidence("bob", NONCE, "evidence").unwrap_err();
    assert!(refused.contains("identities unlock"), "{refused}");
    identities("unlock", &[]);
    let stage = stage();
    let verifier = Verifier::new(&stage, maker.authority());
    let evidence = machine.evidence("bob", NONCE, "evidence").unwrap();
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    let response = machine.activate(&asked.challenge, "response").unwrap();
    let (code, json) = verifier.verify(&evidence, Some((&asked, &response)));
    assert_eq!(code, ACCEPTED, "{json}");
    // And it signs on.
    machine.evidence("bob", NONCE, "again").unwrap();
}

#[test]
fn a_sealed_key_is_not_attested() {
    let (machine, _maker) = made();
    machine.add("bob", SignatureScheme::Ed25519);
    let refused = machine.evidence("bob", NONCE, "evidence").unwrap_err();
    assert!(refused.contains("kept in tier sealed"), "{refused}");
    let nobody = machine.evidence("nobody", NONCE, "evidence").unwrap_err();
    assert!(nobody.contains("has no identity"), "{nobody}");
}
