//! Machines that only pretend, with real TPMs in their hands.

use std::path::PathBuf;

use mlskeyd::attest::{Challenge, Envelope, Evidence};
use mlskeyd_tests::rig::{Maker, Stage, Swtpm};

use super::hostile::{Hostile, SoftwareAk, claims, claims_of, secret_key};
use super::scene::{ACCEPTED, Machine, NONCE, NOT_BOUND, Verifier, made, stage};

/// A document of somebody's, in a file.
fn document(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let path = stage.path(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn read(path: &std::path::Path) -> Envelope {
    Envelope::read(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_software_key_beside_a_real_certificate_is_not_bound() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    let verifier = Verifier::new(&stage, maker.authority());
    let (ak, key) = (SoftwareAk::new(), secret_key(7));
    let mut hostile = Hostile::with(&tpm);
    let envelope = hostile.pretend(&ak, &key);
    let evidence = document(&stage, "evidence", &envelope.write());
    // Nothing in it is wrong, which is why it is not enough.
    assert_eq!(verifier.verify(&evidence, None).0, NOT_BOUND);
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    let challenge = Challenge::read(&std::fs::read(&asked.challenge).unwrap()).unwrap();
    // Whatever he does with the TPM.
    hostile.load_software_ak(&ak).unwrap_err();
    hostile.activate_public_only(&ak, &challenge).unwrap_err();
    let (real, _) = hostile.real_ak();
    hostile.activate(real, &challenge).unwrap_err();
    drop(hostile);
    // Nor does the daemon on it help him.
    let response = document(&stage, "guessed", &challenge.answer(&[0; 32]).write());
    let answer = Some((&asked, response.as_path()));
    assert_eq!(verifier.refusal(&evidence, answer), "wrong-response");
    let challenge = asked.challenge.clone();
    let machine = Machine::new(stage, tpm);
    let refused = machine.activate(&challenge, "response").unwrap_err();
    assert!(refused.contains("for another device"), "{refused}");
}

#[test]
fn a_key_that_was_made_elsewhere_is_seen_to_be() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let tpm = Swtpm::made_by(&maker, &stage, "tpm");
    let verifier = Verifier::new(&stage, maker.authority());
    let mut hostile = Hostile::with(&tpm);
    // As a sealed key is: in memory, and then in the TPM to be certified there.
    let key = secret_key(7);
    let (ak, imported) = (hostile.real_ak(), hostile.import(&key).unwrap());
    let ek = hostile.ek();
    let envelope = hostile.certify(ek.clone(), &ak, &imported, &claims(&key.public_key()));
    let evidence = document(&stage, "evidence", &envelope.write());
    assert_eq!(verifier.refusal(&evidence, None), "key-attributes");
    let refused = verifier.challenge(&evidence, "asked").err();
    assert_eq!(refused.as_deref(), Some("key-attributes"));
    // A key that the TPM made is certified in its place.
    hostile.flush(imported);
    let real = hostile.real_key();
    let envelope = hostile.certify(ek, &ak, &real, &claims(&key.public_key()));
    let evidence = document(&stage, "other", &envelope.write());
    assert_eq!(verifier.refusal(&evidence, None), "key-public");
}

#[test]
fn old_evidence_and_old_answers_are_refused() {
    let (machine, maker) = made();
    let stage = stage();
    let verifier = Verifier::new(&stage, maker.authority());
    let old_nonce = NONCE.replace("00", "01");
    let old = machine.evidence("alice", &old_nonce, "old").unwrap();
    let old_asked = verifier.challenge(&old, "old").unwrap();
    let old_response = machine
        .activate(&old_asked.challenge, "old.response")
        .unwrap();
    let old_answer = Some((&old_asked, old_response.as_path()));
    assert_eq!(
        verifier.verify_for(&old_nonce, &old, old_answer).0,
        ACCEPTED
    );

    assert_eq!(verifier.refusal(&old, old_answer), "other-nonce");
    let evidence = machine.evidence("alice", NONCE, "evidence").unwrap();
    assert_eq!(verifier.refusal(&evidence, old_answer), "other-secret");
    let asked = verifier.challenge(&evidence, "asked").unwrap();
    let answer = Some((&asked, old_response.as_path()));
    assert_eq!(verifier.refusal(&evidence, answer), "other-response");
    // The old certification under the new nonce.
    let mut envelope = read(&old);
    envelope.claims.nonce = hex::decode(NONCE).unwrap();
    let changed = document(&stage, "changed", &envelope.write());
    assert_eq!(verifier.refusal(&changed, None), "claims");
    // A second challenge is not answered by the answer to the first.
    let response = machine.activate(&asked.challenge, "response").unwrap();
    assert_eq!(
        verifier.verify(&evidence, Some((&asked, &response))).0,
        ACCEPTED
    );
    let again = verifier.challenge(&evidence, "again").unwrap();
    let answer = Some((&again, response.as_path()));
    assert_eq!(verifier.refusal(&evidence, answer), "wrong-response");
}

#[test]
fn what_another_tpm_holds_is_not_in_this_one() {
    let stage = stage();
    let maker = Maker::new(&stage, "maker");
    let mut machines = ["one", "other"].map(|name| {
        let tpm = Swtpm::made_by(&maker, &stage, name);
        Machine::new(super::scene::stage(), tpm)
    });
    let verifier = Verifier::new(&stage, maker.authority());
    let made = machines.each_ref().map(|machine| {
        let evidence = machine.evidence("alice", NONCE, "evidence").unwrap();
        (read(&evidence), evidence)
    });
    let [(one, one_file), (other, _)] = &made;
    let Evidence::Tpm2(of_other) = &other.evidence else {
        panic!("it is of a TPM");
    };
    let with = |change: &dyn Fn(&mut Envelope)| {
        let mut changed = one.clone();
        change(&mut changed);
        let file = document(&stage, "changed", &changed.write());
        verifier.refusal(&file, None)
    };
    // The other one's key.
    let refused = with(&|changed| changed.claims.public_key = other.claims.public_key.clone());
    assert_eq!(refused, "claims");
    let refused = with(&|changed| {
        let Evidence::Tpm2(tpm) = &mut changed.evidence else {
            panic!("it is of a TPM");
        };
        tpm.keys.key_public = of_other.keys.key_public.clone();
        changed.claims = other.claims.clone();
    });
    assert_eq!(refused, "claims");
    // Its attestation key.
    let refused = with(&|changed| {
        let Evidence::Tpm2(tpm) = &mut changed.evidence else {
            panic!("it is of a TPM");
        };
        tpm.keys.ak_public = of_other.keys.ak_public.clone();
    });
    assert_eq!(refused, "ak-signature");
    let refused = with(&|changed| {
        let Evidence::Tpm2(tpm) = &mut changed.evidence else {
            panic!("it is of a TPM");
        };
        tpm.keys.ek_public = of_other.keys.ek_public.clone();
    });
    assert_eq!(refused, "ek-key");
    // What one TPM is asked the other does not answer, nor does it answer for it.
    let asked = verifier.challenge(one_file, "asked").unwrap();
    let refused = machines[1]
        .activate(&asked.challenge, "response")
        .unwrap_err();
    assert!(refused.contains("for another device"), "{refused}");

    // Somebody who has both: one's certificate, the other's attestation key and key.
    machines
        .iter_mut()
        .for_each(|machine| machine.daemon.stop());
    let [one, other] = machines.each_ref().map(|machine| &machine.tpm);
    let (mut one, mut other) = (Hostile::with(one), Hostile::with(other));
    let (ak, key) = (other.real_ak(), other.real_key());
    let mixed = other.certify(one.ek(), &ak, &key, &claims_of(&key));
    let evidence = document(&stage, "mixed", &mixed.write());
    assert_eq!(verifier.verify(&evidence, None).0, NOT_BOUND);
    let asked = verifier.challenge(&evidence, "mixed").unwrap();
    let challenge = Challenge::read(&std::fs::read(&asked.challenge).unwrap()).unwrap();
    let (own, _) = one.real_ak();
    one.activate(own, &challenge).unwrap_err();
    other.activate(ak.0, &challenge).unwrap_err();
}

#[test]
fn another_makers_tpm_is_not_trusted() {
    let (machine, maker) = made();
    let stage = stage();
    let other = Maker::new(&stage, "other");
    drop(Swtpm::made_by(&other, &stage, "another"));
    let evidence = machine.evidence("alice", NONCE, "evidence").unwrap();
    let verifier = Verifier::new(&stage, other.authority());
    assert_eq!(verifier.refusal(&evidence, None), "ek-chain");
    let refused = verifier.challenge(&evidence, "asked").err();
    assert_eq!(refused.as_deref(), Some("ek-chain"));
    assert!(!stage.path("asked.secret").exists());
    let verifier = Verifier::new(&stage, maker.authority());
    assert_eq!(verifier.verify(&evidence, None).0, NOT_BOUND);
}
